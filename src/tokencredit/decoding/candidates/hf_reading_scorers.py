"""Scores of candidates as a reward model reads a response: its own prompt, its own closing."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScorer, CandidateScores
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import written_rows


class FramedScorer:
    """A scorer of this vocabulary that is given the reward model's own prompts and closings.

    Response tokens keep the ids that were drawn. A candidate that ends the response is scored as
    the response is read when it has ended: closed as the model learnt it, or, where it learnt
    without, by the text before the end.

    Args:
        scorer: of texts in the tokens that both models share.
        reading: of the reward model.
        prompt_ids: of the language model, padded on the left.
        prompt_mask: True on real tokens.
        prompts: what was asked, texts or conversations; None where the ids of the prompts are all
            that is known.
        turn_ends: ids that end a response; none for models that say something of every token, the
            end among them.
    """

    def __init__(
        self,
        scorer: CandidateScorer,
        reading: Reading,
        prompt_ids: Int[Tensor, "batch prompt"],
        prompt_mask: Bool[Tensor, "batch prompt"],
        prompts: Sequence[Prompt] | None,
        *,
        turn_ends: Sequence[int] = (),
    ) -> None:
        self.scorer = scorer
        self.vocab = scorer.vocab
        self.turn_ends = torch.tensor(list(turn_ends), dtype=torch.long)
        self._width = prompt_ids.shape[1]
        # A response that is nothing but its end shows what stands before a response and after it.
        end = self.turn_ends[:1].to(prompt_ids.device).expand(len(prompt_ids), -1)
        ended = torch.full((len(prompt_ids),), bool(len(turn_ends)), device=prompt_ids.device)
        nothing = torch.zeros(len(prompt_ids), 1, dtype=torch.long, device=prompt_ids.device)
        response = end if len(turn_ends) else nothing
        batch = ResponseBatch(prompt_ids, prompt_mask, response, ended[:, None])
        shown = written_rows(reading, batch, prompts, ended)
        heads = shown.batch.prompt_ids.shape[1]
        self._heads = shown.batch.prompt_ids, shown.batch.prompt_mask
        self._closing = shown.batch.response_ids, shown.attention_mask[:, heads:]

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores of the texts as the reward model reads them.

        Raises:
            DataError: a text with one more token is longer than the model reads.
            ModelError: the model is in training mode.
        """
        device = batch.text_ids.device
        heads, real = (tensor.to(device) for tensor in self._heads)
        ids = torch.cat([heads, batch.text_ids[:, self._width :]], dim=-1)
        mask = torch.cat([real, batch.text_mask[:, self._width :]], dim=-1)
        ends = torch.isin(batch.candidate_ids, self.turn_ends.to(device)) & batch.candidate_mask
        open_ones = batch.candidate_mask & ~ends
        # A text is scored where it has a candidate: one that ends it will do.
        alone = batch.active & ~open_ones.any(-1)
        asked = open_ones | (alone[:, None] & (ends.cumsum(-1) == 1) & ends)
        scores = self.scorer(CandidateBatch(ids, mask, batch.candidate_ids, asked))
        if not bool(ends.any()):
            return scores
        closed = self._closed(ids, mask, ends.any(-1), scores.prefix)
        return CandidateScores(torch.where(ends, closed[:, None], scores.candidates), scores.prefix)

    def _closed(
        self,
        ids: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
        wanted: Bool[Tensor, "batch"],
        prefix: Float[Tensor, "batch"],
    ) -> Float[Tensor, "batch"]:
        """Scores of the texts with what closes them; those of the texts where nothing does."""
        closing, read = (tensor.to(ids.device) for tensor in self._closing)
        # To the right, so that the last closing token of every row stands in the last column.
        order = read.long().argsort(dim=-1, stable=True)
        closing, read = closing.gather(-1, order), read.gather(-1, order)
        wanted = wanted & read[:, -1]
        if not bool(wanted.any()):
            return prefix
        scores = self.scorer(
            CandidateBatch(
                torch.cat([ids, closing[:, :-1]], dim=-1),
                torch.cat([mask, read[:, :-1]], dim=-1),
                closing[:, -1:],
                wanted[:, None],
            )
        )
        return torch.where(wanted, scores.candidates[:, 0], prefix)


class ResponseCandidates:
    """Each text with a candidate scored as a response of its own, by whatever judges responses.

    Slow, and right for every reward model: what judges in the end is what guides.

    Args:
        score: of responses, finished or not, and the numbers of their prompts.
        prompt_width: columns of the prompts in the ids.
    """

    vocab: int | None = None

    def __init__(
        self,
        score: Callable[[ResponseBatch, Int[Tensor, "batch"]], Float[Tensor, "batch"]],
        prompt_width: int,
    ) -> None:
        self.score = score
        self.prompt_width = prompt_width

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by a reading of every text from its start."""
        number = batch.candidate_ids.shape[1]
        wanted = torch.cat([batch.active[:, None], batch.candidate_mask], dim=-1)
        rows, columns = wanted.nonzero(as_tuple=True)
        # Column 0 is the text alone, column j + 1 the text with candidate j.
        added = torch.cat([batch.candidate_ids[:, :1], batch.candidate_ids], dim=-1)
        ids = torch.cat([batch.text_ids[rows], added[rows, columns][:, None]], dim=-1)
        mask = torch.cat([batch.text_mask[rows], (columns > 0)[:, None]], dim=-1)
        prompt = slice(0, self.prompt_width)
        response = slice(self.prompt_width, None)
        scores = torch.zeros(len(batch.text_ids), 1 + number, device=ids.device)
        if len(rows):
            responses = ResponseBatch(
                ids[:, prompt], mask[:, prompt], ids[:, response], mask[:, response]
            )
            scores[rows, columns] = self.score(responses, rows).float().to(scores.device)
        return CandidateScores(scores[:, 1:], scores[:, 0])
