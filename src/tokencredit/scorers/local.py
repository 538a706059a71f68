"""What a local reward model says about a policy's responses, in the policy's own tokens.

Where the reward model reads the policy's own token ids, it is given them as they are. Otherwise
the responses are decoded, rendered by the reward model's tokenizer and chat template, scored, and
what it says about its tokens is carried over to the policy's tokens of the same characters.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.models.hf_loading import context_length
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.policy_tokens import (
    ScoreTransform,
    decoded_responses,
    ended_scores,
    ending_tokens,
    projected_scores,
    transformed_scores,
)
from tokencredit.text.hf_rendering import Template, encoded_prompts, reads_eos


def policy_scores(
    reward_model: nn.Module,
    rm_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    attention_layer: int | None = None,
    micro_batch_size: int | None = None,
    template: Template = "auto",
    conversations: Sequence[Prompt] | None = None,
    score_transform: ScoreTransform | None = None,
) -> ResponseScores:
    """What a reward model says about responses of a policy, in the policy's own tokens.

    Args:
        reward_model: a sequence-classification model.
        rm_tokenizer: its tokenizer.
        policy_tokenizer: that of the ids in `batch`.
        batch: generated responses.
        attention_layer: of which layer to record the attention; None records none.
        micro_batch_size: responses per forward pass; None for all at once.
        template: how to render for the reward model, as in `encoded_prompts`. With "auto", ids of
            a vocabulary that both share are scored as they are.
        conversations: what was asked, for a reward model that renders it itself; None takes the
            text of the prompt's ids.
        score_transform: applied to the sequence scores first and then to the prefix scores, number
            by number (to normalise or clip), before any of them is spread.

    Returns:
        The scores. The last counted prefix score of a response is its sequence score, also where
        the reward model reads closing tokens behind it.

    Raises:
        DataError: a text is longer than the reward model can read, or has no prompt.
        ModelError: the reward model or its tokenizer lacks what is needed.
        NumericError: a score is NaN or infinite.
    """
    as_they_are = template == "auto" and conversations is None
    if as_they_are and shares_vocabulary(rm_tokenizer, policy_tokenizer):
        scores = score_responses(
            reward_model,
            batch,
            attention_mask=_readable(reward_model, policy_tokenizer, batch),
            attention_layer=attention_layer,
            micro_batch_size=micro_batch_size,
        )
    else:
        scores = _scores_through_text(
            reward_model,
            rm_tokenizer,
            policy_tokenizer,
            batch,
            template=template,
            conversations=conversations,
            attention_layer=attention_layer,
            micro_batch_size=micro_batch_size,
        )
    return ended_scores(transformed_scores(scores, score_transform), batch.response_mask)


def _readable(
    reward_model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: ResponseBatch
) -> Bool[Tensor, "batch sequence"]:
    """The tokens to read: no end of sequence if the reward model learnt without."""
    real = batch.attention_mask.bool()
    if reads_eos(reward_model) is not False:
        return real
    no_prompt = torch.zeros_like(batch.prompt_mask)
    return real & ~torch.cat([no_prompt, ending_tokens(tokenizer, batch)], dim=-1)


def _scores_through_text(
    reward_model: nn.Module,
    rm_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    template: Template,
    conversations: Sequence[Prompt] | None,
    attention_layer: int | None,
    micro_batch_size: int | None,
) -> ResponseScores:
    """Scores in the policy's tokens, made from those in the reward model's."""
    decoded = decoded_responses(policy_tokenizer, batch)
    ended = ending_tokens(policy_tokenizer, batch).any(-1) & bool(reads_eos(reward_model))
    encoded = encoded_prompts(
        rm_tokenizer,
        [row.prompt for row in decoded] if conversations is None else conversations,
        [row.response for row in decoded],
        template=template,
        append_eos=ended.tolist(),
        max_length=context_length(reward_model, rm_tokenizer),
        empty="keep",
        device=batch.prompt_ids.device,
    )
    scores = score_responses(
        reward_model,
        encoded.batch,
        attention_mask=encoded.attention_mask,
        attention_layer=attention_layer,
        micro_batch_size=micro_batch_size,
    )
    return projected_scores(
        scores,
        encoded.batch.response_mask,
        encoded.response_spans,
        decoded,
        batch.response_mask.shape[1],
    )
