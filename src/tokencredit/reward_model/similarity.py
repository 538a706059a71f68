"""How like a response is to a reference, token by token, by their embeddings (BMAS)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from tokencredit.errors import ShapeError
from tokencredit.masking import masked_row_mean


def best_match_similarity(
    response: Float[Tensor, "batch time width"],
    reference: Float[Tensor, "batch other width"],
    response_mask: Bool[Tensor, "batch time"],
    reference_mask: Bool[Tensor, "batch other"],
) -> Float[Tensor, "batch"]:
    """Mean cosine of every token with the one that it is likest in the other text, both ways.

        s = ½ (mean_i max_j cos(e_i, e'_j) + mean_j max_i cos(e_i, e'_j))

    Words in another order are as like; a text that says less, or more, than the other is not.

    Args:
        response: e, embeddings of the tokens of each response.
        reference: e', of its reference.
        response_mask: True on real tokens of the response.
        reference_mask: True on real tokens of the reference.

    Returns:
        Without a unit, from -1 to 1, in float32: 1 for equal texts, 0 where one of both is empty;
        the same when response and reference change places.

    Raises:
        ShapeError: embeddings and masks do not fit each other.

    Source: Xu et al. 2025, arXiv 2505.24164 (Mixed-R1), the bidirectional max-average similarity,
    of which the abstract was read: the formula is written from its name.

    >>> words = torch.eye(3)[None]
    >>> all_there, two = torch.ones(1, 3).bool(), torch.tensor([[True, True, False]])
    >>> best_match_similarity(words, words, two, all_there)
    tensor([0.8333])
    """
    cosines = _cosines(response, reference, response_mask, reference_mask)
    counted = (response_mask.any(-1) & reference_mask.any(-1)).float()
    both = [(2, response_mask), (1, reference_mask)]
    ways = [masked_row_mean(cosines.amax(axis)[:, :-1], mask) for axis, mask in both]
    return 0.5 * (ways[0] + ways[1]) * counted


def best_match_token_scores(
    response: Float[Tensor, "batch time width"],
    reference: Float[Tensor, "batch other width"],
    response_mask: Bool[Tensor, "batch time"],
    reference_mask: Bool[Tensor, "batch other"],
) -> Float[Tensor, "batch time"]:
    """What each token of a response has in its similarity to a reference.

        r_i = ½ (max_j cos(e_i, e'_j) / T + Σ_{j: i = argmax} max_i cos(e_i, e'_j) / S)

    Conserves: yes. Causal: no. Bounded: by 1. Needs: embeddings of response and reference.

    Args:
        response: as in `best_match_similarity`.
        reference: as there.
        response_mask: as there.
        reference_mask: as there.

    Returns:
        Token scores; a row sums to `best_match_similarity`. A reference token pays the response
        token that it is likest, the first of equal ones.

    Raises:
        ShapeError: as there.

    >>> words, mask = torch.eye(2)[None], torch.ones(1, 2).bool()
    >>> best_match_token_scores(words, words, mask, mask)
    tensor([[0.5000, 0.5000]])
    """
    cosines = _cosines(response, reference, response_mask, reference_mask)
    counted = (response_mask.any(-1) & reference_mask.any(-1))[:, None]
    own = _shares(cosines.amax(2)[:, :-1], response_mask)
    likest, places = (one[:, :-1] for one in cosines.max(1))
    paid = pad(torch.zeros_like(own), (0, 1)).scatter_add(
        1, places, _shares(likest, reference_mask)
    )[:, :-1]
    return (0.5 * (own + paid)).masked_fill(~(response_mask & counted), 0.0)


def _cosines(
    response: Float[Tensor, "batch time width"],
    reference: Float[Tensor, "batch other width"],
    response_mask: Bool[Tensor, "batch time"],
    reference_mask: Bool[Tensor, "batch other"],
) -> Float[Tensor, "batch time_plus_1 other_plus_1"]:
    """Cosines of all pairs of tokens; below every cosine where one of both is padding."""
    for embeddings, mask in ((response, response_mask), (reference, reference_mask)):
        if embeddings.shape[:2] != mask.shape or len(response) != len(reference):
            raise ShapeError(
                f"embeddings have shape {tuple(embeddings.shape)} and their mask "
                f"{tuple(mask.shape)}, for {len(response)} responses and {len(reference)} "
                "references; expected one embedding per token, and one reference per response"
            )
    first, second = (
        normalize(embeddings.float().masked_fill(~mask[:, :, None], 0.0), dim=-1)
        for embeddings, mask in ((response, response_mask), (reference, reference_mask))
    )
    both = response_mask[:, :, None] & reference_mask[:, None, :]
    cosines = (first @ second.mT).masked_fill(~both, -2.0)
    # A column more, so that there is a likest token where no text has any.
    return pad(cosines, (0, 1, 0, 1), value=-2.0)


def _shares(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Tensor:
    """Values divided by how many count, zero off the mask."""
    return (values / mask.sum(-1, keepdim=True).clamp(min=1)).masked_fill(~mask, 0.0)
