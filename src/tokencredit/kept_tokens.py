"""Scores of responses of which only some tokens are kept: what perturbation asks of a scorer.

Credit by perturbation and tests of faithfulness ask the same question: what would the score be
without these tokens? Neither knows a model. Both are given a function that answers, for every
response and each of several subsets of its tokens at once, so that whoever scores can leave out
what was asked twice and put texts of like length together.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import NumericError, ShapeError

ScoresOfKept = Callable[[Bool[Tensor, "batch subsets time"]], Float[Tensor, "batch subsets"]]
"""Scores of each response, in nats, when of its tokens only those that are True stay.

Tokens outside the response mask are never True and never meant: the prompt, and what stands inside
a response but does not count, always stay. The same subset may be asked for more than once."""


def kept_scores(
    scores_of_kept: ScoresOfKept, keep: Bool[Tensor, "batch subsets time"]
) -> Float[Tensor, "batch subsets"]:
    """What the function says of these subsets, checked, in float64.

    Args:
        scores_of_kept: as `ScoresOfKept`; not called where there is nothing to score.
        keep: True on the tokens that stay.

    Returns:
        Scores in nats, finite.

    Raises:
        ShapeError: there is not one score per response and subset.
        NumericError: a score is NaN or infinite.

    >>> import torch
    >>> values = torch.tensor([[1.0, 2.0, 3.0]])
    >>> keep = torch.tensor([[[True, True, True], [True, False, True]]])
    >>> kept_scores(lambda keep: (keep * values[:, None]).sum(-1), keep)
    tensor([[6., 4.]], dtype=torch.float64)
    """
    if 0 in keep.shape[:2]:
        return keep.new_zeros(keep.shape[:2]).double()
    scores = scores_of_kept(keep)
    if scores.shape != keep.shape[:2]:
        raise ShapeError(
            f"scores_of_kept gives scores of shape {tuple(scores.shape)} for subsets of shape "
            f"{tuple(keep.shape)}; expected one score per response and subset, (batch, subsets)"
        )
    finite = scores.isfinite().all(-1)
    if not bool(finite.all()):
        raise NumericError(
            "scores_of_kept gives NaN or infinite scores for responses "
            f"{(~finite).nonzero().flatten().tolist()}; expected finite ones, also where no token "
            "is kept: values of tokens that are not kept must not be multiplied but selected"
        )
    return scores.double()
