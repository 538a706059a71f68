"""From a reward model and responses to a score on every token: the piece that recipes share.

Where the reward model reads the policy's own token ids, it is given them as they are. Otherwise
the responses are decoded, rendered by the reward model's tokenizer and chat template, scored, and
what it says about its tokens is carried over to the policy's tokens of the same characters.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch
from tokencredit.credit.prefix_difference import prefix_difference_credit
from tokencredit.credit.redistribution import attention_credit, uniform_credit
from tokencredit.credit.terminal import terminal_credit
from tokencredit.errors import ConfigError, ModelError
from tokencredit.hf_loading import context_length
from tokencredit.preference.pairs import Prompt
from tokencredit.recipes.policy_tokens import (
    ScoreTransform,
    decoded_responses,
    ended_scores,
    ending_tokens,
    projected_scores,
    transformed_scores,
)
from tokencredit.recipes.reward_texts import Template, encoded_prompts, reads_eos
from tokencredit.reward_model.hf_backbone import ResponseScores, score_responses

CreditName = Literal["terminal", "uniform", "attention", "prefix-difference"]
CREDIT_NAMES: tuple[str, ...] = get_args(CreditName)


def credited(
    name: str,
    scores: ResponseScores,
    response_mask: Bool[Tensor, "batch time"],
    *,
    credit_beta: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Token scores by the credit method of this name.

    Args:
        name: one of `CREDIT_NAMES`.
        scores: what the reward model said about the same tokens.
        response_mask: True on response tokens that count.
        credit_beta: the share of a score that "attention" spreads; others ignore it.

    Returns:
        Token scores in nats; each row sums to its sequence score, for "prefix-difference" to the
        sequence score less the score of the prompt.

    Raises:
        ConfigError: there is no such method, or the scores were made without what it needs.
        ModelError: "prefix-difference" of a model that scores no prefixes.
    """
    require_credit_name(name)
    match name:
        case "terminal":
            return terminal_credit(scores.sequence_scores, response_mask)
        case "uniform":
            return uniform_credit(scores.sequence_scores, response_mask)
        case "attention":
            if scores.attention is None:
                raise ConfigError(
                    "credit 'attention' of scores without attention; expected scores made with an "
                    "attention_layer"
                )
            return attention_credit(
                scores.sequence_scores, scores.attention, response_mask, credit_beta=credit_beta
            )
    ended = ended_scores(scores, response_mask)
    return prefix_difference_credit(required_prefix_scores(name, ended), response_mask)


def required_prefix_scores(
    credit: str, scores: ResponseScores
) -> Float[Tensor, "batch time_plus_1"]:
    """The prefix scores, or the error that says why there are none.

    Raises:
        ModelError: the reward model scores no prefixes.
    """
    if scores.prefix_scores is None:
        raise ModelError(
            f"credit {credit!r} of a reward model that reads in both directions; expected a "
            "causal one, which scores prefixes: choose credit 'attention'"
        )
    return scores.prefix_scores


def require_credit_name(name: str) -> None:
    """Raise ConfigError, with the nearest name, if no credit method has this one."""
    if name not in CREDIT_NAMES:
        near = difflib.get_close_matches(name, CREDIT_NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"credit is {name!r}; expected one of {', '.join(map(repr, CREDIT_NAMES))}{hint}"
        )


def score_for_policy(
    reward_model: nn.Module,
    rm_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch: ResponseBatch,
    *,
    credit: str = "terminal",
    credit_beta: float = 1.0,
    attention_layer: int = -1,
    micro_batch_size: int | None = None,
    template: Template = "auto",
    conversations: Sequence[Prompt] | None = None,
    score_transform: ScoreTransform | None = None,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch"]]:
    """Score responses of a policy with a reward model that may have another tokenizer.

    Args:
        reward_model: a sequence-classification model.
        rm_tokenizer: its tokenizer.
        policy_tokenizer: that of the ids in `batch`.
        batch: generated responses.
        credit: one of `CREDIT_NAMES`.
        credit_beta: the share of a score that "attention" spreads.
        attention_layer: layer that "attention" reads; -1 is the last.
        micro_batch_size: responses per forward pass; None for all at once.
        template: as in `policy_scores`.
        conversations: as in `policy_scores`.
        score_transform: as in `policy_scores`.

    Returns:
        Token scores, and transformed sequence scores. Each row of the first sums to its entry of
        the second, for "prefix-difference" less the transformed score of the prompt.

    Raises:
        ConfigError: there is no such credit method.
        DataError: a text is longer than the reward model can read, or has no prompt.
        ModelError: the reward model or its tokenizer lacks what is needed.
        NumericError: a score is NaN or infinite.
    """
    require_credit_name(credit)
    scores = policy_scores(
        reward_model,
        rm_tokenizer,
        policy_tokenizer,
        batch,
        attention_layer=attention_layer if credit == "attention" else None,
        micro_batch_size=micro_batch_size,
        template=template,
        conversations=conversations,
        score_transform=score_transform,
    )
    token_scores = credited(credit, scores, batch.response_mask, credit_beta=credit_beta)
    return token_scores, scores.sequence_scores


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


@lru_cache(maxsize=8)
def shares_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether every token has the same id in both."""
    return first is second or first.get_vocab() == second.get_vocab()


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that share their vocabulary, and for no others."""
    tokens = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


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
