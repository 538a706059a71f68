"""What best-of-n would reach, estimated from more draws than n."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError


def expected_best_of_n(
    scores: Float[Tensor, "prompts draws"],
    values: Float[Tensor, "rows columns"],
    sizes: Sequence[int],
) -> Float[Tensor, "prompts sizes"]:
    """Expected value of the response with the highest score among n, without bias.

    Every subset of n of the N draws counts once. The draw with the i-th lowest score is the best of
    C(i − 1, n − 1) of the C(N, n) subsets:

        Σ_i C(i − 1, n − 1) / C(N, n) · v_(i)

    Draws with equal scores share the value of their mean, as if one of them were taken at random.
    The KL divergence of best-of-n from the policy that is drawn from is at most
    log n − (n − 1)/n nats.

    Args:
        scores: chosen by.
        values: of the same draws, what is to be known: the true reward, or the scores themselves.
        sizes: n of each estimate, from 1 to the number of draws.

    Returns:
        One estimate per prompt and size, in the units of `values`.

    Raises:
        ConfigError: a size is below 1 or above the number of draws.
        ShapeError: scores and values differ in shape.

    Source: the estimator of Nakano et al. 2021, "WebGPT", arXiv 2112.09332; the
    bound is that of Beirami et al. 2024, arXiv 2401.01879.

    >>> scores, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 30.0, 20.0]])
    >>> expected_best_of_n(scores, values, [1, 2, 3])
    tensor([[20.0000, 23.3333, 20.0000]])
    """
    if scores.shape != values.shape:
        raise ShapeError(
            f"scores have shape {tuple(scores.shape)} and values {tuple(values.shape)}; expected "
            "one value for each score"
        )
    draws = scores.shape[1]
    wrong = [size for size in sizes if not 1 <= size <= draws]
    if wrong:
        raise ConfigError(f"a size is {wrong[0]}; expected 1 to {draws}, the number of draws")
    ordered, order = scores.double().sort(dim=1)
    sorted_values = _mean_of_equals(ordered, values.double().gather(1, order))
    # log C(i − 1, n − 1) − log C(N, n): the numbers themselves overflow from some 1,000 draws.
    place = torch.arange(draws, dtype=torch.float64, device=scores.device)[:, None]  # (draws, 1)
    size = torch.tensor(list(sizes), dtype=torch.float64, device=scores.device)  # (sizes)
    chance = _log_choose(place, size - 1) - _log_choose(torch.full_like(size, draws), size)
    return (sorted_values @ chance.exp()).to(values.dtype)


def _mean_of_equals(
    ordered: Float[Tensor, "prompts draws"], values: Float[Tensor, "prompts draws"]
) -> Float[Tensor, "prompts draws"]:
    """Values of draws in their order, those of equal scores replaced by their mean."""
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = starts.cumsum(1) - 1
    sums = torch.zeros_like(values).scatter_add(1, group, values)
    counts = torch.zeros_like(values).scatter_add(1, group, torch.ones_like(values))
    return (sums / counts.clamp(min=1)).gather(1, group)


def _log_choose(total: Tensor, chosen: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient; −∞ where more are chosen than there are."""
    left = total - chosen
    found = torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - left.clamp(min=0).add(1).lgamma()
    return found.where(left >= 0, -torch.inf)
