"""Segment rewards normalised by where in the response the segment stands."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, DataError, ShapeError


@dataclass(frozen=True)
class LocationNormaliser:
    """Mean and deviation of segment rewards as lines in the log of where the segment stands.

        p = k / K
        μ(p) = w_μ log p + b_μ
        σ(p) = max(w_σ log p + b_σ, c · b_σ)

    The first four are in the order of the published parameters, so that
    `LocationNormaliser(*published)` works. They belong to one reward model and one segmentation.

    Attributes:
        mean_slope: w of the mean, in nats.
        deviation_slope: w of the deviation, in nats.
        mean_at_end: b of the mean: that of last segments, in nats.
        deviation_at_end: b of the deviation, in nats; positive.
        floor: c, the share of the last segments' deviation below which none is taken.

    Raises:
        ConfigError: `deviation_at_end` is not positive, or `floor` lies outside (0, 1].

    Source: Yin et al. 2025, arXiv 2501.02790, location-aware normalisers. They have no floor: with
    the parameters they publish for Llama-3 by tokens the deviation of the first tokens of a
    response of 246 or more is negative, and their rewards change sign.

    >>> LocationNormaliser(0.7668, 0.2569, 0.4705, 2.8339).floor
    0.1
    """

    mean_slope: float
    deviation_slope: float
    mean_at_end: float
    deviation_at_end: float
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not self.deviation_at_end > 0 or not 0 < self.floor <= 1:
            raise ConfigError(
                f"deviation_at_end is {self.deviation_at_end} and floor {self.floor}; expected a "
                "positive deviation and a floor above 0 and at most 1"
            )


def location_normalised(
    segment_rewards: Float[Tensor, "batch segments"],
    segment_mask: Bool[Tensor, "batch segments"],
    normaliser: LocationNormaliser,
) -> Float[Tensor, "batch segments"]:
    """Segment rewards with the mean and deviation of their location taken out.

        ẽ_k = (e_k − μ(k / K)) / σ(k / K)

    Args:
        segment_rewards: in nats, as `segment_end_scores` gives them.
        segment_mask: True on segments that are there.
        normaliser: mean and deviation by location.

    Returns:
        Normalised rewards, without a unit, zero outside the mask.

    Raises:
        ShapeError: rewards and mask differ in shape.

    Source: Yin et al. 2025, arXiv 2501.02790, location-aware normalisers.

    >>> normaliser = LocationNormaliser(1.0, 0.0, 2.0, 0.5)
    >>> location_normalised(torch.tensor([[3.0]]), torch.tensor([[True]]), normaliser)
    tensor([[2.]])
    """
    _require_same_shape(segment_rewards, segment_mask)
    logs = _locations(segment_mask).log().to(segment_rewards.device)
    means = normaliser.mean_slope * logs + normaliser.mean_at_end
    deviations = normaliser.deviation_slope * logs + normaliser.deviation_at_end
    deviations = deviations.clamp(min=normaliser.floor * normaliser.deviation_at_end)
    dtype = torch.promote_types(segment_rewards.dtype, torch.float32)
    normal = ((segment_rewards - means) / deviations).to(dtype)
    return normal.masked_fill(~segment_mask, 0.0)


def fitted_location_normaliser(
    segment_rewards: Float[Tensor, "batch segments"],
    segment_mask: Bool[Tensor, "batch segments"],
    *,
    epsilon: float = 1.35,
) -> LocationNormaliser:
    """Lines through the mean and the deviation of segment rewards by the log of their location.

    Rewards are gathered by location k / K, to three decimals; the means, and the population
    deviations, of the locations are each fitted by Huber regression, which minimises over line and
    scale

        Σ_i [s + s · H_ε((y_i − w log p_i − b) / s)]
        H_ε(z) = z² if |z| ≤ ε, else 2 ε |z| − ε²

    Args:
        segment_rewards: of many responses, in nats, as `segment_end_scores` gives them.
        segment_mask: True on segments that are there.
        epsilon: beyond how many scales a residual counts by its size and not by its square.

    Returns:
        The normaliser, with its usual floor.

    Raises:
        ConfigError: `epsilon` is less than 1.
        ShapeError: rewards and mask differ in shape.
        DataError: fewer than two locations have two rewards or more, or rewards of last segments
            do not vary.

    Source: Yin et al. 2025, arXiv 2501.02790, fitted on 60,000 preference pairs with epsilon 1.35;
    the regression is that of Huber 1981, section 7.7. Their code fits locations with a single
    reward too, whose deviation is zero, gives those nearest to 0 a log of -23, and adds a ridge
    of 0.0001 to the slope; here the first are left out, the second are taken at 0.001, and there
    is no ridge.

    >>> rewards = torch.tensor([[0.0, 2.0], [2.0, 4.0]])
    >>> fitted = fitted_location_normaliser(rewards, torch.ones(2, 2, dtype=torch.bool))
    >>> round(fitted.mean_at_end, 4), round(fitted.deviation_at_end, 4)
    (3.0, 1.0)
    """
    if epsilon < 1:
        raise ConfigError(f"epsilon is {epsilon}; expected at least 1")
    _require_same_shape(segment_rewards, segment_mask)
    locations = _locations(segment_mask).round(decimals=3).clamp(min=0.001)[segment_mask]
    rewards = segment_rewards[segment_mask].to(locations)
    places, group = torch.unique(locations, return_inverse=True)
    counts = group.bincount(minlength=len(places))
    means = torch.zeros_like(places).scatter_add(0, group, rewards) / counts
    squares = (rewards - means[group]).square()
    deviations = (torch.zeros_like(places).scatter_add(0, group, squares) / counts).sqrt()
    seen = counts > 1
    if int(seen.sum()) < 2:
        raise DataError(
            f"{int(seen.sum())} locations have two segment rewards or more; expected two such "
            "locations at least: give more responses"
        )
    logs = places[seen].log()
    mean_slope, mean_at_end = _huber_line(logs, means[seen], epsilon=epsilon)
    slope, at_end = _huber_line(logs, deviations[seen], epsilon=epsilon)
    if not at_end > 0:
        raise DataError(
            f"the deviation of last segments comes out as {at_end}; expected segment rewards that "
            "vary between responses"
        )
    return LocationNormaliser(mean_slope, slope, mean_at_end, at_end)


def _locations(segment_mask: Bool[Tensor, "batch segments"]) -> Float[Tensor, "batch segments"]:
    """Share k / K of the response's segments up to each one, 1 where there is none."""
    places = segment_mask.cumsum(-1).double() / segment_mask.sum(-1, keepdim=True).clamp(min=1)
    return places.masked_fill(~segment_mask, 1.0)


