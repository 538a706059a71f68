"""Token scores of a policy's responses by the name of a credit method."""

import difflib
from collections.abc import Sequence
from typing import Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores, TokenScorer
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import attention_credit, terminal_credit, uniform_credit
from tokencredit.errors import ConfigError, ModelError
from tokencredit.scorers.local import policy_scores
from tokencredit.scorers.policy_tokens import ScoreTransform, ended_scores
from tokencredit.scorers.served import served_reward_model, served_scores
from tokencredit.server.client import RewardServer
from tokencredit.text.hf_rendering import Template


def served_token_scorer(
    server: RewardServer,
    policy_tokenizer: PreTrainedTokenizerBase,
    *,
    credit: str = "prefix-difference",
    credit_beta: float = 0.8,
) -> TokenScorer:
    """Token scores of a policy's responses from a served reward model, as a callable.

    Args:
        server: where it is.
        policy_tokenizer: of the responses.
        credit: one of `CREDIT_NAMES`.
        credit_beta: the share of a score that "attention" spreads.

    Returns:
        What `score_for_policy` gives for the same model in this process. It raises as
        `served_scores` does.

    Raises:
        ServerError, ConfigError: as `served_reward_model`, or there is no such credit method.
    """
    require_credit_name(credit)
    model = served_reward_model(server, policy_tokenizer, credit=credit)

    def token_scorer(batch: ResponseBatch) -> Float[Tensor, "batch time"]:
        scores = served_scores(model, batch, attention=credit == "attention")
        return credited(credit, scores, batch.response_mask, credit_beta=credit_beta)

    return token_scorer


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
