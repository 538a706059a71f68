"""Weights of tokens inside a loss of whole responses: from credit, selection, edits or position.

A weight multiplies the log-ratio of its token, the same for policy and reference, and is a
constant. A mean of one over a response keeps the meaning of the price of the log-ratio.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.masking import masked_row_mean, masked_sum

Side = Literal["chosen", "rejected"]


@dataclass(frozen=True)
class TokenWeight:
    """One way to weigh tokens, as documentation and commands know it.

    Attributes:
        words: which tokens weigh more, in a line.
        needs: what is asked besides both responses, in words; empty for nothing.
        options: names of the settings that it reads.
        source: the arXiv number of its paper; empty where there is none.
        differs: from what was published; empty where nothing is known to differ.
    """

    words: str
    needs: str = ""
    options: tuple[str, ...] = ()
    source: str = ""
    differs: str = ""


TOKEN_WEIGHTS: dict[str, TokenWeight] = {
    "credit": TokenWeight(
        "more on tokens that a chosen response owes its score to, and that harm a rejected one",
        "a credit",
        ("strength", "unit", "clip", "mean"),
        "2506.14574",
        "any credit, not only the log-ratio of a model that DPO trained; weights have mean one and "
        "stay positive; `unit: nats`, no `clip` and `mean: free` are the published form",
    ),
    "magnitude": TokenWeight("more on tokens that matter, whether they help or harm", "a credit"),
    "select": TokenWeight(
        "the best tokens of chosen responses and the worst of rejected ones count alone",
        "a credit",
        ("share",),
        "2408.13518",
        "any credit, not only the log-ratio of a model that DPO trained",
    ),
    "edits": TokenWeight(
        "more on tokens that differ between both responses, the most on unlikely ones",
        "pairs",
        ("delta", "confidence"),
        "2408.07471",
        "the confidence of the policy for both models; `confidence: own` takes the reference's "
        "for the reference, as published",
    ),
    "decay": TokenWeight(
        "each token weighs less than the one before",
        options=("decay",),
        source="2310.13639",
        differs="a weight of each log-ratio, where the paper discounts advantages",
    ),
}
"""Every `token_weights.kind` but `none`."""


def credit_weights(
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    side: Side,
    strength: float,
    unit: Literal["row", "nats"] = "row",
    clip: float | None = 0.9,
    mean: Literal["one", "free"] = "one",
) -> Float[Tensor, "batch time"]:
    """More weight on tokens that a good response owes its score to, and that a bad one does.

        w_t = 1 ± clip(a c̃_t, ±κ),   + for the chosen side, − for the rejected one
        c̃_t = c_t / mean_u |c_u|,  or c_t itself

    Args:
        token_scores: c, of any credit method, in nats.
        response_mask: True on response tokens; anything may stand outside.
        side: which sign.
        strength: a; 0 gives weights of 1.
        unit: of c̃: "row" has mean absolute value one in each response, whatever the credit;
            "nats" takes the credit as it is.
        clip: κ, the most that a weight may be away from 1 before the mean is restored; below 1 it
            keeps weights positive. None for none.
        mean: "one" divides by the mean of the row, "free" leaves it.

    Returns:
        Float32, zero outside the mask. A response without any credit has weights of 1.

    Raises:
        ConfigError: `clip` is not positive, or not below 1 where the mean is to be one.

    Source: Zhu et al. 2025, arXiv 2506.14574 (TGDPO), whose c is the log-ratio of a model that
    DPO trained: `unit="nats", clip=None, mean="free"`, with strength a times the price of the
    log-ratio. There weights may turn negative.

    >>> scores, mask = torch.tensor([[1.0, -1.0, 2.0, 0.0]]), torch.ones(1, 4, dtype=torch.bool)
    >>> credit_weights(scores, mask, side="chosen", strength=0.5, mean="free")
    tensor([[1.5000, 0.5000, 1.9000, 1.0000]])
    >>> credit_weights(scores, mask, side="rejected", strength=0.5, mean="free")
    tensor([[0.5000, 1.5000, 0.1000, 1.0000]])
    """
    if clip is not None and (clip <= 0 or (mean == "one" and clip >= 1)):
        raise ConfigError(
            f"clip is {clip}; expected a positive number, below 1 where weights shall have mean "
            "one, so that none is negative"
        )
    scores = token_scores.detach().float().masked_fill(~response_mask, 0.0)
    if unit == "row":
        size = masked_row_mean(scores.abs(), response_mask)[:, None]
        scores = scores / size.where(size > 0, 1.0)
    shift = strength * scores
    if clip is not None:
        shift = shift.clamp(-clip, clip)
    weights = 1 + shift if side == "chosen" else 1 - shift
    return _restored(weights, response_mask, mean)


def magnitude_weights(
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    clip: float | None = None,
    mean: Literal["one", "free"] = "one",
) -> Float[Tensor, "batch time"]:
    """More weight on tokens that matter, whether they help or harm: the size of their credit.

        w_t = min(|c_t| / mean_u |c_u|, κ)

    Args:
        token_scores: c, of any credit method.
        response_mask: True on response tokens; anything may stand outside.
        clip: κ; None for none.
        mean: "one" divides by the mean of the row, which `clip` may have lowered; "free" leaves it.

    Returns:
        Float32, never negative, zero outside the mask. A response without any credit has weights
        of 1.

    Raises:
        ConfigError: `clip` is not positive.

    >>> magnitude_weights(torch.tensor([[1.0, -3.0]]), torch.ones(1, 2, dtype=torch.bool))
    tensor([[0.5000, 1.5000]])
    """
    if clip is not None and clip <= 0:
        raise ConfigError(f"clip is {clip}; expected a positive number")
    sizes = token_scores.detach().float().masked_fill(~response_mask, 0.0).abs()
    mean_size = masked_row_mean(sizes, response_mask)[:, None]
    weights = torch.where(mean_size > 0, sizes / mean_size.where(mean_size > 0, 1.0), 1.0)
    return _restored(weights.clamp(0.0, clip), response_mask, mean)


def selected_weights(
    selected: Bool[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Weights of responses of which some tokens count alone: |y| / |I| on those, 0 on the others.

    Args:
        selected: I, as of `tokencredit.top_share_mask`.
        response_mask: True on response tokens.

    Returns:
        Float32, mean one. A loss that is divided by the length becomes a mean over I.

    Source: Yang et al. 2024, arXiv 2408.13518 (SePO), where the loss is the mean over I.

    >>> mask = torch.ones(1, 4, dtype=torch.bool)
    >>> selected_weights(torch.tensor([[True, False, False, True]]), mask)
    tensor([[2., 0., 0., 2.]])
    """
    return _restored((selected & response_mask).float(), response_mask, "one")


