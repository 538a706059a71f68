"""Error spans that xCOMET marks in translations, as labels of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokencredit.errors import DataError
from tokencredit.preference.labels import LabelledSpan, token_span_labels
from tokencredit.text.alignment import Span

MQM_SEVERITIES = ("minor", "major", "critical")
"""The severities of xCOMET, from the mildest to the worst."""


def labelled_error_spans(
    error_spans: Sequence[Mapping[str, Any]], *, least_confidence: float = 0.0
) -> tuple[LabelledSpan, ...]:
    """Error spans of one translation as labelled spans.

    A span without a character is left out: xCOMET labels the token that begins a sequence too.

    Args:
        error_spans: an entry of `predict(...).metadata.error_spans`: objects with `start` and `end`
            in characters of the translation, the end exclusive, `severity` and `confidence`, the
            mean probability of the labels of its tokens. What else they hold is not read.
        least_confidence: spans that xCOMET is less sure of are left out.

    Returns:
        The spans in their order, each labelled with its severity.

    Raises:
        DataError: a span lacks one of these, or ends before it starts.

    Source: Guerreiro et al. 2023, arXiv 2310.10482 (xCOMET); the layout is that of unbabel-comet.
    There a span has the severity of its first token, and one that is still open at the end of the
    sequence is never given.

    >>> span = {"text": "food", "start": 13, "end": 18, "severity": "minor", "confidence": 0.4}
    >>> labelled_error_spans([span])
    (LabelledSpan(start=13, end=18, label='minor'),)
    >>> labelled_error_spans([span], least_confidence=0.5)
    ()
    """
    checked = [_checked(span) for span in error_spans]
    return tuple(
        LabelledSpan(start, end, severity)
        for start, end, severity, confidence in checked
        if start != end and confidence >= least_confidence
    )


def error_severity_ids(
    text: str,
    error_spans: Sequence[Mapping[str, Any]],
    token_spans: Sequence[Span],
    *,
    severities: Sequence[str] = MQM_SEVERITIES,
    least_confidence: float = 0.0,
) -> Int[Tensor, "tokens"]:
    """The severity of the error that each token of a translation is part of.

    Args:
        text: the translation.
        error_spans: those that xCOMET found in it, as in `labelled_error_spans`.
        token_spans: of each token, in characters of `text`, end exclusive.
        severities: from the mildest to the worst.
        least_confidence: as in `labelled_error_spans`.

    Returns:
        `severity_ids` of one row for `severity_credit`: 0 outside all errors, k in one of the k-th
        severity, the worst where several overlap.

    Raises:
        DataError: as in `labelled_error_spans`, a span ends after the text, or its severity is none
            of `severities`.

    Source: Ramos et al. 2024, arXiv 2411.05986: a token has the severity of the span that it
    overlaps.

    >>> spans = [{"start": 4, "end": 7, "severity": "major", "confidence": 0.9}]
    >>> error_severity_ids("not so bad", spans, [(0, 3), (3, 6), (6, 10)])
    tensor([0, 2, 0])
    """
    spans = labelled_error_spans(error_spans, least_confidence=least_confidence)
    return torch.tensor(
        token_span_labels(text, spans, token_spans, severities=severities), dtype=torch.long
    )


def _checked(span: Any) -> tuple[int, int, str, float]:
    """Start, end, severity and confidence of a span, or an error."""
    fields: Mapping[str, Any] = span if isinstance(span, Mapping) else {}
    start, end, severity, confidence = (
        fields.get(name) for name in ("start", "end", "severity", "confidence")
    )
    if (
        isinstance(start, int)
        and isinstance(end, int)
        and isinstance(severity, str)
        and isinstance(confidence, int | float)
        and 0 <= start <= end
        and confidence >= 0
    ):
        return start, end, severity, confidence
    raise DataError(
        f"{span!r} is no error span; expected an object with whole 'start' and 'end', 0 <= start "
        "<= end, 'severity' and 'confidence'"
    )
