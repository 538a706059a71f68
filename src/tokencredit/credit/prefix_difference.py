"""What each token adds to the reward model's score of the text so far."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ShapeError


def prefix_difference_credit(
    prefix_scores: Float[Tensor, "batch time_plus_1"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    r"""Score of the prefix with a token minus the score of the prefix without it.

    .. math:: r_t = R(x, y_{\le t}) - R(x, y_{<t})

    Conserves: up to the score of the prompt. Causal: yes. Bounded: no. Needs: prefix scores.

    It is the terminal reward plus a potential-based shaping with potential `R(prefix)`, zero after
    the end, so in place of the terminal reward it leaves the optimal policy where it was (Ng et
    al. 1999). The scores are only as good as the reward model is on prefixes: train it on
    them (`prefix_bradley_terry_loss`).

    Args:
        prefix_scores: in nats; column 0 is the prompt alone, column t + 1 ends with response token
            t. Columns that end outside the mask are ignored: a token that the policy did not
            choose leaves its change to the next one that it did.
        response_mask: True on response tokens.

    Returns:
        Token scores in nats; each row sums to score(response) - score(prompt).

    Raises:
        ShapeError: there is not exactly one more prefix than there are tokens.

    Source: Li et al. 2024, arXiv 2411.08302, reward redistribution (R3HF, later RED); with a
    reward model trained on prefixes as in Rashid et al. 2024, arXiv 2406.07780.

    >>> prefix_difference_credit(torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([[True, True]]))
    tensor([[ 1.5000, -1.0000]])
    """
    if prefix_scores.shape[1] != response_mask.shape[1] + 1:
        raise ShapeError(
            f"{prefix_scores.shape[1]} prefix scores for {response_mask.shape[1]} tokens; expected "
            "one more than tokens, the first of the prompt alone"
        )
    columns = torch.arange(1, prefix_scores.shape[1], device=prefix_scores.device)
    last_counted = torch.where(response_mask, columns, 0).cummax(-1).values
    before = torch.cat([torch.zeros_like(last_counted[:, :1]), last_counted[:, :-1]], dim=-1)
    scores = prefix_scores.float()
    differences = scores.gather(-1, last_counted) - scores.gather(-1, before)
    return differences.masked_fill(~response_mask, 0.0)
