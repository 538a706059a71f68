"""What a local reward model says about a policy's responses, in the policy's own tokens.

Where the reward model reads the policy's own token ids, it is given them as they are. Otherwise
the responses are decoded, rendered by the reward model's tokenizer and chat template, scored, and
what it says about its tokens is carried over to the policy's tokens of the same characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.credit.evidence import Need
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loading import context_length
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.policy_tokens import (
    decoded_responses,
    ended_scores,
    ending_tokens,
    projected_scores,
)
from tokencredit.scorers.prefix_texts import PrefixReading, with_own_prefixes
from tokencredit.scorers.trained_reading import scores_as_trained, trained_segment_ends
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_rendering import Template, encoded_prompts, reads_eos


@dataclass(frozen=True)
class LocalScorer:
    """A reward model of this process, which scores responses in the tokens of their writer.

    Attributes:
        model: a sequence-classification model.
        tokenizer: its tokenizer.
        policy_tokenizer: that of the ids in the batches.
        template: how to render for the reward model, as in `encoded_prompts`. With "auto", ids of
            a vocabulary that both share are scored as they are.
        attention_layer: whose attention is recorded where it is asked for; -1 is the last.
        micro_batch_size: responses per forward pass; None for all at once.
        prefixes: how prefixes are scored where the model reads other tokens than the policy:
            "own-text" for credit that is made of them, as of `prefix_reading`.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    policy_tokenizer: PreTrainedTokenizerBase
    template: Template = "auto"
    attention_layer: int = -1
    micro_batch_size: int | None = None
    prefixes: PrefixReading = "one-pass"

    @property
    def gives(self) -> frozenset[Need]:
        """What methods can be made from."""
        found: set[Need] = {"sequence_scores", "attention", "kept_tokens", "embeddings"}
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
    ) -> ResponseScores:
        """What the reward model says about responses, in the policy's own tokens.

        Args:
            batch: responses of the policy.
            attention: whether to record it.
            conversations: what was asked, for a reward model that renders it itself; None takes
                the text of the prompt's ids.
            attention_mask: the tokens that the reward model reads, closing ones included; given
                where the batch was encoded for this very model.

        Returns:
            The scores. The last counted prefix score of a response is its sequence score, also
            where the reward model reads closing tokens after it.

        Raises:
            DataError: a text is longer than the reward model can read, or has no prompt.
            ModelError: the reward model or its tokenizer lacks what is needed.
            NumericError: a score is NaN or infinite.
        """
        layer = self.attention_layer if attention else None
        real = self.read_tokens(batch, conversations, attention_mask)
        if real is None:
            scores = self._through_text(batch, conversations, layer)
        else:
            scores = own_scores(
                self.model,
                self.tokenizer,
                batch,
                attention_mask=real,
                attention_layer=layer,
                micro_batch_size=self.micro_batch_size,
            )
        return ended_scores(scores, batch.response_mask)

    def read_tokens(
        self,
        batch: ResponseBatch,
        conversations: Sequence[Prompt] | None = None,
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
    ) -> Bool[Tensor, "batch sequence"] | None:
        """The tokens of the batch that the reward model reads; None where it reads other tokens."""
        if attention_mask is not None:
            return attention_mask.bool()
        if self.template != "auto" or conversations is not None:
            return None
        if not shares_vocabulary(self.tokenizer, self.policy_tokenizer):
            return None
        return _readable(self.model, self.policy_tokenizer, batch)

    def _through_text(
        self, batch: ResponseBatch, conversations: Sequence[Prompt] | None, layer: int | None
    ) -> ResponseScores:
        """Scores in the policy's tokens, made from those in the reward model's."""
        decoded = decoded_responses(self.policy_tokenizer, batch)
        ended = ending_tokens(self.policy_tokenizer, batch).any(-1) & bool(reads_eos(self.model))
        prompts = [row.prompt for row in decoded] if conversations is None else conversations
        encoded = encoded_prompts(
            self.tokenizer,
            prompts,
            [row.response for row in decoded],
            template=self.template,
            append_eos=ended.tolist(),
            max_length=context_length(self.model, self.tokenizer),
            empty="keep",
            device=batch.prompt_ids.device,
        )
        scores = own_scores(
            self.model,
            self.tokenizer,
            encoded.batch,
            attention_mask=encoded.attention_mask,
            attention_layer=layer,
            micro_batch_size=self.micro_batch_size,
        )
        projected = projected_scores(
            scores,
            encoded.batch.response_mask,
            encoded.response_spans,
            decoded,
            batch.response_mask.shape[1],
        )
        if self.prefixes == "one-pass":
            return projected

        def beginnings(row: int, texts: Sequence[str]) -> EncodedResponses:
            asked = [prompts[row]] * len(texts)
            return encoded_prompts(
                self.tokenizer, asked, texts, template=self.template, empty="keep"
            )

        return with_own_prefixes(
            projected,
            scores,
            self.model,
            encoded,
            decoded,
            beginnings,
            micro_batch_size=self.micro_batch_size,
        )


def own_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    attention_mask: Tensor,
    attention_layer: int | None = None,
    micro_batch_size: int | None = None,
) -> ResponseScores:
    """What a reward model says of responses in its own tokens, read as it was trained.

    Args:
        model: a sequence-classification model.
        tokenizer: its tokenizer.
        batch: the responses.
        attention_mask: the tokens that it reads.
        attention_layer: whose attention to record; None for none.
        micro_batch_size: responses per forward pass; None for all at once.

    Raises:
        DataError, ModelError, NumericError: as `score_responses` and `trained_segment_ends`.
    """
    scores = score_responses(
        model,
        batch,
        attention_mask=attention_mask,
        attention_layer=attention_layer,
        micro_batch_size=micro_batch_size,
    )
    ends = trained_segment_ends(model, tokenizer)
    if ends is None:
        return scores
    at_positions = ended_scores(scores, batch.response_mask).prefix_scores
    read = scores_as_trained(scores, batch, ends, attention_mask=attention_mask)
    return replace(read, position_scores=at_positions)


def _readable(
    reward_model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: ResponseBatch
) -> Bool[Tensor, "batch sequence"]:
    """The tokens to read: no end of sequence if the reward model learnt without."""
    real = batch.attention_mask.bool()
    if reads_eos(reward_model) is not False:
        return real
    no_prompt = torch.zeros_like(batch.prompt_mask)
    return real & ~torch.cat([no_prompt, ending_tokens(tokenizer, batch)], dim=-1)
