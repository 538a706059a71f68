"""Upper bounds of a mean from a sample, and the test that a policy has to pass with them.

Whether a policy is safe is asked of a mean cost over all prompts there are, and answered from a
sample of them. A bound is above that mean but for a share of samples that is chosen beforehand.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError, DataError, NumericError

BoundKind = Literal["student", "hoeffding"]


@dataclass(frozen=True)
class SafetyVerdict:
    """What a sample of costs says of a policy.

    Attributes:
        safe: whether the bound is not above the threshold.
        bound: of the mean cost, in the units of the costs.
        mean: of the sample.
        deviation: of the sample, Bessel's correction included.
        count: costs in the sample.
    """

    safe: bool
    bound: float
    mean: float
    deviation: float
    count: int


def safety_test(
    costs: Float[Tensor, "prompts"],
    *,
    threshold: float,
    failure_probability: float,
    bound: BoundKind = "student",
    cost_range: tuple[float, float] | None = None,
) -> SafetyVerdict:
    """Whether a mean cost is shown to be at most a threshold, by a sample that nobody trained on.

        safe  ⇔  bound(c_1, ..., c_m) ≤ τ

    A policy whose mean cost is above the threshold passes with at most the failure probability:
    under "student" where means of m costs are nearly normal, under "hoeffding" always. That holds
    for one test. A test that is repeated until it passes, or whose prompts were trained on, shows
    nothing. A policy that must keep several thresholds passes each test by itself at the same
    probability.

    Args:
        costs: one of each prompt, drawn independently.
        threshold: the mean that is allowed, in the same units.
        failure_probability: the chance that an unsafe policy may pass.
        bound: "student" from mean and deviation, "hoeffding" from mean and `cost_range`.
        cost_range: least and largest cost there can be, for "hoeffding".

    Raises:
        ConfigError: the probability is not between 0 and 1, or the range is missing.
        DataError: there are too few costs, or one is out of the range.
        NumericError: a cost is NaN or infinite.

    Source: the safety test of HC-RLHF, arXiv 2506.08266, with Student's bound as in their code.

    >>> import torch
    >>> costs = torch.tensor([-1.0, -2.0, -1.5, -1.0, -2.5])
    >>> safety_test(costs, threshold=0.0, failure_probability=0.05).safe
    True
    >>> safety_test(costs + 1.5, threshold=0.0, failure_probability=0.05).safe
    False
    """
    require_probability(failure_probability)
    if not bool(costs.isfinite().all()):
        raise NumericError("a cost is NaN or infinite; expected a finite number for each prompt")
    count, wide = len(costs), costs.double()
    least = 2 if bound == "student" else 1
    if count < least:
        raise DataError(f"there are {count} costs; expected at least {least} for a bound")
    mean = float(wide.mean())
    deviation = float(wide.std()) if count > 1 else 0.0
    if bound == "student":
        scale = pessimism(failure_probability, [(1.0, count)])
        upper = mean + scale * deviation
    else:
        upper = hoeffding_upper_bound(
            mean, count, failure_probability=failure_probability, value_range=cost_range
        )
        assert cost_range is not None
        if float(costs.min()) < cost_range[0] or float(costs.max()) > cost_range[1]:
            raise DataError(
                f"costs go from {float(costs.min()):g} to {float(costs.max()):g} and the range is "
                f"{list(cost_range)}; expected all of them in it, or the bound does not hold"
            )
    return SafetyVerdict(upper <= threshold, upper, mean, deviation, count)


def pessimism(failure_probability: float, samples: list[tuple[float, int]]) -> float:
    """How many deviations are added to a mean to bound it from above, summed over samples.

        k = Σ_i C_i t_{1−δ, n_i−1} / √n_i

    With one sample and C = 1, mean + k · deviation is the upper bound of Student. With a second
    one of the size of the safety test it foresees the width that the test will add.

    Args:
        failure_probability: δ.
        samples: a weight and a size of each; a weight of 0 leaves a sample out.

    Raises:
        ConfigError: the probability is not between 0 and 1, or a sample that has a weight has
            fewer than two values.

    Source: HC-RLHF, arXiv 2506.08266, and its code, with C_1 = C_2 = 1.

    >>> round(pessimism(0.05, [(1.0, 5)]), 4)
    0.9534
    """
    require_probability(failure_probability)
    total = 0.0
    for weight, size in samples:
        if weight == 0:
            continue
        if size < 2:
            raise ConfigError(
                f"a sample of {size} has no deviation; expected at least 2 responses, or 0 as its "
                "weight"
            )
        total += weight * student_quantile(1 - failure_probability, size - 1) / math.sqrt(size)
    return total


def hoeffding_upper_bound(
    mean: float,
    count: int,
    *,
    failure_probability: float,
    value_range: tuple[float, float] | None,
) -> float:
    """Upper bound of a mean of values in a range, whatever their distribution.

        mean + (b − a) √(log(1/δ) / (2 n))

    Args:
        mean: of the sample.
        count: its size.
        failure_probability: δ.
        value_range: a and b.

    Raises:
        ConfigError: the probability is not between 0 and 1, or the range is missing or empty.

    Source: Hoeffding 1963, theorem 2.

    >>> round(hoeffding_upper_bound(0.1, 100, failure_probability=0.05, value_range=(0.0, 1.0)), 4)
    0.2224
    """
    require_probability(failure_probability)
    if value_range is None or not -math.inf < value_range[0] < value_range[1] < math.inf:
        shown = None if value_range is None else list(value_range)
        raise ConfigError(
            f"the range of costs is {shown} with bound 'hoeffding'; expected the least and the "
            "largest cost there can be, or bound 'student'"
        )
    width = value_range[1] - value_range[0]
    return mean + width * math.sqrt(-math.log(failure_probability) / (2 * count))


def require_probability(failure_probability: float) -> None:
    """Raise ConfigError for a failure probability that is 0 or less, or 1 or more."""
    if not 0 < failure_probability < 1:
        raise ConfigError(
            f"failure_probability is {failure_probability}; expected a probability above 0 and "
            "below 1, 0.05 for example"
        )


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """The number below which Student's t falls with a probability.

    By bisection of the distribution, to about 1e-12 of the number.

    Args:
        probability: above 0 and below 1.
        freedom: degrees of freedom, at least 1.

    >>> round(student_quantile(0.95, 4), 6), round(student_quantile(0.5, 4), 6)
    (2.131847, 0.0)
    """
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _student_tail(high, freedom) > 1 - probability:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (
            (middle, high) if _student_tail(middle, freedom) > 1 - probability else (low, middle)
        )
    return (low + high) / 2


def _student_tail(value: float, freedom: int) -> float:
    """The chance of more than a value of 0 or more."""
    return 0.5 * _incomplete_beta(freedom / (freedom + value * value), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction.

    Source: DLMF 8.17.22, evaluated by the method of Lentz, with the symmetry of 8.17.4.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * fraction
