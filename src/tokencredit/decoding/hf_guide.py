"""The rule of guided decoding inside `generate()`: a logits processor that asks a reward model."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor

from tokencredit.decoding.candidates.scores import (
    CandidateBatch,
    CandidateScorer,
    ScoreSpread,
    standardised_scores,
    updated_spread,
)
from tokencredit.decoding.rules import candidate_tokens, guided_logits
from tokencredit.errors import ConfigError, ModelError, ShapeError


class GuidedStep(NamedTuple):
    """What was known when a token was drawn.

    Attributes:
        candidate_ids: the tokens that were scored.
        candidate_mask: True on candidates that count.
        candidate_scores: of the text with each candidate, in nats, as the reward model gave them.
        prefix_scores: of the text before.
        logprobs: of the language model over the whole vocabulary, as the guide received it: after
            the processors before it, before temperature and top-k.
    """

    candidate_ids: Int[Tensor, "batch candidates"]
    candidate_mask: Bool[Tensor, "batch candidates"]
    candidate_scores: Float[Tensor, "batch candidates"]
    prefix_scores: Float[Tensor, "batch"]
    logprobs: Float[Tensor, "batch vocab"]


class RewardGuide(LogitsProcessor):  # type: ignore[misc]
    """Adds to each candidate's logit what the reward model says of the text that ends with it.

        z_v = log p(v | x, y_{<t}) + β (s(x, y_{<t} v) − s(x, y_{<t})),   v ∈ C_t

    Everything but the candidates is banned. The score of the text so far is subtracted: within one
    step it changes nothing, and summed over steps, as in beam search, the differences leave the
    score of the whole text instead of counting that of every prefix.

    `model.generate(..., logits_processor=[guide])` runs it before temperature, top-k and top-p:
    the temperature divides the sum, and `top_k`, 50 unless said otherwise, cuts the sum off. Give
    `top_k=0` where every token is a candidate. The same object serves any number of calls, batches
    with padding (see `attention_mask`), beams and assisted generation: scores depend on the text
    alone, and texts that do not continue those before cost a second reading from where they part.

    Args:
        scorer: as of `candidate_scorer`.
        guidance_beta: units of log-probability per unit of score; 0 leaves the language model.
        top_k: as the following, of `candidate_tokens`; 1 is greedy search.
        top_p: share of probability of the candidates.
        min_p: smallest probability of a candidate, relative to the largest.
        max_candidates: no more than this many.
        clip: smallest and largest score that tells.
        standardise: divide scores by their running standard deviation over candidates, which
            begins anew with every text that does not continue the one before.
        attention_mask: real tokens of the prompts, where some are padded. `guided_generate` knows
            them by itself.
        eos_token_id: ends a response, so that finished rows are not scored further; needs
            `attention_mask`. `guided_generate` knows by itself.

    Raises:
        ConfigError: an option is out of its range or lacks another.

    Source: Khanov et al. 2024, arXiv 2402.01694; other methods are settings, `GUIDANCE_METHODS`.
    """

    def __init__(
        self,
        scorer: CandidateScorer,
        *,
        guidance_beta: float,
        top_k: int = 10,
        top_p: float = 1.0,
        min_p: float = 0.0,
        max_candidates: int | None = None,
        clip: tuple[float, float] | None = None,
        standardise: bool = False,
        attention_mask: Tensor | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        if eos_token_id is not None and attention_mask is None:
            raise ConfigError(
                "eos_token_id was given without attention_mask; expected both: the width of the "
                "mask says where responses begin"
            )
        if clip is not None and (standardise or not clip[0] < clip[1]):
            raise ConfigError(
                f"clip is {clip} and standardise {standardise}; expected the smallest and the "
                "largest score that tells, in units of the reward model and so without standardise"
            )
        self.scorer = scorer
        self.guidance_beta = guidance_beta
        self.candidates = partial(
            candidate_tokens, top_k=top_k, top_p=top_p, min_p=min_p, max_candidates=max_candidates
        )
        self.clip = clip
        self.standardise = standardise
        self.attention_mask = attention_mask
        ends = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        self.eos_token_ids = None if ends is None else torch.tensor(list(ends))
        self.last_step: GuidedStep | None = None
        self._spread: ScoreSpread | None = None
        self._text: Tensor | None = None

    def __call__(
        self, input_ids: Int[Tensor, "batch time"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the next token with rewards added, as `generate()` calls it.

        Raises:
            ShapeError: `attention_mask` is not that of these prompts.
            NumericError: the score of a candidate is NaN or infinite.
            ModelError: a text holds a token that the reward model does not know.
            ConfigError: there are fewer tokens than `top_k`.
        """
        text_mask, active = self._mask_and_rows(input_ids)
        return self.guided_logits(input_ids, scores, text_mask, active)

    def guided_logits(
        self,
        text_ids: Int[Tensor, "batch time"],
        logits: Float[Tensor, "batch vocab"],
        text_mask: Bool[Tensor, "batch time"],
        active: Bool[Tensor, "batch"],
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the next token with rewards added, for texts whose real tokens are known.

        Args:
            text_ids: padded on the left.
            logits: of the language model.
            text_mask: True on real tokens.
            active: rows that are not finished; the others keep their logits.
        """
        text_ids, known = self._known_tokens(text_ids, logits, text_mask, active)
        ids, mask = self.candidates(known)
        mask = mask & active[:, None]
        scored = self.scorer(CandidateBatch(text_ids, text_mask, ids, mask))
        rewards, prefix = scored.candidates.to(logits.device), scored.prefix.to(logits.device)
        logprobs = logits.float().log_softmax(-1)
        self.last_step = GuidedStep(ids, mask, rewards, prefix, logprobs)
        rewards = self._differences(text_ids, rewards, prefix, mask)
        guided = guided_logits(known, ids, mask, rewards, guidance_beta=self.guidance_beta)
        return torch.where(active[:, None], guided, logits.float())

    def _differences(
        self, text_ids: Tensor, rewards: Tensor, prefix: Tensor, mask: Tensor
    ) -> Float[Tensor, "batch candidates"]:
        """What each candidate adds to the score of the text, clipped or in units of the spread."""
        if self.clip is not None:
            rewards, prefix = rewards.clamp(*self.clip), prefix.clamp(*self.clip)
        differences = rewards - prefix[:, None]
        if self.standardise:
            width = text_ids.shape[1] - 1
            goes_on = self._text is not None and self._text.shape == (len(text_ids), width)
            if not goes_on or not torch.equal(self._text, text_ids[:, :width]):  # type: ignore[arg-type]
                self._spread = None
            self._spread = updated_spread(differences, mask, spread=self._spread)
            self._text = text_ids
            differences = standardised_scores(differences, self._spread)
        return differences

    def _known_tokens(
        self, text_ids: Tensor, logits: Tensor, text_mask: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Texts and logits without tokens that the reward model has no embedding for."""
        limit = self.scorer.vocab
        if limit is None:
            return text_ids, logits.float()
        unknown = text_ids >= limit
        told = text_ids[unknown & text_mask & active[:, None]].tolist()
        if told:
            raise ModelError(
                f"the texts hold the ids {sorted(set(told))[:5]} and the reward model knows those "
                f"below {limit}; expected one vocabulary: see `shared_vocabulary`, or name "
                "`attention_mask` and `eos_token_id` if these ids pad finished responses"
            )
        banned = torch.arange(logits.shape[-1], device=logits.device) >= limit
        return text_ids.masked_fill(unknown, 0), logits.float().masked_fill(banned, -torch.inf)

    def _mask_and_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Real tokens, and rows in which no response has ended."""
        rows, width = ids.shape
        active = torch.ones(rows, dtype=torch.bool, device=ids.device)
        if self.attention_mask is None:
            return torch.ones_like(ids, dtype=torch.bool), active
        mask = self.attention_mask.to(ids.device).bool()
        if rows % len(mask) or mask.shape[1] > width:
            raise ShapeError(
                f"attention_mask has shape {tuple(mask.shape)} and the texts {tuple(ids.shape)}; "
                "expected the mask of their prompts: make a guide for each batch, with one scorer"
            )
        mask = mask.repeat_interleave(rows // len(mask), dim=0)
        if self.eos_token_ids is not None:
            ends = torch.isin(ids[:, mask.shape[1] :], self.eos_token_ids.to(ids.device))
            active = ~ends.any(-1)
        return pad(mask, (0, width - mask.shape[1]), value=True), active
