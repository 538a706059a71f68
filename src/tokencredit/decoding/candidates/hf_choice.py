"""The fastest scorer that a reward model allows, compared once with a full re-run."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from tokencredit.decoding.candidates.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.candidates.hf_packed import PackedScorer
from tokencredit.decoding.candidates.hf_scorers import FullScorer, RowsScorer, VocabScorer
from tokencredit.decoding.candidates.hf_tree import TextScorer, TreeScorer
from tokencredit.decoding.candidates.scores import (
    CandidateBatch,
    CandidateScorer,
    CandidateScores,
)
from tokencredit.errors import ConfigError, TokenCreditError, TokenCreditWarning
from tokencredit.models.hf_architecture import is_causal, sequence_classifier
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_kept_keys import attention_windows, rescales_positions

# Candidates of each text that are scored both ways, and how far scores may lie apart.
_COMPARED = 3
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
_COARSE_TOLERANCE = 5e-2

Method = Literal["auto", "packed", "rows", "full", "vocab"]


def candidate_scorer(
    model: nn.Module,
    *,
    method: Method = "auto",
    vocab_scores: Literal["logits", "logprobs"] = "logits",
    tail_ids: Sequence[int] = (),
    micro_batch_size: int | None = None,
) -> CandidateScorer:
    """A scorer for a reward model that shares its vocabulary with the language model.

    `auto` takes the vocabulary head of a language model; the full re-run for encoders, for a tail
    after the text and where keys are rescaled as the text grows; packed queries where attention
    takes a mask of our own; cached rows elsewhere (flash attention, recurrent layers). The faster
    ones are compared with the full re-run at their first texts.

    Args:
        model: a sequence-classification model or a causal language model, in evaluation mode.
        method: how to score; every way gives the same scores, up to rounding.
        vocab_scores: what a language model's head says, see `VocabScorer`.
        tail_ids: tokens that follow every text, as the end of a chat turn.
        micro_batch_size: of the full re-run; all candidates at once by default.

    Raises:
        ConfigError: the method is unknown, or cannot score texts with a tail.
        ModelError: the model has not the head or attention that the method needs.
    """
    if method not in ("auto", "packed", "rows", "full", "vocab"):
        raise ConfigError(
            f"method is {method!r}; expected 'auto', 'packed', 'rows', 'full' or 'vocab'"
        )
    if tail_ids and method not in ("auto", "full"):
        raise ConfigError(
            f"method is {method!r} and there are tail_ids; expected method 'full' for texts that "
            "something follows, or `TreeScorer`, whose texts may have a tail"
        )
    pretrained = pretrained_model(model)
    is_language_model = not hasattr(pretrained, "score") and (
        pretrained.get_output_embeddings() is not None
    )
    if method == "vocab" or (method == "auto" and is_language_model):
        return VocabScorer(model, scores=vocab_scores)
    if method == "packed":
        return PackedScorer(model)
    if method == "rows":
        return RowsScorer(model)
    full = FullScorer(model, tail_ids=tail_ids, micro_batch_size=micro_batch_size)
    if method == "full" or tail_ids or not _keeps_its_keys(model):
        return full
    return CheckedScorer(_faster(model), full)


def text_scorer(
    model: nn.Module, texts: CandidateTexts, *, micro_batch_size: int | None = None
) -> CandidateScorer:
    """A scorer for a reward model with a tokenizer of its own: a token tree where it can be had.

    Args:
        model: a sequence-classification model, in evaluation mode.
        texts: what it reads.
        micro_batch_size: of the full re-run; all candidates at once by default.

    Raises:
        ModelError: the model has no head that gives one score.
    """
    full = TextScorer(model, texts, micro_batch_size=micro_batch_size)
    if not _keeps_its_keys(model) or attention_windows(sequence_classifier(model)) is None:
        return full
    return CheckedScorer([lambda: TreeScorer(model, texts)], full)


def _keeps_its_keys(model: nn.Module) -> bool:
    """Whether scores of prefixes can be had from kept keys at all."""
    pretrained = sequence_classifier(model)
    return is_causal(pretrained) and not rescales_positions(pretrained)


def _faster(model: nn.Module) -> list[Callable[[], CandidateScorer]]:
    """Ways to make a scorer, the fastest first."""
    makers: list[Callable[[], CandidateScorer]] = [lambda: RowsScorer(model)]
    if attention_windows(sequence_classifier(model)) is not None:
        makers.insert(0, lambda: PackedScorer(model))
    return makers


class CheckedScorer:
    """The first of several scorers that agrees with a slow and certain one at its first texts.

    Args:
        makers: make the scorers to try, in this order.
        reference: what they are compared with, and what is left where none agrees.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], CandidateScorer]],
        reference: FullScorer | TextScorer,
    ) -> None:
        self.reference = reference
        self.vocab = reference.vocab
        self.scorer: CandidateScorer | None = None
        self._makers = makers

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by the scorer in use; warns if the fastest way gave other scores or failed.

        Raises:
            DataError: a text with one more token is longer than the model reads.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.reference.model.device)
        if self.scorer is not None:
            return self.scorer(batch)
        mask = batch.candidate_mask.clone()
        mask[:, _COMPARED:] = False
        expected = self.reference(replace(batch, candidate_mask=mask))
        troubles = []
        for maker in self._makers:
            scorer, trouble = maker(), ""
            try:
                scores = scorer(batch)
                trouble = _difference(scores, expected, mask, self.reference.model.dtype)
            except (TokenCreditError, torch.OutOfMemoryError):
                raise
            except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
                trouble = f"{type(error).__name__}: {error}"
            if not trouble:
                break
            troubles.append(f"{type(scorer).__name__}: {trouble}")
        else:
            scorer, scores = self.reference, self.reference(batch)
        if troubles:
            warnings.warn(
                f"{type(self.reference.model).__name__} is scored by {type(scorer).__name__}, "
                "since faster ways do not give the scores of a full re-run "
                f"({'; '.join(troubles)}); name the method to have it without this comparison",
                TokenCreditWarning,
                stacklevel=2,
            )
        self.scorer = scorer if bool(mask.any()) else None
        return scores


def _difference(
    scores: CandidateScores, expected: CandidateScores, mask: Tensor, dtype: torch.dtype
) -> str:
    """How scores differ by more than rounding; empty where they agree or are no numbers."""
    active = mask.any(-1)
    ours = torch.cat([scores.candidates[mask], scores.prefix[active]])
    theirs = torch.cat([expected.candidates[mask], expected.prefix[active]])
    if not len(theirs) or not bool(theirs.isfinite().all()):
        return ""
    error, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if error <= _TOLERANCES.get(dtype, _COARSE_TOLERANCE) * max(scale, 1e-6):
        return ""
    return f"scores differ by {error:.3g} where the largest is {scale:.3g}"
