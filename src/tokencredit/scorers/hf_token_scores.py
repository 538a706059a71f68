"""Token scores of responses by the name of a credit method, whoever scores the responses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores, RewardScorer, TokenScorer
from tokencredit.credit.evidence import Evidence
from tokencredit.credit.methods import CreditMethod, credit_method, token_credit
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.credit.settings import CreditSettings
from tokencredit.masking import last_true_index
from tokencredit.reward_model.hf_rewriter import rewriter_logprobs
from tokencredit.scorers.evidence import AskPolicy, Responses, gathered_evidence, response_scores
from tokencredit.scorers.hf_credit_models import CreditModels, loaded_credit_models
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_policy_tokens import decoded_responses, projected_rows
from tokencredit.scorers.hf_prefix_texts import prefix_reading
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.scorers.reading_rows import with_end_token
from tokencredit.scorers.served import served_reward_model
from tokencredit.server.client import RewardServer
from tokencredit.shaping import blended_scores
from tokencredit.text.hf_known_readings import reading_of, written_by
from tokencredit.text.hf_reading import Reading
from tokencredit.text.pooling import scores_at_segment_ends
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@dataclass(frozen=True)
class CreditedScorer:
    """A scorer of responses with the credit that is made from it: a `TokenScorer`.

    Attributes:
        scorer: of responses in the policy's tokens.
        writer: how the policy reads.
        credit: the method and its options.
        models: that the method needs besides the scorer.
        segments: how responses are cut, for methods that need it or where `use` says so.
        micro_batch_size: rows per forward pass of the other models.
    """

    scorer: RewardScorer
    writer: Reading
    credit: CreditSettings
    models: CreditModels = field(default_factory=CreditModels)
    segments: SegmentSettings = field(default_factory=SegmentSettings)
    micro_batch_size: int | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policy."""
        return self.writer.tokenizer

    def __call__(
        self, batch: ResponseBatch, conversations: Sequence[Prompt] | None = None
    ) -> Float[Tensor, "batch time"]:
        """Token scores of responses.

        Args:
            batch: in the policy's tokens.
            conversations: what was asked, for a reward model that renders it itself.
        """
        ids = response_segments(self.segments, self.tokenizer, batch)
        return self.paid(Responses(batch, conversations, segment_ids=ids))

    def paid(
        self,
        responses: Responses,
        *,
        scores: ResponseScores | None = None,
        ask_policy: AskPolicy | None = None,
        unfinished: Bool[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Token scores by the credit method, with the share of the end and segments paid at theirs.

        Args:
            responses: with segment ids where the settings cut segments.
            scores: what the scorer said of them; None asks it where the method needs it.
            ask_policy: of the policy that wrote the responses, where there is one.
            unfinished: True for responses that would have gone on. Their tokens get what they have
                earned so far, and nothing of a score that is only due at the end.

        Raises:
            ConfigError, DataError, ModelError, NumericError: as `gathered_evidence`.
        """
        settings, mask = self.credit, responses.batch.response_mask
        method = credit_method(settings.method)
        if "rewriter" in method.needs:
            token_scores = self._rewritten(responses)
        else:
            evidence = gathered_evidence(
                settings,
                self.scorer,
                responses,
                models=self.models,
                scores=scores,
                ask_policy=ask_policy,
                micro_batch_size=self.micro_batch_size,
            )
            token_scores = token_credit(evidence, settings)
        if unfinished is not None:
            due = due_at_the_end(method, mask)
            token_scores = token_scores.masked_fill(due & unfinished[:, None], 0.0)
        if responses.segment_ids is not None and self._pays_at_end:
            token_scores = scores_at_segment_ends(token_scores, responses.segment_ids)
        if settings.terminal_share:
            score = (scores or response_scores(self.scorer, responses)).sequence_scores
            if unfinished is not None:
                score = score.masked_fill(unfinished, 0.0)
            at_the_end = terminal_credit(score, mask)
            token_scores = blended_scores(
                token_scores, at_the_end, share=1 - settings.terminal_share
            )
        return token_scores

    @property
    def _pays_at_end(self) -> bool:
        return self.segments.use == "pay-at-end"

    def _rewritten(self, responses: Responses) -> Float[Tensor, "batch time"]:
        """Credit in the tokens of a rewriter, which reads text, carried over to these tokens."""
        batch, models = responses.batch, self.models
        decoded = decoded_responses(self.tokenizer, batch)
        asked = responses.conversations
        ended = with_end_token(self.writer, batch) if responses.ended is None else responses.ended
        found = rewriter_logprobs(
            models.model,
            reading_of(models.model, models.tokenizer),
            [row.prompt for row in decoded] if asked is None else asked,
            [row.response for row in decoded],
            ended=ended.tolist(),
            micro_batch_size=self.micro_batch_size,
        )
        evidence = Evidence(
            found.encoded.batch.response_mask,
            rewriter_logprobs=found.logprobs,
            likeliest_logprobs=found.likeliest_logprobs,
        )
        scores = token_credit(evidence, self.credit)
        spans = [row.spans for row in decoded]
        time = batch.response_mask.shape[1]
        return projected_rows(scores, found.encoded.response_spans, spans, time, split="last").to(
            batch.response_mask.device
        )


def due_at_the_end(
    method: CreditMethod, response_mask: Bool[Tensor, "batch time"]
) -> Bool[Tensor, "batch time"]:
    """The tokens whose score is due only when a response has ended.

    All tokens, where the method hands the score of the whole text out over them; the last one,
    where it pays that score there; none, where every token is paid for the text up to itself.

    Args:
        method: of credit.
        response_mask: True on response tokens.

    >>> mask = torch.tensor([[True, True, False]])
    >>> due_at_the_end(credit_method("attention"), mask)
    tensor([[ True,  True, False]])
    >>> due_at_the_end(credit_method("terminal"), mask)
    tensor([[False,  True, False]])
    >>> due_at_the_end(credit_method("prefix-difference"), mask)
    tensor([[False, False, False]])
    """
    if not method.causal and "segments" not in method.needs:
        return response_mask
    if "sequence_scores" not in method.needs:
        return torch.zeros_like(response_mask)
    last = last_true_index(response_mask)[:, None]
    return torch.arange(response_mask.shape[1], device=last.device) == last


def score_for_policy(
    reward_model: nn.Module,
    rm_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    credit: CreditSettings | str = "prefix-difference",
    segments: SegmentSettings | None = None,
    models: CreditModels | None = None,
    micro_batch_size: int | None = None,
    reading: ReadingSettings | None = None,
    conversations: Sequence[Prompt] | None = None,
    policy: Any = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch"]]:
    """Score responses of a policy with a reward model that may have another tokenizer.

    Args:
        reward_model: a sequence-classification model.
        rm_tokenizer: its tokenizer.
        policy_tokenizer: that of the ids in `batch`.
        batch: generated responses.
        credit: a credit method by its name, or with its options.
        segments: how responses are cut, for methods that need it.
        models: that the method needs besides the reward model.
        micro_batch_size: responses per forward pass at most; None sets no limit of its own.
        reading: how the reward model reads texts; None leaves that to the model.
        conversations: what was asked, for a reward model that renders it itself.
        policy: that wrote the responses, whose files name what ends them too: a model, its folder
            or Hub id; None asks its tokenizer alone.

    Returns:
        Token scores, and sequence scores. What rows of the first sum to stands with each method.

    Raises:
        ConfigError: there is no such credit method.
        DataError: a text is longer than the reward model can read, or has no prompt.
        ModelError: the reward model or its tokenizer lacks what is needed.
        NumericError: a score is NaN or infinite.
    """
    settings = CreditSettings(credit) if isinstance(credit, str) else credit
    writer = written_by(policy_tokenizer, policy)
    read = reading_of(reward_model, rm_tokenizer, reading)
    scorer = LocalScorer(
        reward_model,
        read,
        writer,
        settings.layer,
        micro_batch_size,
        prefix_reading(settings),
    )
    credited = CreditedScorer(
        scorer,
        writer,
        settings,
        models or CreditModels(),
        segments or SegmentSettings(),
        micro_batch_size,
    )
    ids = response_segments(credited.segments, policy_tokenizer, batch)
    responses = Responses(batch, conversations, segment_ids=ids)
    attention = "attention" in credit_method(settings.method).needs
    scores = response_scores(scorer, responses, attention=attention)
    return credited.paid(responses, scores=scores), scores.sequence_scores


def served_token_scorer(
    server: RewardServer,
    policy_tokenizer: PreTrainedTokenizerBase,
    *,
    credit: CreditSettings | str = "prefix-difference",
    segments: SegmentSettings | None = None,
    models: CreditModels | None = None,
    policy: Any = None,
) -> TokenScorer:
    """Token scores of a policy's responses from a served reward model, as a callable.

    Args:
        server: where it is.
        policy_tokenizer: of the responses.
        credit: a credit method by its name, or with its options.
        segments: how responses are cut, for methods that need it.
        models: that the method needs besides the reward model; None loads what the settings name.
        policy: as in `score_for_policy`.

    Returns:
        What `score_for_policy` gives for the same model in this process.

    Raises:
        ServerError, ConfigError: as `served_reward_model`, or there is no such credit method.
    """
    settings = CreditSettings(credit) if isinstance(credit, str) else credit
    writer = written_by(policy_tokenizer, policy)
    scorer = served_reward_model(server, writer, credit=settings)
    found = models or loaded_credit_models(settings, policy_tokenizer)
    return CreditedScorer(scorer, writer, settings, found, segments or SegmentSettings())
