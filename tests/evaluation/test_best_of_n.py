"""Best of n from more draws than n."""

from itertools import combinations
from statistics import mean

import pytest
import torch

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.evaluation.best_of_n import expected_best_of_n


def by_subsets(scores: list[float], values: list[float], size: int) -> float:
    """The mean over all subsets; of equal best scores each is as likely."""
    found = []
    for chosen in combinations(range(len(scores)), size):
        best = max(scores[i] for i in chosen)
        found.append(mean(values[i] for i in chosen if scores[i] == best))
    return mean(found)


@pytest.mark.parametrize(
    "scores", [[0.0, 1.0, -2.0, 5.0, 3.0, 2.5], [4.0, -1.0, 0.5, 2.0, 9.0, 7.0]]
)
def test_every_subset_counts_once(scores: list[float]) -> None:
    values = [3.0, -1.0, 4.0, 1.5, 9.0, -2.5]
    found = expected_best_of_n(torch.tensor([scores]), torch.tensor([values]), range(1, 7))
    expected = [by_subsets(scores, values, size) for size in range(1, 7)]
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=1e-6, atol=1e-6)


def test_equal_scores_share_their_value() -> None:
    scores, values = [1.0, 1.0, 0.0, 1.0], [6.0, 0.0, 5.0, 3.0]
    found = expected_best_of_n(torch.tensor([scores]), torch.tensor([values]), [2, 3, 4])
    expected = [by_subsets(scores, values, size) for size in (2, 3, 4)]
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=1e-6, atol=1e-6)


def test_one_is_the_mean_and_all_is_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, values = torch.randn(2, 3, 2000, generator=generator).double().unbind()
    found = expected_best_of_n(scores, values, [1, 2000])
    torch.testing.assert_close(found[:, 0], values.mean(1))
    torch.testing.assert_close(found[:, 1], values.gather(1, scores.argmax(1)[:, None])[:, 0])


def test_order_of_draws_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, values = torch.randn(2, 2, 50, generator=generator).double().unbind()
    order = torch.randperm(50, generator=generator)
    torch.testing.assert_close(
        expected_best_of_n(scores[:, order], values[:, order], [4, 16]),
        expected_best_of_n(scores, values, [4, 16]),
    )


@pytest.mark.parametrize("size", [0, 4])
def test_a_size_that_there_is_not(size: int) -> None:
    with pytest.raises(ConfigError, match=f"a size is {size}; expected 1 to 3"):
        expected_best_of_n(torch.zeros(1, 3), torch.zeros(1, 3), [size])


def test_a_value_for_each_score() -> None:
    with pytest.raises(ShapeError, match="one value for each score"):
        expected_best_of_n(torch.zeros(1, 3), torch.zeros(1, 2), [1])
