"""Whole responses scored by a classifier or by an implicit reward, in the same way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokencredit.errors import NumericError
from tokencredit.models.hf_loading import (
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    pad_token_id,
)
from tokencredit.scorers.hf_fractions import fraction_scores
from tokencredit.scorers.hf_implicit import (
    implicit_fraction_scores,
    loaded_reference,
    stored_reference,
)
from tokencredit.scorers.hf_trained_reading import trained_segment_ends
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText
from tokencredit.text.reading_settings import ReadingSettings

Kind = Literal["classification", "implicit"]


@dataclass(frozen=True)
class ResponseScorer:
    """A model of rewards with everything that it needs to read texts.

    Attributes:
        kind: what it is.
        reading: how it reads texts.
        max_length: tokens that it reads; None where it does not say.
        reference: of an implicit reward; None for a classifier.
        dpo_beta: of an implicit reward; None for a classifier.
        row_scores: rows to the scores of the beginnings `FRACTIONS` of each, in nats.
    """

    kind: Kind
    reading: Reading
    max_length: int | None
    reference: str | None
    dpo_beta: float | None
    row_scores: Callable[..., Float[Tensor, "rows fractions"]]


def loaded_scorer(
    name_or_path: str,
    settings: ReadingSettings | None = None,
    *,
    kind: Kind | None = None,
    reference: str | None = None,
    dpo_beta: float | None = None,
    pad_token: str | None = None,
    **loading: Any,
) -> ResponseScorer:
    """A classifier, or a model trained by DPO with its reference.

    Args:
        name_or_path: a folder or a Hub id.
        settings: how it reads; None leaves that to the model.
        kind: None takes `implicit` where a reference is given or the configuration of the model
            names one.
        reference: of an implicit reward; None takes what the configuration says.
        dpo_beta: of an implicit reward; None takes what the configuration says.
        pad_token: token of the vocabulary to pad with, where the tokenizer names none.
        **loading: as `load_model` takes it.

    Raises:
        ConfigError: an implicit reward without reference or dpo_beta.
        ModelError: a model or tokenizer is not there or lacks what is needed.
    """
    trust = bool(loading.get("trust_remote_code", False))
    if kind is None:
        implicit = reference is not None or _names_reference(name_or_path, trust)
        kind = "implicit" if implicit else "classification"
    if kind == "classification":
        classifier: Any
        classifier, reading = loaded_reward_model(
            name_or_path, settings, pad_token=pad_token, **loading
        )
        length = context_length(classifier, reading.tokenizer)
        ends = trained_segment_ends(classifier, reading.tokenizer, trust_remote_code=trust)
        scores = partial(fraction_scores, classifier, segment_ends=ends)
        return ResponseScorer(kind, reading, length, None, None, scores)
    tokenizer = load_tokenizer(name_or_path, pad_token=pad_token, trust_remote_code=trust)
    pad_token_id(tokenizer)
    model = load_model(AutoModelForCausalLM, name_or_path, **loading)
    reference, dpo_beta = stored_reference(model.config, reference=reference, dpo_beta=dpo_beta)
    frozen = loaded_reference(reference, tokenizer, **loading)
    length, reading = context_length(model, tokenizer), reading_of(model, tokenizer, settings)
    scores = partial(implicit_fraction_scores, model, frozen, dpo_beta=dpo_beta)
    return ResponseScorer(kind, reading, length, reference, dpo_beta, scores)


def _names_reference(name_or_path: str, trust_remote_code: bool) -> bool:
    found = load_config(name_or_path, trust_remote_code=trust_remote_code)
    return getattr(found, "dpo_reference", None) is not None


def scored_responses(
    scorer: ResponseScorer, rows: Sequence[EncodedText], *, batch_size: int
) -> Iterator[Float[Tensor, "fractions"]]:
    """Scores of the beginnings `FRACTIONS` of each response, in nats, one response after another.

    Args:
        scorer: the model.
        rows: prompts with their responses, as its reading gives them.
        batch_size: responses per forward pass; those of like length in the next 16 batches go
            together.

    Raises:
        NumericError: a score is NaN or infinite.
    """
    pad_id = pad_token_id(scorer.reading.tokenizer)
    for at in range(0, len(rows), 16 * batch_size):
        some = rows[at : at + 16 * batch_size]
        yield from _finite_scores(scorer, some, pad_id=pad_id, batch_size=batch_size, first=at)


def _finite_scores(
    scorer: ResponseScorer, rows: Sequence[EncodedText], *, pad_id: int, batch_size: int, first: int
) -> Float[Tensor, "rows fractions"]:
    scores = scorer.row_scores(rows, pad_id=pad_id, batch_size=batch_size, context=nullcontext())
    bad = ~torch.isfinite(scores).all(-1)
    if bool(bad.any()):
        raise NumericError(
            f"the model gives NaN or infinite scores to the responses "
            f"{(bad.nonzero().flatten() + first).tolist()}; expected finite ones: look for NaN "
            "weights, or load it in float32 or bfloat16 rather than float16"
        )
    return scores
