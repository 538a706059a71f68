"""Scores of candidates by a full re-run, by cached rows, and from a head over the vocabulary."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.decoding.candidates.hf_running_text import RunningText
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScores
from tokencredit.errors import ModelError
from tokencredit.masking import left_packed
from tokencredit.models.heads import float32_outputs, scalar_scores
from tokencredit.models.hf_architecture import (
    is_causal,
    require_evaluation,
    require_prefix_scores,
    require_room,
    sequence_classifier,
    vocabulary_width,
)
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_passes import classifier_logits, row_places, separate_passes


def sequence_scores(
    model: PreTrainedModel,
    ids: Int[Tensor, "rows time"],
    lengths: Int[Tensor, "rows"],
    *,
    micro_batch_size: int | None = None,
) -> Float[Tensor, "rows"]:
    """Scores of whole sequences, each re-run from its start.

    Args:
        model: a sequence-classification model, an encoder too.
        ids: padded on the right.
        lengths: real tokens of each row.
        micro_batch_size: rows of one pass; all by default.

    Raises:
        ModelError: the model is in training mode.
    """
    require_evaluation(model)
    if not len(ids):
        return ids.new_zeros(0, dtype=torch.float32)
    parts = torch.split(torch.arange(len(ids), device=ids.device), micro_batch_size or len(ids))
    return torch.cat([_scores_of(model, ids[rows], lengths[rows]) for rows in parts])


@torch.no_grad()
def _scores_of(model: PreTrainedModel, ids: Tensor, lengths: Tensor) -> Tensor:
    """Scores of some rows, in one pass where they do not change each other's scores."""
    causal = is_causal(model)
    groups = separate_passes(model, ids, lengths, causal=causal)
    one_pass = _causal_pass if causal else classifier_logits
    parts = [scalar_scores(one_pass(model, ids[rows], lengths[rows])) for rows in groups]
    return torch.cat(parts)[row_places(groups, len(ids))]


def _causal_pass(model: PreTrainedModel, ids: Tensor, lengths: Tensor) -> Tensor:
    """What the head says at the last token of each row."""
    ids = ids[:, : int(lengths.max())]
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    # No real token comes after padding: none is masked, which leaves the fastest kernels.
    trunk = model.base_model(input_ids=ids.masked_fill(~real, 0), use_cache=False)
    rows = torch.arange(len(ids), device=ids.device)
    return float32_outputs(model.score, trunk.last_hidden_state[rows, lengths - 1])


class FullScorer:
    """Re-runs the text with every candidate: slow, and right for any sequence classifier.

    What encoders need, templates that put something after the text, and every check of a faster
    scorer. All candidates of all rows go through the model together.

    Args:
        model: a sequence-classification model.
        tail_ids: tokens that follow every text, as the end of a chat turn.
        micro_batch_size: texts of one pass; all by default.
    """

    def __init__(
        self, model: nn.Module, *, tail_ids: Sequence[int] = (), micro_batch_size: int | None = None
    ) -> None:
        self.model = sequence_classifier(model)
        self.tail_ids = list(tail_ids)
        self.micro_batch_size = micro_batch_size
        self.vocab: int | None = vocabulary_width(self.model)

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by a pass over every text from its start.

        Raises:
            DataError: a text with one more token and the tail is longer than the model reads.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.model.device)
        tail = len(self.tail_ids)
        require_room(self.model, batch.longest + 1 + tail)
        packed, real = left_packed(batch.text_ids, batch.text_mask)
        lengths, number = real.sum(-1), batch.candidate_ids.shape[1]
        # Column 0 is the text alone, column j + 1 the text with candidate j.
        ids = torch.nn.functional.pad(packed, (0, 1 + tail))[:, None].repeat(1, 1 + number, 1)
        ends = lengths[:, None].repeat(1, 1 + number)
        ids[:, 1:].scatter_(2, ends[:, 1:, None], batch.candidate_ids[:, :, None])
        ends[:, 1:] += 1
        for token in self.tail_ids:
            ids.scatter_(2, ends[:, :, None], token)
            ends = ends + 1
        wanted = torch.cat([batch.active[:, None], batch.candidate_mask], dim=-1)
        scores = torch.zeros(wanted.shape, dtype=torch.float32, device=wanted.device)
        scores[wanted] = sequence_scores(
            self.model, ids[wanted], ends[wanted], micro_batch_size=self.micro_batch_size
        )
        return CandidateScores(scores[:, 1:], scores[:, 0])


