import math

import pytest
import torch

from tokencredit.errors import NumericError, ShapeError
from tokencredit.kept_tokens import kept_scores

KEEP = torch.tensor([[[True, False], [True, True]], [[False, False], [True, True]]])


def count(keep):
    return keep.sum(-1).float()


def test_literal():
    scores = kept_scores(count, KEEP)
    assert scores.dtype == torch.float64
    assert scores.tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2)])
def test_nothing_to_score_is_not_scored(shape):
    def forbidden(_):
        raise AssertionError

    assert kept_scores(forbidden, torch.zeros(shape).bool()).shape == shape[:2]


@pytest.mark.parametrize("scores", [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 2, 2)])
@pytest.mark.usefixtures("unchecked")
def test_one_score_per_response_and_subset(scores):
    with pytest.raises(ShapeError, match="one score per response and subset"):
        kept_scores(lambda _: scores, KEEP)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_are_finite(bad):
    with pytest.raises(NumericError, match=r"for responses \[1\].*selected"):
        kept_scores(lambda keep: torch.where(keep.any(-1), 1.0, bad), KEEP)
