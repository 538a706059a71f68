"""Credit from what two language models say about the same tokens.

The log-ratio of a model that DPO trained and of the reference it started from is a reward for each
token, up to a potential-based shaping whose potential is the optimal value. The same difference
between two prompts of one model says which tokens the better prompt calls for. The logits of the
trained model imply values, action values and advantages too ("from r to Q*").
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.credit.redistribution import score_column, terminal_credit
from tokencredit.errors import ConfigError, NumericError, ShapeError


def log_ratio_credit(
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    dpo_beta: float,
    clip: float | None = None,
) -> Float[Tensor, "batch time"]:
    """The implicit reward of DPO, token by token.

        r_t = clip(β log(π_dpo(y_t | s_t) / π_ref(y_t | s_t)), ±c)

    Conserves: no. Causal: yes. Bounded: by clip, where given. Needs: log-probs of two models.

    Without clip it is r(s, a) + V(s') - V(s) for the reward r under which the DPO model is the
    optimal KL-regularised policy: an advantage, so the sum over a response is its reward up to the
    value of the prompt. Raw ratios pay or charge for length; they should be small beside the score
    of the sequence, which RTO adds at the end: `log_ratio_credit(...) + terminal_credit(...)`,
    the latter times its weight. As they are, SePO takes them for its oracle's scores.

    Args:
        policy_logprobs: of the model that DPO trained, which need not be the policy in training,
            in nats.
        ref_logprobs: of the reference of that DPO training, in nats.
        response_mask: True on response tokens.
        dpo_beta: scale of the log-ratio, positive; that of the DPO training gives nats of its
            reward.
        clip: largest absolute token score after scaling; None leaves all.

    Returns:
        Token scores in nats, each within `clip` of zero.

    Raises:
        ConfigError: `dpo_beta` or `clip` is not positive.
        ShapeError: log-probs and mask differ in shape.
        NumericError: a token score is NaN, or infinite for want of a clip.

    Source: Zhong et al. 2024, arXiv 2404.18922 (RTO), the token reward without its KL term, as
    `_compute_dpo_rewards` of its code has it: scaled, then clipped. For what it means, Rafailov et
    al. 2024, arXiv 2404.12358 (From r to Q*), derived again in the tests. For the scores of SePO's
    oracle, Yang et al. 2024, arXiv 2408.13518.

    >>> policy, ref = torch.tensor([[-1.0, -0.5]]), torch.tensor([[-2.0, -4.5]])
    >>> mask = torch.tensor([[True, True]])
    >>> log_ratio_credit(policy, ref, mask, dpo_beta=0.1, clip=0.25)
    tensor([[0.1000, 0.2500]])

    RTO, with the score of the sequence at weight 0.5:

    >>> dense = log_ratio_credit(policy, ref, mask, dpo_beta=0.1, clip=0.25)
    >>> dense + 0.5 * terminal_credit(torch.tensor([3.0]), mask)
    tensor([[0.1000, 1.7500]])
    """
    _require_positive(dpo_beta=dpo_beta, **({} if clip is None else {"clip": clip}))
    token_scores = dpo_beta * _difference(
        response_mask, policy_logprobs=policy_logprobs, ref_logprobs=ref_logprobs
    )
    if clip is not None:
        token_scores = token_scores.clamp(-clip, clip)
    return _finite(token_scores)


def shaped_log_ratio_credit(
    sequence_scores: Float[Tensor, "batch"],
    policy_logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    dpo_beta: float,
    clip: float | None = None,
) -> Float[Tensor, "batch time"]:
    """Log-ratios as shaping of the sequence score: what they paid is taken back at the end.

        r_t = d_t + 1[t = T] (R − Σ_{u≤T} d_u)
        d_t = clip(β log(π_dpo(y_t | s_t) / π_ref(y_t | s_t)), ±c)

    Conserves: yes. Causal: yes. Bounded: no. Needs: sequence scores and log-probs of two models.

    The d so far, clipped or not, are a function of the state, zero after the end: a potential. So
    this is the terminal reward with potential-based shaping, and the best policy stays the best.
    The last token bears what all others were paid, however long the response.

    Args:
        sequence_scores: in nats.
        policy_logprobs: as in `log_ratio_credit`.
        ref_logprobs: as in `log_ratio_credit`.
        response_mask: True on response tokens.
        dpo_beta: scale of the log-ratio, positive.
        clip: largest absolute d; None leaves all.

    Returns:
        Token scores in nats; each row sums to its sequence score.

    Raises:
        ConfigError: `dpo_beta` or `clip` is not positive.
        ShapeError: scores, log-probs and mask do not fit each other.
        NumericError: a log-ratio is NaN, or infinite for want of a clip.

    Source: Zhong et al. 2024, arXiv 2404.18922, the ablation RS-PPO, in which the log-ratio of DPO
    only shapes the reward. Their text could not be read; the term at the end is derived from that
    (Ng et al. 1999, potential zero after the end).

    >>> policy, ref = torch.tensor([[-1.0, -0.5]]), torch.tensor([[-2.0, -4.5]])
    >>> mask = torch.tensor([[True, True]])
    >>> shaped_log_ratio_credit(torch.tensor([3.0]), policy, ref, mask, dpo_beta=0.1)
    tensor([[0.1000, 2.9000]])
    """
    scores = score_column(sequence_scores, response_mask)[:, 0]
    ratios = log_ratio_credit(
        policy_logprobs, ref_logprobs, response_mask, dpo_beta=dpo_beta, clip=clip
    )
    return ratios + terminal_credit(scores - ratios.sum(-1), response_mask)


def contrastive_prompt_credit(
    better_logprobs: Float[Tensor, "batch time"],
    worse_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """How much likelier a token is when the prompt asks for a better answer than for a worse one.

        r_t = σ(log π(y_t | x_better, y_{<t}) − log π(y_t | x_worse, y_{<t})) − 1/2

    Conserves: no. Causal: yes. Bounded: by 0.5. Needs: log-probs under two prompts.

    Args:
        better_logprobs: of the response after a prompt that asks to make the answer better, in
            nats. Tokenize the response once: its ids must be the same under both prompts.
        worse_logprobs: after a prompt that asks for the opposite, by the same model.
        response_mask: True on response tokens.

    Returns:
        Token scores from -0.5 to 0.5. T-REG uses them as weights of a loss; T-REG's sequence
        weight and its loss are not here.

    Raises:
        ShapeError: log-probs and mask differ in shape.
        NumericError: a token score is NaN.

    Source: Zhou et al. 2024, arXiv 2412.02685 (T-REG), the self-generated token reward; read in
    notes on the paper, not in its code.

    >>> better, worse = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.0, -1.0]])
    >>> contrastive_prompt_credit(better, worse, torch.tensor([[True, True]]))
    tensor([[ 0.0000, -0.3808]])
    """
    difference = _difference(
        response_mask, better_logprobs=better_logprobs, worse_logprobs=worse_logprobs
    )
    return _finite(0.5 * torch.tanh(0.5 * difference))  # sigmoid - 1/2, exact near zero


def top_share_mask(
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    share: float,
    side: Literal["top", "bottom"],
) -> Bool[Tensor, "batch time"]:
    """The tokens of each response that score highest, or lowest.

        |I| = max(1, ⌊k T⌋)

    SePO trains on the top share of the preferred response and on the bottom share of the other.

    Args:
        token_scores: of any credit method, finite inside the mask.
        response_mask: True on response tokens.
        share: k, of the tokens of each response by itself, above 0 and up to 1.
        side: which end of the ranking. Of equal scores the earlier token is taken first.

    Returns:
        True on the selected tokens: at least one of every response that has any.

    Raises:
        ConfigError: `share` lies outside (0, 1], or `side` is neither.
        ShapeError: scores and mask differ in shape.

    Source: Yang et al. 2024, arXiv 2408.13518 (SePO). Their `get_topK` takes int(k T) tokens, none
    of a short response, and its scores begin with the second response token, so that the first is
    never selected.

    >>> scores, mask = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, True, True]])
    >>> top_share_mask(scores, mask, share=0.7, side="top")
    tensor([[ True, False,  True]])
    """
    if not 0 < share <= 1 or side not in ("top", "bottom"):
        raise ConfigError(
            f"share is {share} and side {side!r}; expected a share above 0 and up to 1, and "
            "'top' or 'bottom'"
        )
    _require_shape(response_mask, token_scores=token_scores)
    ascending = -token_scores if side == "top" else token_scores
    order = ascending.masked_fill(~response_mask, torch.inf).argsort(dim=-1, stable=True)
    ranks = order.argsort(-1)
    # 0.29 * 100 is 28.999...: the small number makes it the 29 that was meant.
    counts = (response_mask.sum(-1).double() * share + 1e-9).floor().clamp(min=1)
    return (ranks < counts[:, None]) & response_mask


def _require_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}; expected a positive number")


def _require_shape(response_mask: Bool[Tensor, "batch time"], **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != response_mask.shape:
            raise ShapeError(
                f"{name} has shape {tuple(tensor.shape)} and response_mask "
                f"{tuple(response_mask.shape)}; expected one number per response token"
            )


def _difference(
    response_mask: Bool[Tensor, "batch time"], **logprobs: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """The first minus the second, in float32, zero outside the mask."""
    _require_shape(response_mask, **logprobs)
    # Filled before they are subtracted: NaN under the mask would come back in the gradient.
    first, second = (some.float().masked_fill(~response_mask, 0.0) for some in logprobs.values())
    return first - second


def _finite(token_scores: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    if not bool(token_scores.isfinite().all()):
        raise NumericError(
            "log-probs inside response_mask are NaN or infinite; expected finite ones, of the same "
            "tokens under both models: look for suppressed tokens and for overflow in float16"
        )
    return token_scores


def implicit_q_values(
    logits: Float[Tensor, "*batch vocab"], *, dpo_beta: float
) -> Float[Tensor, "*batch vocab"]:
    """Logits of an optimal policy read as the values of its actions.

        Q*(s, a) = β z(s, a)

    Q includes the reference: it is r(s, a) + β log π_ref(a | s) + V(s'). Logits may be shifted
    by any constant without changing the policy, so Q and `implicit_values` are known up to one
    constant per state, which cancels in `implicit_advantages` but not between states.

    Args:
        logits: of a policy that DPO trained, unscaled by temperature.
        dpo_beta: of that training, positive.

    Returns:
        In nats, float32.

    Raises:
        ConfigError: `dpo_beta` is not positive.

    Source: Rafailov et al. 2024, arXiv 2404.12358; Q, V and A by the identities of soft
    reinforcement learning, derived again in the tests.

    >>> import torch
    >>> implicit_q_values(torch.tensor([1.0, 3.0]), dpo_beta=0.5)
    tensor([0.5000, 1.5000])
    """
    _require_positive(dpo_beta=dpo_beta)
    return dpo_beta * logits.float()


def implicit_values(
    logits: Float[Tensor, "*batch vocab"], *, dpo_beta: float
) -> Float[Tensor, "*batch"]:
    """Value of each state under the optimal policy with these logits, up to a constant per state.

        V*(s) = β log Σ_a exp(Q*(s, a) / β)

    Args:
        logits: of a policy that DPO trained, unscaled by temperature. A constant that is added to
            the logits of a state is added to its value: differences between states mean something
            only as far as training fixed it.
        dpo_beta: of that training, positive.

    Returns:
        In nats, float32.

    Raises:
        ConfigError: `dpo_beta` is not positive.

    Source: as `implicit_q_values`.

    >>> import torch
    >>> implicit_values(torch.tensor([0.0, 0.0]), dpo_beta=0.5)
    tensor(0.3466)
    """
    _require_positive(dpo_beta=dpo_beta)
    return dpo_beta * logits.float().logsumexp(-1)


def implicit_advantages(
    logits: Float[Tensor, "*batch vocab"], *, dpo_beta: float
) -> Float[Tensor, "*batch vocab"]:
    """Advantage of every action under the optimal policy with these logits; never positive.

        A*(s, a) = Q*(s, a) − V*(s) = β log π(a | s)

    Args:
        logits: as in `implicit_q_values`, whose unknown constant cancels here.
        dpo_beta: of the DPO training, positive.

    Returns:
        In nats, float32. Less β log π_ref they are what `log_ratio_credit` gives, for every
        token of the vocabulary.

    Raises:
        ConfigError: `dpo_beta` is not positive.

    Source: as `implicit_q_values`.

    >>> import torch
    >>> implicit_advantages(torch.tensor([0.0, 0.0]), dpo_beta=0.5)
    tensor([-0.3466, -0.3466])
    """
    _require_positive(dpo_beta=dpo_beta)
    return dpo_beta * logits.float().log_softmax(-1)