def _huber_line(
    x: Float[Tensor, "points"], y: Float[Tensor, "points"], *, epsilon: float
) -> tuple[float, float]:
    """Slope and intercept of Huber's robust regression, by reweighted least squares."""
    design = torch.stack([x, torch.ones_like(x)], dim=-1)
    weights, line = torch.ones_like(y), torch.zeros(2).to(y)
    rounding = 1e-12 * float(y.abs().max())  # residuals below it are none
    for _ in range(1000):
        roots = weights.sqrt()
        before, line = line, torch.linalg.lstsq(roots[:, None] * design, roots * y).solution
        if torch.allclose(line, before, rtol=1e-10, atol=1e-12):
            break
        sizes = (y - design @ line).abs()
        reach = max(epsilon * _huber_scale(sizes, epsilon=epsilon), rounding)
        weights = torch.where(sizes <= reach, 1.0, reach / sizes.clamp(min=1e-300))
    return float(line[0]), float(line[1])


def _huber_scale(sizes: Float[Tensor, "points"], *, epsilon: float) -> float:
    """The scale that is best for residuals of these sizes.

    With the k smallest residuals within reach, the derivative of the sum by the scale vanishes at
    s² = (their squares) / (n − ε² (n − k)); k is the first for which the next residual
    really lies beyond ε s.
    """
    ordered = sizes.sort().values
    count = len(sizes)
    beyond = count - torch.arange(1, count + 1, device=sizes.device)
    room = count - epsilon**2 * beyond
    scales = (ordered.square().cumsum(0) / room.clamp(min=1e-300)).sqrt()
    following = torch.cat([ordered[1:], torch.full_like(ordered[:1], torch.inf)])
    fits = (room > 0) & (epsilon * scales <= following)
    return float(scales[fits.long().argmax()])


def _require_same_shape(segment_rewards: Tensor, segment_mask: Tensor) -> None:
    if segment_rewards.shape != segment_mask.shape:
        raise ShapeError(
            f"segment_rewards have shape {tuple(segment_rewards.shape)} and segment_mask "
            f"{tuple(segment_mask.shape)}; expected one reward per segment"
        )
