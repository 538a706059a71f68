"""Rewards of spans: several models that each judge pieces of a response, or severities of errors.

Spans of characters become spans of tokens in `preference.spans`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError

MQM_SCORES = (0.0, -1.0, -5.0, -10.0)
"""Correct, minor, major and critical: the penalties of Multidimensional Quality Metrics."""


def span_end_scores(
    span_scores: Sequence[Sequence[float]],
    span_ends: Sequence[Sequence[int]],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """The scores of one model's spans, each at the last token of its span.

    Args:
        span_scores: for each response the score of each of its spans, as many as there are.
        span_ends: likewise the column of the last token of each span. Spans that end at the same
            token add up.
        response_mask: True on response tokens.

    Returns:
        Scores for `fine_grained_credit`; each row sums to the scores of its spans.

    Raises:
        ShapeError: scores, ends and responses differ in number, or a span ends outside the mask,
            where its score would be lost.

    >>> span_end_scores([[0.5, -1.0]], [[1, 2]], torch.tensor([[True, True, True]]))
    tensor([[ 0.0000,  0.5000, -1.0000]])
    """
    counts = [len(span_scores), len(span_ends), len(response_mask)]
    if len(set(counts)) > 1 or list(map(len, span_scores)) != list(map(len, span_ends)):
        raise ShapeError(
            f"span_scores of {counts[0]} responses, span_ends of {counts[1]} and {counts[2]} rows "
            "of response_mask; expected one end for every score of every response"
        )
    rows = torch.tensor([row for row, ends in enumerate(span_ends) for _ in ends]).long()
    columns = torch.tensor([end for ends in span_ends for end in ends]).long()
    inside = (columns >= 0) & (columns < response_mask.shape[-1])
    inside &= response_mask.cpu()[rows, columns.where(inside, 0)]
    if not bool(inside.all()):
        lost = [
            (int(row), int(end)) for row, end in zip(rows[~inside], columns[~inside], strict=True)
        ]
        raise ShapeError(
            f"spans end at (row, column) {lost[:5]}; expected the last token of a span to be a "
            "response token that counts"
        )
    values = torch.tensor([score for scores in span_scores for score in scores])
    scores = torch.zeros(response_mask.shape)
    return scores.index_put_((rows, columns), values.float(), accumulate=True).to(
        response_mask.device
    )


def fine_grained_credit(
    span_scores: Float[Tensor, "models batch time"],
    model_weights: Float[Tensor, "models"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    r"""What several reward models say about spans of their own, weighted, at the ends of the spans.

    .. math:: r_t = \sum_m w_m \sum_j 1[t = e_{m j}] \, R_m(x, y, s_{m j})

    One model may judge pieces of sentences, the next whole sentences, a third the whole response.
    A model that reads beyond the span that it scores makes the credit depend on later tokens.

    Conserves: no. Causal: yes. Bounded: no. Needs: span scores and weights.

    Args:
        span_scores: of each model, the score of a span at the last token of the span and zero
            elsewhere, as `span_end_scores` gives them.
        model_weights: w, one per model.
        response_mask: True on response tokens.

    Returns:
        Token scores; each row sums to the weighted scores of its spans. A model whose scores are
        all of one sign pays for more spans, or against them, and so for length.

    Raises:
        ShapeError: scores, weights and mask do not fit each other.

    Source: Wu et al. 2023, arXiv 2306.01693 (Fine-Grained RLHF). Their code finds the
    ends of sentences in the decoded text and maps them to tokens; here the ends are given.

    >>> pieces = torch.tensor([[0.3, 0.0, -0.3, 0.0]])
    >>> whole = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    >>> scores, weights = torch.stack([pieces, whole]), torch.tensor([1.0, 0.5])
    >>> fine_grained_credit(scores, weights, torch.ones(1, 4).bool())
    tensor([[ 0.3000,  0.0000, -0.3000,  1.0000]])
    """
    if span_scores.shape != (*model_weights.shape, *response_mask.shape):
        raise ShapeError(
            f"span_scores have shape {tuple(span_scores.shape)}, model_weights "
            f"{tuple(model_weights.shape)} and response_mask {tuple(response_mask.shape)}; "
            "expected (models, batch, time), (models) and (batch, time)"
        )
    scores = span_scores.float().masked_fill(~response_mask, 0.0)
    return (model_weights.float()[:, None, None] * scores).sum(0)


def severity_credit(
    severity_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    severity_scores: Float[Tensor, "severities"] | Sequence[float] = MQM_SCORES,
) -> Float[Tensor, "batch time"]:
    r"""The score of the severity of the error that each token is part of.

    .. math:: r_t = \mathrm{SEV}[c_t]

    Conserves: no. Causal: yes. Bounded: by the largest severity score. Needs: severities.

    Severities that depend on the rest of the response, such as those of a model that reads in both
    directions, make the credit depend on it too.

    Args:
        severity_ids: the severity of each token: 0 correct, then from the mildest to the worst, as
            `token_span_labels` or the most likely class of a token classifier give them.
        response_mask: True on response tokens.
        severity_scores: SEV, by default 0, -1, -5 and -10 for correct, minor, major and critical.
            A positive score of correct tokens pays for length.

    Returns:
        Token scores, each of them an entry of `severity_scores`.

    Raises:
        ShapeError: ids and mask differ in shape, or an id inside the mask has no score.

    Source: Ramos et al. 2024, arXiv 2411.05986, which compares several tables; the default is that
    of MQM (Freitag et al. 2021, arXiv 2104.14478: minor 1, major 5) with 10 for critical errors,
    and which of the paper's tables is best could not be checked.

    >>> severity_credit(torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, True]]))
    tensor([[ 0., -1., -5.]])
    """
    table = torch.as_tensor(severity_scores, dtype=torch.float32, device=severity_ids.device)
    if severity_ids.shape != response_mask.shape:
        raise ShapeError(
            f"severity_ids have shape {tuple(severity_ids.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one severity per token"
        )
    ids = severity_ids.masked_fill(~response_mask, 0).long()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
        raise ShapeError(
            f"severity_ids run from {int(ids.min())} to {int(ids.max())} and there are "
            f"{len(table)} severity_scores; expected ids from 0, one score for each"
        )
    return table[ids].masked_fill(~response_mask, 0.0)
