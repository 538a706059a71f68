"""The credit methods that `compare-credit` knows, as passes over texts that score tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from tokencredit.credit.perturbation import leave_one_out_credit, shapley_credit
from tokencredit.credit.prefix_potentials import smoothed_prefix_scores
from tokencredit.errors import ModelError
from tokencredit.hf_loading import context_length
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.compare_config import CompareCreditConfig
from tokencredit.recipes.compare_scores import EncodedWords, Scorer, encoded_words
from tokencredit.recipes.reward_texts import reads_eos
from tokencredit.recipes.token_scorer import credited
from tokencredit.reward_model.hf_backbone import ResponseScores, score_responses
from tokencredit.reward_model.hf_perturbed import (
    response_embeddings,
    score_of_embeddings,
    scores_without_tokens,
)

_SMOOTHED = "smoothed-prefix-difference"


@dataclass(frozen=True)
class Pass:
    """Methods that are scored together, and the model whose tokens they score.

    Attributes:
        names: of the rows that it gives.
        scorer: from texts in the model's tokens to the token scores of all of them.
        model: that scores.
        tokenizer: of the model.
    """

    names: tuple[str, ...]
    scorer: Scorer
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def batches(
        self, texts: Sequence[MarkedText], config: CompareCreditConfig
    ) -> Iterator[tuple[list[int], EncodedWords]]:
        """The texts in the model's tokens."""
        return encoded_words(
            self.tokenizer,
            texts,
            batch_size=config.batch_size,
            template=config.template,
            append_eos=bool(reads_eos(self.model)),
            max_length=context_length(self.model, self.tokenizer),
            device=next(self.model.parameters()).device,
        )


def reward_model_passes(
    config: CompareCreditConfig, model: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> list[Pass]:
    """The methods of the settings that need the reward model alone.

    Args:
        config: the settings.
        model: the reward model.
        tokenizer: its tokenizer.
    """
    named: dict[str, Scorer] = {
        "gradient-times-input": partial(_gradient, model),
        "integrated-gradients": partial(_integrated, model, steps=config.gradient_steps),
        "leave-one-out": partial(_left_out, model, batch_size=config.batch_size),
        "shapley": partial(_shapley, model, config=config),
    }
    cheap = _names_of_scored(config)
    passes = [Pass(cheap, partial(_scored, model, config=config), model, tokenizer)]
    passes += [
        Pass((name,), scorer, model, tokenizer)
        for name, scorer in named.items()
        if name in config.methods
    ]
    return passes if cheap else passes[1:]


def _names_of_scored(config: CompareCreditConfig) -> tuple[str, ...]:
    """Names of the rows that need nothing but forward passes over the whole texts."""
    rows = {name: [name] for name in ("terminal", "uniform", "prefix-difference", _SMOOTHED)}
    rows["attention"] = _attention_names(config)
    return tuple(row for method in config.methods for row in rows.get(method, []))


def _attention_names(config: CompareCreditConfig) -> list[str]:
    names = [f"attention, layer {layer}" for layer in config.attention_layers]
    return [*names, "attention, mean of layers"] if len(names) > 1 else names


def _scored(
    model: nn.Module, batch: EncodedWords, *, config: CompareCreditConfig
) -> dict[str, Float[Tensor, "batch time"]]:
    """What one forward pass says, or one per layer of attention."""
    mask = batch.encoded.batch.response_mask
    layers = config.attention_layers if "attention" in config.methods else (None,)
    by_layer = [
        score_responses(
            model,
            batch.encoded.batch,
            attention_mask=batch.encoded.attention_mask,
            attention_layer=layer,
        )
        for layer in layers
    ]
    found: dict[str, Tensor] = {}
    for name in config.methods:
        if name == "attention":
            spread = [credited(name, scores, mask) for scores in by_layer]
            spread.append(torch.stack(spread).mean(0))
            found |= dict(zip(_attention_names(config), spread, strict=False))
        elif name == _SMOOTHED:
            found[name] = _smoothed(by_layer[0], mask, decay=config.smoothing_decay)
        elif name in ("terminal", "uniform", "prefix-difference"):
            found[name] = credited(name, by_layer[0], mask)
    return found


def _smoothed(
    scores: ResponseScores, mask: Bool[Tensor, "batch time"], *, decay: float
) -> Float[Tensor, "batch time"]:
    if scores.prefix_scores is None:
        raise ModelError(
            f"method {_SMOOTHED!r} of a reward model that reads in both directions; expected a "
            "causal one, which scores prefixes: leave it out of methods"
        )
    potentials = smoothed_prefix_scores(scores.prefix_scores, mask, decay=decay)
    smoothed = ResponseScores(scores.sequence_scores, potentials, None)
    return credited("prefix-difference", smoothed, mask)


def _gradient(model: nn.Module, batch: EncodedWords) -> dict[str, Float[Tensor, "batch time"]]:
    responses = batch.encoded.batch
    score = score_of_embeddings(model, responses, attention_mask=batch.encoded.attention_mask)
    embeddings = response_embeddings(model, responses)
    return {
        "gradient-times-input": gradient_times_input_credit(
            score, embeddings, responses.response_mask
        )
    }


def _integrated(
    model: nn.Module, batch: EncodedWords, *, steps: int
) -> dict[str, Float[Tensor, "batch time"]]:
    """From the mean embedding of the vocabulary: no token, but as long as one."""
    responses = batch.encoded.batch
    embeddings = response_embeddings(model, responses)
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    return {
        "integrated-gradients": integrated_gradients_credit(
            score_of_embeddings(model, responses, attention_mask=batch.encoded.attention_mask),
            embeddings,
            table.mean(0).expand_as(embeddings),
            responses.response_mask,
            steps=steps,
        )
    }


def _left_out(
    model: nn.Module, batch: EncodedWords, *, batch_size: int
) -> dict[str, Float[Tensor, "batch time"]]:
    responses = batch.encoded.batch
    scores = scores_without_tokens(
        model,
        responses,
        attention_mask=batch.encoded.attention_mask,
        micro_batch_size=4 * batch_size,
    )
    words = batch.token_words.to(responses.response_mask.device)
    credit = leave_one_out_credit(scores, responses.response_mask, segment_ids=words)
    return {"leave-one-out": credit}


def _shapley(
    model: nn.Module, batch: EncodedWords, *, config: CompareCreditConfig
) -> dict[str, Float[Tensor, "batch time"]]:
    responses = batch.encoded.batch
    scores = scores_without_tokens(
        model,
        responses,
        attention_mask=batch.encoded.attention_mask,
        micro_batch_size=4 * config.batch_size,
    )
    credit = shapley_credit(
        scores,
        responses.response_mask,
        samples=config.shapley_samples,
        generator=torch.Generator().manual_seed(config.seed),
        segment_ids=batch.token_words.to(responses.response_mask.device),
    )
    return {"shapley": credit}