def edit_weights(
    edited: Bool[Tensor, "batch time"],
    logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    delta: float,
) -> Float[Tensor, "batch time"]:
    """More weight on tokens that an edit changed, the more the less sure a model is of them (BMC).

        w_t = 1 + 1[t ∈ D] min(1 / sg[π(y_t | s_t)], δ)

    Args:
        edited: D, the tokens that differ between both responses.
        logprobs: of the model whose confidence counts, in nats.
        response_mask: True on response tokens; anything may stand outside.
        delta: δ, the most that is added; 0 gives weights of 1.

    Returns:
        Float32, at least 1 inside the mask, zero outside; their mean is not one.

    Raises:
        ConfigError: `delta` is negative.

    Source: Jiang et al. 2024, arXiv 2408.07471 (BMC). Their code weighs the reference's
    log-probabilities by the reference's own confidence.

    >>> edited, mask = torch.tensor([[True, True, False]]), torch.ones(1, 3, dtype=torch.bool)
    >>> edit_weights(edited, torch.tensor([[-0.1, -5.0, -5.0]]), mask, delta=2.0)
    tensor([[2.1052, 3.0000, 1.0000]])
    """
    if delta < 0:
        raise ConfigError(f"delta is {delta}; expected at least 0")
    unsure = (-logprobs.detach().float().masked_fill(~response_mask, 0.0)).exp().clamp(max=delta)
    weights = 1 + unsure.masked_fill(~edited, 0.0)
    return weights.masked_fill(~response_mask, 0.0)


def decay_weights(
    response_mask: Bool[Tensor, "batch time"], *, decay: float
) -> Float[Tensor, "batch time"]:
    """Less weight on every further token, with mean one.

        w_t = |y| d^t / Σ_u d^u,   t = 0, 1, ... over response tokens

    Args:
        response_mask: True on response tokens.
        decay: d, above 0 and up to 1; 1 gives weights of 1.

    Raises:
        ConfigError: `decay` lies outside its range.

    Source: the discount of the advantages in Hejna et al. 2023, arXiv 2310.13639 (CPL), as a
    weight.

    >>> decay_weights(torch.tensor([[True, True, False]]), decay=0.5)
    tensor([[1.3333, 0.6667, 0.0000]])
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"decay is {decay}; expected a number above 0 and up to 1")
    steps = (response_mask.cumsum(-1) - 1).clamp(min=0)
    weights = torch.tensor(decay, dtype=torch.float64) ** steps
    return _restored(weights.float(), response_mask, "one")


def bounded_scores(token_scores: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Any credit between −1/2 and 1/2: σ(c) − 1/2.

    Args:
        token_scores: in nats.

    >>> bounded_scores(torch.tensor([[0.0, 100.0]]))
    tensor([[0.0000, 0.5000]])
    """
    return 0.5 * torch.tanh(0.5 * token_scores.float())


def token_regularisers(
    policy_logprobs: Float[Tensor, "batch time"],
    bounded: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    normalisation: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "batch"]:
    """Likelihood of tokens by what they are worth, to be added to a loss of pairs (T-REG).

        L_REG(y) = −Σ_t r̂_t log π(y_t | s_t)

    Args:
        policy_logprobs: of the policy in training, in nats.
        bounded: r̂, within −1/2 and 1/2, constants: contrasted prompts, or `bounded_scores` of any
            credit.
        response_mask: True on response tokens; anything may stand outside.
        normalisation: of the tokens of a response.

    Returns:
        One number per response, to be multiplied by the price of the log-ratio, the strength of the
        regulariser, and how wrong the order of the pair is.

    Source: Zhou et al. 2024, arXiv 2412.02685 (T-REG), from notes on the paper; whether theirs is
    divided by the length is not known.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> token_regularisers(torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.5, -0.5]]), mask)
    tensor([-0.5000])
    """
    dtype = torch.promote_types(policy_logprobs.dtype, torch.float32)
    logprobs = policy_logprobs.to(dtype).masked_fill(~response_mask, 0.0)
    weighed = -bounded.detach().masked_fill(~response_mask, 0.0) * logprobs
    how = masked_row_mean if normalisation == "mean" else masked_sum
    return how(weighed, response_mask)


def _restored(
    weights: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    mean: Literal["one", "free"],
) -> Float[Tensor, "batch time"]:
    weights = weights.masked_fill(~response_mask, 0.0)
    if mean == "free":
        return weights
    return weights / masked_row_mean(weights, response_mask)[:, None].clamp(min=1e-12)
