"""Losses of reward models that score every next token at once, in the logits of a language model.

Logits in the place of response token t speak about the text before it, followed by any token.
A loss needs one or two numbers of them: what is said of the token that stands there, and the
largest or mean of what is said of all. `token_values`, `best_values` and `expected_values` take
them out of a chunk of logits, so that logits of a whole batch are never needed at the same time.

The other losses of such models are those of `pairs` on the same numbers: `prefix_regression_loss`
on the values of the tokens that were taken is CD-FUDGE.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.masking import left_packed, masked_mean, masked_row_mean, masked_sum
from tokencredit.reward_model.losses.pairs import bradley_terry_loss, held_prefix_scores
from tokencredit.reward_model.losses.targets import prefix_squared_error
from tokencredit.reward_model.losses.values import bootstrapped_targets


def token_values(
    logits: Float[Tensor, "*batch vocab"], token_ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The value that the logits give to each response token, in float32.

        V(x, y_{≤t}) = z_{y_t}(x, y_{<t})

    Args:
        logits: in the place of each token.
        token_ids: the tokens.

    Source: Rashid et al. 2025, arXiv 2502.04517 (FaRMA).

    >>> token_values(torch.tensor([[0.5, 2.0]]), torch.tensor([1]))
    tensor([2.])
    """
    return logits.gather(-1, token_ids[..., None])[..., 0].float()


