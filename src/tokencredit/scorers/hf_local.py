"""What a local reward model says about a policy's responses, in the policy's own tokens.

Prompts and closings are always those that the reward model reads. Where it shares the policy's
vocabulary, the responses between them keep the very ids that were drawn. Otherwise they are decoded
and tokenized anew, and what the model says about its tokens is carried over to the policy's tokens
of the same characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.credit.evidence import Need
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loading import context_length
from tokencredit.models.hf_objectives import joined_scores
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.hf_policy_tokens import (
    attended_tokens,
    ended_scores,
    projected_scores,
)
from tokencredit.scorers.hf_prefix_texts import PrefixReading, with_own_prefixes
from tokencredit.scorers.hf_trained_reading import scores_as_trained, trained_segment_ends
from tokencredit.scorers.reading_rows import rows_as_written, rows_of_text, scores_of_columns
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import WrittenRows


@dataclass(frozen=True)
class LocalScorer:
    """A reward model of this process, which scores responses in the tokens of their writer.

    Attributes:
        model: a sequence-classification model.
        reading: how it reads texts.
        writer: how the model reads that wrote the responses; their ids are of its tokenizer.
        attention_layer: whose attention is recorded where it is asked for; -1 is the last.
        micro_batch_size: responses per forward pass at most; None sets no limit of its own.
        prefixes: how prefixes are scored where the model reads other tokens than the policy:
            "own-text" for credit that is made of them, as of `prefix_reading`.
    """

    model: nn.Module
    reading: Reading
    writer: Reading
    attention_layer: int = -1
    micro_batch_size: int | None = None
    prefixes: PrefixReading = "one-pass"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the reward model."""
        return self.reading.tokenizer

    @property
    def is_gated(self) -> bool:
        """Whether the objectives of the model are weighed by what it reads in a prompt."""
        joined = joined_scores(self.model)
        return joined is not None and joined.gate is not None

    @property
    def gives(self) -> frozenset[Need]:
        """What methods can be made from."""
        found: set[Need] = {"sequence_scores", "attention", "kept_tokens", "embeddings"}
        if self.is_gated:
            found -= {"embeddings"}  # gradients of whole texts, whose prompts are not known
        return frozenset(
            found | ({"prefix_scores", "position_scores"} if is_causal(self.model) else set())
        )

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,
        conversations: Sequence[Prompt] | None = None,
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> ResponseScores:
        """What the reward model says about responses, in their writer's own tokens.

        Args:
            batch: responses of the policy.
            attention: whether to record it.
            conversations: what was asked, texts or conversations, which the reward model reads in
                its own way; None takes the prompt's ids, or their text.
            attention_mask: the tokens that the reward model reads, closing ones included; given
                where the batch was encoded for this very model.
            ended: True for responses that have ended; None for those whose last token says so.

        Returns:
            The scores. The last counted prefix score of a response is its sequence score, also
            where the reward model reads closing tokens after it.

        Raises:
            DataError: a text is longer than the reward model can read, or has no prompt.
            ModelError: the reward model or its tokenizer lacks what is needed.
            NumericError: a score is NaN or infinite.
        """
        layer = self.attention_layer if attention else None
        rows = self.own_rows(batch, conversations, attention_mask, ended)
        if rows is None:
            scores = self._through_text(batch, conversations, layer, ended)
        else:
            scores = self._scored(rows.batch, rows.attention_mask, layer)
            read = attended_tokens(batch)
            scores = scores.each(lambda one: scores_of_columns(one, read))
        return scores.each(lambda one: ended_scores(one, batch.response_mask))

    def own_rows(
        self,
        batch: ResponseBatch,
        conversations: Sequence[Prompt] | None = None,
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> WrittenRows | None:
        """The responses with the ids that were drawn, as this model reads them.

        None where it has other tokens, or reads prompt and response as a pair.
        """
        return rows_as_written(
            self.reading, self.writer, batch, conversations, attention_mask, ended=ended
        )

    def _through_text(
        self,
        batch: ResponseBatch,
        conversations: Sequence[Prompt] | None,
        layer: int | None,
        ended: Bool[Tensor, "batch"] | None,
    ) -> ResponseScores:
        """Scores in the writer's tokens, made from those in the reward model's."""
        rows = rows_of_text(
            self.reading,
            self.writer,
            batch,
            conversations,
            max_length=context_length(self.model, self.tokenizer),
            ended=ended,
        )
        encoded = rows.encoded
        scores = self._scored(encoded.batch, encoded.attention_mask, layer)
        projected = scores.each(
            lambda one: projected_scores(
                one,
                encoded.batch.response_mask,
                encoded.response_spans,
                rows.decoded,
                batch.response_mask.shape[1],
            )
        )
        if self.prefixes == "one-pass":
            return projected
        return with_own_prefixes(
            projected,
            scores,
            self.model,
            encoded,
            rows.decoded,
            rows.beginnings,
            micro_batch_size=self.micro_batch_size,
        )

    def _scored(
        self, batch: ResponseBatch, attention_mask: Tensor, layer: int | None
    ) -> ResponseScores:
        return own_scores(
            self.model,
            self.reading,
            batch,
            attention_mask=attention_mask,
            attention_layer=layer,
            micro_batch_size=self.micro_batch_size,
        )


def own_scores(
    model: nn.Module,
    reading: Reading,
    batch: ResponseBatch,
    *,
    attention_mask: Tensor,
    attention_layer: int | None = None,
    micro_batch_size: int | None = None,
) -> ResponseScores:
    """What a reward model says of responses in its own tokens, read as it was trained.

    Args:
        model: a sequence-classification model.
        reading: how it reads.
        batch: the responses.
        attention_mask: the tokens that it reads.
        attention_layer: whose attention to record; None for none.
        micro_batch_size: responses per forward pass at most; None sets no limit of its own.

    Raises:
        DataError, ModelError, NumericError: as `score_responses` and `trained_segment_ends`.
    """
    scores = score_responses(
        model,
        batch,
        attention_mask=attention_mask,
        attention_layer=attention_layer,
        micro_batch_size=micro_batch_size,
        two_segments=reading.two_segments,
    )
    ends = trained_segment_ends(model, reading.tokenizer)
    if ends is None:
        return scores

    def read(one: ResponseScores) -> ResponseScores:
        at_positions = ended_scores(one, batch.response_mask).prefix_scores
        as_trained = scores_as_trained(one, batch, ends, attention_mask=attention_mask)
        return replace(as_trained, position_scores=at_positions)

    return scores.each(read)
