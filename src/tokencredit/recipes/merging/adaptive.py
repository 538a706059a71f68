"""Shares of groups of blocks, fitted so that the merged policy writes as the trained one does."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.errors import DataError, NumericError
from tokencredit.models.merging import (
    Weights,
    adaptive_base_shares,
    depth_groups,
    merged_weights,
)
from tokencredit.preference.hf_datasets import load_prompted_responses
from tokencredit.recipes.language_model.corpus import IGNORED, causal_batch, causal_example
from tokencredit.recipes.merging.settings import AdaptiveSettings
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class _Fit:
    """What stays as it is while shares are fitted."""

    settings: AdaptiveSettings
    model: PreTrainedModel
    base: Weights
    tuned: Weights
    groups: dict[str, int | None]


def fitted_shares(
    settings: AdaptiveSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: Weights,
    tuned: Weights,
) -> dict[str, float]:
    """The share of the trained policy in each weight.

    What stands outside blocks has that of the mean. The logits of the groups' shares follow the
    gradient of the mean negative log-likelihood of the responses under the merged weights.

    Args:
        settings: the texts, and how shares are fitted.
        model: the trained policy.
        tokenizer: of it.
        base: weights of the policy before.
        tuned: those of the trained one.

    Raises:
        DataError: the texts are not there, or none has anything to predict.
        ModelError: the model has fewer blocks than there are groups.
        NumericError: the loss is NaN or infinite.

    Source: Lin et al. 2023, arXiv 2309.06256. Their penalty on shares of middle layers is left out,
    and their learning rate, 2e-5, is larger here: one pass over a few texts would move nothing.
    """
    fit = _Fit(settings, model, base, tuned, depth_groups(base, settings.groups))
    rows = _rows(settings, model, tokenizer)
    model.requires_grad_(False)
    logits = torch.zeros(settings.groups, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=settings.learning_rate)
    for chosen in _batches(len(rows), settings):
        loss = _loss(fit, logits, [rows[i] for i in chosen])
        if not bool(loss.isfinite()):
            raise NumericError(
                f"the loss of the merged policy is {loss.item()}; expected a finite number: look "
                "at the weights of both models"
            )
        (logits.grad,) = torch.autograd.grad(loss, logits)
        optimizer.step()
    with torch.no_grad():
        return {name: float(share) for name, share in _shares(fit, logits).items()}


def _shares(fit: _Fit, logits: Float[Tensor, "groups"]) -> dict[str, Tensor]:
    """The share of the trained policy in each weight, with a gradient."""
    settings = fit.settings
    before = adaptive_base_shares(logits, mean=settings.base_share, floor=settings.floor)
    outside = torch.tensor(settings.base_share)
    return {
        name: 1 - (outside if group is None else before[group])
        for name, group in fit.groups.items()
    }


def _loss(fit: _Fit, logits: Float[Tensor, "groups"], rows: list[dict[str, Tensor]]) -> Tensor:
    """Mean negative log-likelihood of responses under the merged weights."""
    merged = merged_weights(fit.base, fit.tuned, _shares(fit, logits))
    batch = causal_batch(rows)
    loss: Tensor = functional_call(fit.model, merged, (), {**batch, "use_cache": False}).loss
    return loss


def _rows(
    settings: AdaptiveSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Tensor]]:
    """Prompts with their responses as the policy reads them, the responses to be predicted."""
    assert settings.data is not None
    texts = load_prompted_responses(
        settings.data,
        split=settings.split,
        prompt_column=settings.prompt,
        response_column=settings.response,
    )
    encoded = reading_of(model, tokenizer, ReadingSettings()).rows(
        [text.prompt for text in texts],
        [text.response for text in texts],
        max_length=settings.max_length,
        truncation="response-end",
        ended=[text.ended for text in texts],
    )
    rows = [causal_example(torch.tensor(one.input_ids), start=one.start) for one in encoded]
    kept = [row for row in rows if bool((row["labels"] != IGNORED).any())]
    if not kept:
        raise DataError(
            f"none of the {len(texts)} rows of {settings.data} has a response token; expected "
            "responses to learn from"
        )
    return kept


def _batches(count: int, settings: AdaptiveSettings) -> Iterator[list[int]]:
    rng = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        order = torch.randperm(count, generator=rng)
        yield from (part.tolist() for part in torch.split(order, settings.batch_size))
