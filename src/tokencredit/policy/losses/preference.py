"""Losses of pairs of responses: the score of a side, an offset, and a link.

Nearly every offline loss of pairs is a link of `scale (s(y_w) − s(y_l) − m)`: `side_scores` gives
s, `pair_losses` the rest. Which loss is which stands in `policy.losses.methods`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from tokencredit.errors import ConfigError, DataError, NumericError
from tokencredit.masking import masked_row_mean, masked_sum
from tokencredit.names import named

Link = Literal["logistic", "robust", "squared", "hinge", "discopop"]


def side_scores(
    policy_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    references: Sequence[tuple[float, Float[Tensor, "batch time"]]] = (),
    token_weights: Float[Tensor, "batch time"] | None = None,
    length_normalised: bool = False,
) -> Float[Tensor, "batch"]:
    """What a pair loss compares of each response: weighted log-ratios, summed over its tokens.

        s(y) = Σ_t w_t (log π(y_t | s_t) − Σ_k a_k log π_k(y_t | s_t))   [ / |y| ]

    The weights multiply the log-ratio, so that they leave the reference where it is. Those that are
    equal on a beginning that two responses share cancel in their difference.

    Args:
        policy_logprobs: of the policy in training, in nats.
        response_mask: True on response tokens; anything may stand outside.
        references: frozen models, each with its share a_k and its log-probabilities; none for
            losses without a reference.
        token_weights: w, constants; None for 1.
        length_normalised: divide by the number of response tokens.

    Returns:
        In nats, at least float32; 0 for a response without tokens.

    Raises:
        NumericError: a weight inside the mask is NaN or infinite.

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; without reference and per token Meng
    et al. 2024, arXiv 2405.14734 (SimPO).

    >>> policy, mask = torch.tensor([[-1.0, -2.0]]), torch.tensor([[True, True]])
    >>> side_scores(policy, mask, references=[(1.0, torch.tensor([[-2.0, -2.5]]))])
    tensor([1.5000])
    """
    ratios = _at_least_float32(policy_logprobs)
    for share, logprobs in references:
        ratios = ratios - share * logprobs.detach()
    # Filled before anything is multiplied: NaN under the mask would come back in the gradient.
    ratios = ratios.masked_fill(~response_mask, 0.0)
    if token_weights is not None:
        weights = token_weights.detach().masked_fill(~response_mask, 0.0)
        require_finite_weights(weights)
        ratios = ratios * weights
    how = masked_row_mean if length_normalised else masked_sum
    return how(ratios, response_mask)


def require_finite_weights(token_weights: Float[Tensor, "batch time"]) -> None:
    """Raise NumericError if a weight is NaN or infinite.

    Args:
        token_weights: zero where no token counts.
    """
    bad = ~token_weights.isfinite().all(-1)
    if bool(bad.any()):
        raise NumericError(
            f"the token weights of {int(bad.sum())} responses are NaN or infinite; expected finite "
            "ones: look at the credit that they are made of"
        )


def pair_losses(
    chosen_scores: Float[Tensor, "batch"],
    rejected_scores: Float[Tensor, "batch"],
    *,
    link: Link = "logistic",
    scale: float = 1.0,
    offset: float | Float[Tensor, "batch"] = 0.0,
    soft_label: float | Float[Tensor, "batch"] = 1.0,
    bias: float = 1.0,
    tau: float = 0.05,
) -> Float[Tensor, "batch"]:
    """What pairs cost, by the scores of their sides.

        z = scale (s_w − bias s_l − m),   z' = scale (s_l − bias s_w − m)
        L = p f(z) + (1 − p) f(z')

    With the link `robust` the second term is taken off and the sum divided by 2p − 1, which makes
    the loss of flipped labels that of true ones in expectation.

    Args:
        chosen_scores: of preferred responses, as of `side_scores`.
        rejected_scores: of the others.
        link: f. `logistic` log(1 + e^−z), `robust` the same unbiased, `squared` z², `hinge`
            max(0, −z), `discopop` a mix of the logistic and the exponential.
        scale: of the difference.
        offset: m, what the score of the better response shall be ahead.
        soft_label: p, the probability that the chosen response is the better one.
        bias: what the score of the other side is multiplied by.
        tau: temperature of the mix of `discopop`.

    Returns:
        One loss per pair.

    Raises:
        ConfigError: there is no such link, or `tau` is not positive.
        DataError: a soft label lies outside 0..1, or with `robust` not above 1/2.

    Source: the rows of `policy.losses.methods`; `bias` Hejna et al. 2023, arXiv
    2310.13639 (CPL), `robust` Chowdhury et al. 2024, arXiv 2403.00409, `discopop` Lu et al. 2024,
    arXiv 2406.08414.

    >>> pair_losses(torch.tensor([2.0]), torch.tensor([1.0]), scale=0.5)
    tensor([0.4741])
    >>> pair_losses(torch.tensor([2.0]), torch.tensor([1.0]), link="squared", offset=3.0)
    tensor([4.])
    """
    require_soft_labels(soft_label, link)
    if tau <= 0:
        raise ConfigError(f"tau is {tau}; expected a positive temperature")
    function = named("link", link, LINKS)
    forward = function(scale * (chosen_scores - bias * rejected_scores - offset), tau)
    if isinstance(soft_label, float) and soft_label == 1.0:
        return forward
    backward = function(scale * (rejected_scores - bias * chosen_scores - offset), tau)
    if link == "robust":
        return (soft_label * forward - (1 - soft_label) * backward) / (2 * soft_label - 1)
    return soft_label * forward + (1 - soft_label) * backward


def require_soft_labels(soft_label: float | Float[Tensor, "batch"], link: Link) -> None:
    """Raise DataError if a soft label is no probability that the link can learn from.

    Args:
        soft_label: probability that the chosen response is the better one.
        link: as of `pair_losses`.
    """
    labels = torch.as_tensor(soft_label)
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        bad = labels[~((labels >= 0) & (labels <= 1))].flatten()[0]
        raise DataError(
            f"a soft label is {float(bad):g}; expected the probability that the chosen response is "
            "the better one, from 0 to 1"
        )
    if link == "robust" and not bool((labels > 0.5).all()):
        raise DataError(
            f"a soft label is {float(labels.min()):g} with the robust link; expected more than "
            "0.5: labels that are flipped as often as not say nothing"
        )


def _logistic(z: Tensor, _tau: float) -> Tensor:
    return softplus(-z)


def _squared(z: Tensor, _tau: float) -> Tensor:
    return z.square()


def _hinge(z: Tensor, _tau: float) -> Tensor:
    return (-z).relu()


def _discopop(z: Tensor, tau: float) -> Tensor:
    """Logistic where the order is wrong, exponential where it is right.

    (1 − σ(z / τ)) log(1 + e^−z) + σ(z / τ) e^−z
    """
    # The product as one exponential: apart, the first factor overflows where the second is 0.
    exponential = (-z - softplus(-z / tau)).exp()
    return softplus(-z) * torch.sigmoid(-z / tau) + exponential


LINKS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logistic": _logistic,
    "robust": _logistic,
    "squared": _squared,
    "hinge": _hinge,
    "discopop": _discopop,
}
"""What makes a loss of z, and of the temperature tau, by its name."""

assert set(LINKS) == set(get_args(Link))


def calibrated_likelihoods(
    policy_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    setting: Literal["online", "offline"],
    strength: float,
) -> Float[Tensor, "batch"]:
    """What value-incentivised preference optimisation adds to the loss of a pair.

        ± α Σ_t log π(y_cal,t | s_t)

    Online the sign is +: answers of the calibration policy are pushed down, which is optimism about
    the others. Offline it is −, a pull towards them: pessimism.

    Args:
        policy_logprobs: of responses of the calibration policy, in nats.
        response_mask: True on response tokens; anything may stand outside.
        setting: which sign.
        strength: α, times the price of the log-ratio; never negative.

    Raises:
        ConfigError: `strength` is negative, or `setting` is neither.

    Source: Cen et al. 2024, arXiv 2405.19320 (VPO); the signs derived in the tests.

    >>> logprobs, mask = torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, True]])
    >>> calibrated_likelihoods(logprobs, mask, setting="offline", strength=0.5)
    tensor([2.])
    """
    if strength < 0 or setting not in ("online", "offline"):
        raise ConfigError(
            f"strength is {strength} and setting {setting!r}; expected at least 0, and 'online' or "
            "'offline'"
        )
    sign = 1.0 if setting == "online" else -1.0
    return sign * strength * masked_sum(_at_least_float32(policy_logprobs), response_mask)


def _at_least_float32(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return values.to(torch.promote_types(values.dtype, torch.float32))
