"""Errors that xCOMET finds, as labels of tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.credit.token_judges import MQM_SCORES
from tokencredit.errors import DataError
from tokencredit.preference.error_spans import (
    MQM_SEVERITIES,
    error_severity_ids,
    labelled_error_spans,
)
from tokencredit.preference.labels import LabelledSpan

TEXT = "Can I receive my food?"
WORDS = [(0, 3), (3, 5), (5, 13), (13, 16), (16, 21), (21, 22), (22, 22)]
# As the README of unbabel-comet shows it: the span begins with the space before its first word.
PUBLISHED = """[
  {"confidence": 0.4160953164100647, "end": 21, "severity": "minor", "start": 13,
   "text": "my food"}
]"""


def span(start, end, severity="minor", confidence=0.5):
    return {"start": start, "end": end, "severity": severity, "confidence": confidence}


def test_the_published_output():
    found = json.loads(PUBLISHED)
    assert labelled_error_spans(found) == (LabelledSpan(13, 21, "minor"),)
    assert error_severity_ids(TEXT, found, WORDS).tolist() == [0, 0, 0, 1, 1, 0, 0]


def test_the_worst_severity_wins_and_unsure_spans_are_left_out():
    found = [span(0, 5, "critical", 0.3), span(0, 13, "major", 0.6), span(3, 5, "minor", 0.9)]
    assert error_severity_ids(TEXT, found, WORDS).tolist() == [3, 3, 2, 0, 0, 0, 0]
    sure = error_severity_ids(TEXT, found, WORDS, least_confidence=0.6)
    assert sure.tolist() == [2, 2, 2, 0, 0, 0, 0]
    assert error_severity_ids(TEXT, found, WORDS, least_confidence=1.0).tolist() == [0] * 7


def test_severities_are_those_of_the_penalties():
    assert len(MQM_SCORES) == 1 + len(MQM_SEVERITIES)
    renamed = error_severity_ids(TEXT, [span(0, 3, "bad")], WORDS, severities=["bad"])
    assert renamed.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_no_errors():
    assert labelled_error_spans([]) == ()
    assert error_severity_ids(TEXT, [], WORDS).tolist() == [0] * 7
    assert error_severity_ids("", [], []).tolist() == []


def test_a_span_without_a_character_is_left_out():
    """The token that begins a sequence has the characters from 0 to 0."""
    assert labelled_error_spans([span(0, 0), span(0, 1)]) == (LabelledSpan(0, 1, "minor"),)


edges = st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True).map(sorted)


@given(st.lists(st.tuples(edges, st.sampled_from(MQM_SEVERITIES), st.floats(0, 1)), max_size=5))
def test_character_by_character(drawn):
    found = [span(*ends, severity, sure) for ends, severity, sure in drawn]
    letters = [(at, at + 1) for at in range(12)]
    ids = error_severity_ids("x" * 12, found, letters, least_confidence=0.5)
    for at, number in enumerate(ids.tolist()):
        over = [s for (a, b), s, sure in drawn if a <= at < b and sure >= 0.5]
        assert number == max((1 + MQM_SEVERITIES.index(s) for s in over), default=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 3, "end": 5, "severity": "minor"},
        span(5, 3),
        span(-1, 3),
        span(0.5, 3),
        span(0, 3, severity=2),
        span(0, 3, confidence="high"),
        span(0, 3, confidence=float("nan")),
        [0, 3, "minor", 0.5],
    ],
)
def test_what_is_no_error_span(unchecked, wrong):
    for function in (labelled_error_spans, lambda s: error_severity_ids(TEXT, s, WORDS)):
        with pytest.raises(DataError, match="is no error span; expected an object with whole"):
            function([wrong])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(span(0, 99), "ends after the text"), (span(0, 3, "fatal"), "'fatal'; expected one of")],
)
def test_errors_that_do_not_fit_the_text_or_the_severities(wrong, message):
    with pytest.raises(DataError, match=message):
        error_severity_ids(TEXT, [wrong], WORDS)