def best_values(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """The largest value of any token in the place of each response token, in float32.

        max_v V(x, y_{<t} v)

    Args:
        logits: in the place of each token. The gradient goes to the first of the largest.

    >>> best_values(torch.tensor([[0.5, 2.0]]))
    tensor([2.])
    """
    return logits.max(-1).values.float()


def expected_values(
    logits: Float[Tensor, "*batch vocab"], policy_logits: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """The mean value of the policy's next token in the place of each response token, in float32.

        Σ_v p(v | x, y_{<t}) · V(x, y_{<t} v)

    Args:
        logits: of the value model, in the place of each token.
        policy_logits: of the policy, in the same places; minus infinity bans a token.

    Source: Mudgal et al. 2023, arXiv 2310.17022, the target called CD-Q.

    >>> expected_values(torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    probabilities = policy_logits.float().softmax(-1)
    return masked_sum(probabilities * logits.float(), probabilities > 0)


def final_value_loss(
    chosen_values: Float[Tensor, "batch chosen_time"],
    rejected_values: Float[Tensor, "batch rejected_time"],
    chosen_mask: Bool[Tensor, "batch chosen_time"],
    rejected_mask: Bool[Tensor, "batch rejected_time"],
    *,
    margin: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Bradley-Terry on the values of whole responses, read at their last tokens.

        −log σ(V(x, y_w) − V(x, y_l) − m)

    Args:
        chosen_values: `token_values` of the preferred responses.
        rejected_values: of the others.
        chosen_mask: True on tokens of the preferred responses.
        rejected_mask: True on tokens of the others. A row without tokens has the value 0.
        margin: by how much the preferred ones should win, in nats; None for 0.

    Returns:
        Nats per pair, in float32; `bradley_terry_loss` of the last values.

    Source: Rashid et al. 2025, arXiv 2502.04517 (FaRMA), the first of two losses that take turns.
    Their code reads the last column of the batch, which is padding in every row but the longest;
    here it is the last token that counts.

    >>> values, mask = torch.tensor([[2.0, 1.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> final_value_loss(values, values, mask, mask)
    tensor(0.6931)
    """
    chosen = held_prefix_scores(chosen_values.float(), chosen_mask)[:, -1]
    rejected = held_prefix_scores(rejected_values.float(), rejected_mask)[:, -1]
    return bradley_terry_loss(chosen, rejected, margin=margin)


def maximum_constraint_loss(
    values: Float[Tensor, "batch time"],
    best: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    first_token: int = 11,
    target_gradient: Literal["flows", "stopped"] = "flows",
) -> Float[Tensor, ""]:
    """Squared difference between the value of a prefix and that of its best continuation.

        (V(x, y_{≤i}) − max_v V(x, y_{≤i} v))²,   i = i_0, ..., n − 1

    A prefix is then worth what can be made of it. The last token is not followed by any, so the
    value of a whole response is bound to the preferences alone.

    Args:
        values: `token_values` of preferred responses.
        best: `best_values` in the same places.
        mask: True on response tokens; others are skipped as if they were not there.
        first_token: number of the token with which the first of these prefixes ends, counted from
            1.
        target_gradient: whether the gradient `flows` through both sides, as published, or is
            `stopped` at the best continuation, so that prefixes move towards it.

    Returns:
        Squared nats per prefix, in float32; 0 where no response has `first_token` and one more.

    Raises:
        ConfigError: `first_token` is less than 1.

    Source: Rashid et al. 2025, arXiv 2502.04517 (FaRMA), the maximum constraint. Their code draws
    8,000 prefixes for each turn and reads them in the last column, see `final_value_loss`; here all
    prefixes of a response come from one pass. Their responses have no end of sequence, and their
    last prefix is the whole of it; so it is here where responses end with one.

    >>> mask = torch.tensor([[True, True, True]])
    >>> best = torch.tensor([[9.0, 3.0, 4.0]])
    >>> maximum_constraint_loss(torch.tensor([[1.0, 3.0, 0.0]]), best, mask, first_token=1)
    tensor(2.5000)
    """
    if first_token < 1:
        raise ConfigError(f"first_token is {first_token}; expected 1, the first token, or more")
    packed, counts = left_packed(values.float(), mask)
    targets, _ = left_packed(best.float(), mask)
    if target_gradient == "stopped":
        targets = targets.detach()
    tokens_before = torch.arange(counts.shape[-1], device=mask.device)
    errors = packed[:, :-1] - targets[:, 1:]
    return masked_mean(errors.square(), (counts & (tokens_before >= first_token))[:, 1:])


def autoregressive_reward_loss(
    chosen_logprobs: Float[Tensor, "batch chosen_time"],
    rejected_logprobs: Float[Tensor, "batch rejected_time"],
    chosen_mask: Bool[Tensor, "batch chosen_time"],
    rejected_mask: Bool[Tensor, "batch rejected_time"],
    *,
    reward_beta: float = 0.05,
    over_tokens: Literal["sum", "mean"] = "sum",
    margin: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Bradley-Terry on log-probabilities: a language model whose likelihood is the reward.

        −log σ(β_r log π_r(y_w | x) − β_r log π_r(y_l | x) − m)

    DPO without a reference. The reward of a response is a sum over its tokens, so that each has a
    reward of its own after any prefix.

    Args:
        chosen_logprobs: of the tokens of the preferred responses, in nats.
        rejected_logprobs: of those of the others.
        chosen_mask: True on tokens of the preferred responses.
        rejected_mask: True on tokens of the others.
        reward_beta: nats of reward per nat of log-probability.
        over_tokens: `mean` divides each log-probability of a response by its length.
        margin: m, by how much the preferred ones should win, in nats of reward; None for 0.

    Returns:
        Nats per pair, in float32; log 2 where both responses are equally likely.

    Raises:
        ConfigError: `reward_beta` is not positive.

    Source: Xu et al. 2024, arXiv 2410.08193 (GenARM), the training of the autoregressive reward
    model. Length and margin are options of their code, in which the margin stands before the
    multiplication: theirs is m divided by `reward_beta`.

    >>> logprobs, mask = torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, True]])
    >>> autoregressive_reward_loss(logprobs, logprobs - 10, mask, mask)
    tensor(0.3133)
    """
    if not reward_beta > 0:
        raise ConfigError(f"reward_beta is {reward_beta}; expected a positive number, such as 0.05")
    over = masked_sum if over_tokens == "sum" else masked_row_mean
    chosen = reward_beta * over(chosen_logprobs.float(), chosen_mask)
    rejected = reward_beta * over(rejected_logprobs.float(), rejected_mask)
    return bradley_terry_loss(chosen, rejected, margin=margin)


def expected_value_loss(
    values: Float[Tensor, "batch time"],
    expected: Float[Tensor, "batch time"],
    outcomes: Num[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    bootstrap_lambda: float = 0.0,
) -> Float[Tensor, ""]:
    """Squared error of each value against what the policy expects next, or the outcome at the end.

        1/T · Σ_t (V_t − sg G_t)²
        G_T = R,   G_t = (1 − λ) Σ_v p(v | x, y_{≤t}) · V(x, y_{≤t} v) + λ G_{t+1}

    `q_value_loss` with the mean over the policy's next tokens in place of the one that was written.

    Args:
        values: `token_values` of the responses.
        expected: `expected_values` in the same places.
        outcomes: of each response, in the unit of the values.
        mask: True on response tokens.
        bootstrap_lambda: 0 takes the next value alone, 1 the outcome for every prefix.

    Returns:
        Squared units per prefix, in float32; no gradient flows through the targets.

    Raises:
        ConfigError: `bootstrap_lambda` lies outside [0, 1].

    Source: Mudgal et al. 2023, arXiv 2310.17022, the loss called CD-Q, with half the sum over
    prefixes where here is the mean; at `bootstrap_lambda` 1 that called CD-FUDGE.

    >>> values, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> expected_value_loss(values, torch.tensor([[9.0, 2.0]]), torch.tensor([4.0]), mask)
    tensor(1.)
    """
    packed, counts = left_packed(values.float(), mask)
    next_values, _ = left_packed(expected.float(), mask)
    targets = bootstrapped_targets(next_values, outcomes, counts, bootstrap_lambda=bootstrap_lambda)
    return prefix_squared_error(packed, targets, counts)
