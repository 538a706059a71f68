"""Verdicts with quoted evidence, and where the quotes stand."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.errors import ConfigError
from tokencredit.judge.evidence import (
    EMPTY,
    NOWHERE,
    WITHOUT,
    Criterion,
    evidence_verdict,
    quote_spans,
    quoted_criteria,
)
from tokencredit.judge.questions import harmless_places, harmless_text
from tokencredit.judge.scores import judged_scores
from tokencredit.judge.setups import JUDGE_SETUPS, JudgeSetup, evidence_setup
from tokencredit.judge.verdicts import CriterionVerdict, Reply

TWO = [Criterion("true", weight=3.0), Criterion("short")]
FINE = {"true": {"score": 2, "quotes": ["a", "b"]}, "short": {"score": -2, "quotes": []}}


def read(said, **reply):
    text = said if isinstance(said, str) else json.dumps(said)
    return evidence_verdict(Reply(text, **reply), TWO, least=-3.0, most=3.0)


def test_the_score_is_the_weighted_mean_and_shares_sum_to_one():
    found = read("It is so. ```json\n" + json.dumps(FINE) + "\n```")
    assert found.score == pytest.approx((3 * 2 - 2) / 4)
    assert [(one.name, one.score, one.share, one.quotes) for one in found.criteria] == [
        ("true", 2.0, 0.75, ("a", "b")),
        ("short", -2.0, 0.25, ()),
    ]


UNREADABLE = {
    "no JSON object": "true: 2",
    "has not just the names": {"true": FINE["true"]},
    "a criterion has not just": FINE | {"short": 2},
    "a criterion has not": FINE | {"short": {"score": 2}},
    "quotes are no list of texts": FINE | {"short": {"score": 2, "quotes": "a"}},
    "quotes are no list": FINE | {"short": {"score": 2, "quotes": [1]}},
    "a number is not in": FINE | {"short": {"score": 4, "quotes": []}},
    "a value is no number": FINE | {"short": {"score": "2", "quotes": []}},
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_a_reply_that_cannot_be_read_has_a_reason(reason):
    found = read(UNREADABLE[reason])
    assert found.score != found.score
    assert reason in found.reason
    assert found.criteria == ()


def test_a_reply_that_was_cut_off_is_not_read():
    assert read(FINE, ended=False).reason == "the reply was cut off"
    twice = '{"true": {"score": 1, "score": 2, "quotes": []}, "short": {"score": 1, "quotes": []}}'
    assert "a criterion has not just" in read(twice).reason


SPANS = {
    "as it is": ("The plot is thin.", "plot is", [(4, 11)]),
    "all places": ("so so good", "so", [(0, 2), (3, 5)]),
    "overlapping": ("aa aa aa", "aa aa", [(0, 5), (3, 8)]),
    "white space around": ("a good film", "  good\n", [(2, 6)]),
    "not inside words": ("smart art", "art", [(6, 9)]),
    "inside words alone": ("smart", "art", [(2, 5)]),
    "case as it is first": ("Good. good.", "good", [(6, 10)]),
    "other case": ("A GOOD film", "good", [(2, 6)]),
    "white space": ("a  very\n\tgood film", "very good", [(3, 13)]),
    "case that grows": ("der Fuß tut weh", "fuss tut", [(4, 11)]),
    "nowhere": ("a good film", "a bad film", []),
    "other words between": ("good and long", "good long", []),
    "no white space": ("therefore", "there fore", []),
    "empty": ("a good film", " \n", []),
    "in an empty text": ("", "a", []),
    "a broken mark": ("x </response> y", "x < /response> y", [(0, 15)]),
    "that mark as it was": ("x </response> y", "</response>", [(2, 13)]),
    "a regular expression": ("a.b a+b", "a+b", [(4, 7)]),
}


@pytest.mark.parametrize("name", SPANS)
def test_where_a_quote_stands(name):
    text, quote, spans = SPANS[name]
    assert quote_spans(text, quote) == spans


def normal(text):
    return re.sub(r"\s+", " ", harmless_text(text).casefold()).strip()


@given(st.text("ab AB\n.<|>", max_size=12), st.text("ab AB\n.<|>", max_size=4))
def test_every_place_has_the_words_of_the_quote(text, quote):
    spans = quote_spans(text, quote)
    assert spans == sorted(set(spans))
    for start, end in spans:
        assert normal(text[start:end]) in (normal(quote), quote.strip().casefold())
    if quote.strip() and quote.strip() in text:
        assert spans


@given(st.text("a<|>[]/s", max_size=12))
def test_places_of_harmless_text_hold_its_characters(text):
    shown, places = harmless_text(text), harmless_places(text)
    assert len(shown) == len(places)
    kept = [at for n, at in enumerate(places) if n == 0 or places[n - 1] != at]
    assert kept == list(range(len(text)))
    assert all(one in (text[at], " ") for one, at in zip(shown, places, strict=True))


def test_quotes_that_are_of_no_use_are_counted_by_their_reasons():
    said = [
        CriterionVerdict("true", 2.0, 0.5, ("good", "bad", "", "film")),
        CriterionVerdict("short", -1.0, 0.5),
    ]
    found, lost = quoted_criteria("a good film, good", said)
    assert [(one.name, one.score, one.share) for one in found] == [
        ("true", 2.0, 0.5),
        ("short", -1.0, 0.5),
    ]
    assert [one.spans for one in found] == [((2, 6), (7, 11), (13, 17)), ()]
    assert lost == {NOWHERE: 1, EMPTY: 1, WITHOUT: 1}
    assert quoted_criteria("good", said[:1])[1] == {NOWHERE: 2, EMPTY: 1}


def test_the_set_up_asks_for_its_criteria_and_gives_what_is_quoted():
    setup, seen = evidence_setup([Criterion("true", "it is right"), TWO[1]]), []

    def judge(questions):
        seen.extend(question.messages[0]["content"] for question in questions)
        return [Reply("?") if ">\nno\n<" in text else Reply(json.dumps(FINE)) for text in seen]

    found = judged_scores(judge, setup, ["p", "q"], [["a b", "no"], ["b"]], most_unreadable=0.5)
    assert "- true: it is right\n- short\n" in seen[0]
    assert [group.tolist()[0] for group in found.scores] == [0.0, 0.0]
    assert [[len(one) for one in group] for group in found.criteria] == [[2, 0], [2]]
    assert found.criteria[1][0][0].quotes == ("a", "b")
    plain = judged_scores(lambda asked: [Reply(logprobs={"yes": 1.0, "no": 0.0})] * len(asked),
                          JUDGE_SETUPS["rlbff"], ["p"], [["x"]], principle="q")  # fmt: skip
    assert plain.criteria == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Criterion(" "),
        lambda: Criterion('a"b'),
        lambda: Criterion("a", "{prompt}"),
        lambda: Criterion("a", weight=0.0),
        lambda: evidence_setup([]),
        lambda: evidence_setup([Criterion("a"), Criterion("a", "again")]),
        lambda: JudgeSetup("w", "s", "list", "{responses}", lambda *_: [], criteria=tuple(TWO)),
    ],
)
def test_criteria_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="expected"):
        wrong()