class RowsScorer:
    """One cached row per candidate: for flash attention, recurrent layers and whatever else.

    All rows of a text hold the same keys; a step feeds [last token, candidate] to each, after the
    candidates of the step before are cut off. Recurrent states cannot be cut back: there the text
    is kept once, and copied for the candidates of a step.

    Args:
        model: a causal sequence-classification model.

    Raises:
        ModelError: it has no score at every prefix.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = sequence_classifier(model)
        require_prefix_scores(self.model, instead="method='full'")
        self.text = RunningText(self.model.base_model)
        self.vocab: int | None = vocabulary_width(self.model)
        self._rows = 1

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by a pass over what is new, in one row per candidate.

        Raises:
            DataError: a text with one more token is longer than the model reads.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.model.device)
        require_room(self.model, batch.longest + 1)
        text_mask = batch.text_mask
        text_ids = batch.text_ids.masked_fill(~text_mask, 0)
        candidate_ids = batch.candidate_ids.masked_fill(~batch.candidate_mask, 0)
        if self.text.croppable:
            hidden = self._rows_of(text_ids, text_mask, candidate_ids)
        else:
            prefix = self.text.outputs(text_ids, text_mask)
            hidden = torch.cat([prefix, self.text.branches(candidate_ids)], dim=1)
        with torch.no_grad():
            scores = scalar_scores(float32_outputs(self.model.score, hidden))
        return CandidateScores(scores[:, 1:], scores[:, 0])

    def _rows_of(
        self, text_ids: Tensor, text_mask: Tensor, candidate_ids: Tensor
    ) -> Float[Tensor, "batch candidates_plus_1 width"]:
        """Hidden states of the text and of its candidates, each in a row of its own."""
        batch, number = candidate_ids.shape
        self._rows = max(self._rows, number)  # as many rows at every step: the cache stays
        spare = candidate_ids[:, :1].expand(-1, self._rows - number)
        candidates = torch.cat([candidate_ids, spare], dim=-1).reshape(-1, 1)
        ids = torch.cat([text_ids.repeat_interleave(self._rows, dim=0), candidates], dim=-1)
        mask = text_mask.repeat_interleave(self._rows, dim=0)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        if not self.text.known_columns(ids, mask) and text_ids.shape[1] > 1:
            self.text.outputs(text_ids[:, :-1], text_mask[:, :-1])  # read once, not in every row
            self.text.repeat_rows(self._rows)
        hidden = self.text.outputs(ids, mask, last=2)
        hidden = hidden.view(batch, self._rows, 2, -1)
        return torch.cat([hidden[:, :1, 0], hidden[:, :number, 1]], dim=1)


class VocabScorer:
    """One cached pass scores the whole vocabulary: the logits of a causal language model.

    With a value model trained so, logit v is the value of the text with v after it; with an
    autoregressive reward model, its log-probability is the reward of v.

    Args:
        model: a causal language model with the vocabulary of the one that is guided.
        scores: whether logits or log-probabilities are the scores.

    Raises:
        ModelError: the model has no head over the vocabulary.

    Source: the values in the logits, Rashid et al. 2025, arXiv 2502.04517; the log-probabilities,
    Xu et al. 2024, arXiv 2410.08193. The first's published script runs the whole text at each step.
    """

    def __init__(self, model: nn.Module, *, scores: Literal["logits", "logprobs"]) -> None:
        self.model = pretrained_model(model)
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{type(self.model).__name__} has no head over the vocabulary; expected a causal "
                "language model, or a sequence classifier with another scorer"
            )
        self.scores = scores
        self.text = RunningText(self.model)
        self.vocab: int | None = min(vocabulary_width(self.model), int(head.weight.shape[0]))

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores of the candidates by one pass; the text alone has none here and is given zero.

        Raises:
            DataError: a text is longer than the model reads.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.model.device)
        require_room(self.model, batch.longest)
        ids = batch.text_ids.masked_fill(~batch.text_mask, 0)
        logits = self.text.outputs(ids, batch.text_mask)[:, -1].float()
        values = logits if self.scores == "logits" else logits.log_softmax(-1)
        candidate_ids, width = batch.candidate_ids, values.shape[-1]
        scores = values.gather(-1, candidate_ids.clamp(max=width - 1))
        scores = scores.masked_fill(candidate_ids >= width, -torch.inf)
        return CandidateScores(scores, torch.zeros_like(scores[:, 0]))
