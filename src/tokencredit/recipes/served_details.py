"""What the credit of a served model is made from.

A client that has the prefix scores or the attention of a text makes every credit from them itself.
"""

from collections.abc import Sequence

from tokencredit.errors import NumericError
from tokencredit.reward_model.hf_backbone import ResponseScores
from tokencredit.server.rows import TokenRow

# The credit method that is made from each; where it is on offer, the detail is.
DETAILS = {"prefix-scores": "prefix-difference", "attention": "attention"}


def offered_details(credit_methods: Sequence[str]) -> tuple[str, ...]:
    """Names of what is told besides token scores.

    >>> offered_details(("terminal", "attention"))
    ('attention',)
    """
    return tuple(name for name, credit in DETAILS.items() if credit in credit_methods)


def row_details(rows: Sequence[TokenRow], scores: ResponseScores) -> list[dict[str, list[float]]]:
    """What each row asks for besides token scores, under the names of `RowScores`.

    Args:
        rows: of one batch.
        scores: what the model says about it.

    Raises:
        NumericError: an attention that is asked for is NaN.
    """
    return [
        {name.replace("-", "_"): _numbers(row, index, scores, name) for name in row.details}
        for index, row in enumerate(rows)
    ]


def _numbers(row: TokenRow, index: int, scores: ResponseScores, name: str) -> list[float]:
    length = len(row.response_ids)
    if name == "prefix-scores":
        assert scores.prefix_scores is not None
        return scores.prefix_scores[index, : length + 1].tolist()
    assert scores.attention is not None
    attention = scores.attention[index, :length]
    if not bool(attention.isfinite().all()):
        raise NumericError(
            "the attention to a token is NaN; expected finite numbers: look for NaN weights, or "
            "serve the model in float32 or bfloat16 rather than float16"
        )
    return attention.tolist()
