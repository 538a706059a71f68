"""Verdicts: literal replies, and replies that must not be read."""

import math

import pytest
import torch

from tokencredit.errors import DataError
from tokencredit.judge.verdicts import (
    Reply,
    expected_digit_verdict,
    json_verdicts,
    pooled_answers,
    rubric_verdict,
    tagged_choice_verdict,
    tagged_number_verdict,
    two_way_verdict,
)

DIGITS = [str(digit) for digit in range(10)]


def unreadable(verdict):
    assert math.isnan(verdict.score)
    assert verdict.reason
    assert not verdict.readable
    return verdict.reason


def test_yes_against_no():
    reply = Reply(logprobs={"yes": math.log(0.6), "no": math.log(0.2)})
    assert two_way_verdict(reply, "yes", "no").score == pytest.approx(math.log(3.0), abs=1e-12)
    assert two_way_verdict(reply, "no", "yes").score == pytest.approx(-math.log(3.0), abs=1e-12)


def test_a_constant_added_to_all_logits_changes_nothing():
    shifted = Reply(logprobs={"yes": 7.25, "no": 5.0})
    assert two_way_verdict(shifted, "yes", "no").score == 2.25
    logits = dict(zip(DIGITS, [float(value % 4) for value in range(10)], strict=True))
    moved = {digit: value + 50.0 for digit, value in logits.items()}
    assert expected_digit_verdict(Reply(logprobs=moved), DIGITS).score == pytest.approx(
        expected_digit_verdict(Reply(logprobs=logits), DIGITS).score, abs=1e-12
    )


def test_spellings_are_pooled():
    spelled = [("Yes", math.log(0.1)), (" yes", math.log(0.2)), ("YES\n", math.log(0.3)),
               ("No", math.log(0.1)), ("Yesterday", 9.0), ("", 9.0)]  # fmt: skip
    pooled = pooled_answers(spelled, ["yes", "no"])
    assert pooled == pytest.approx({"yes": math.log(0.6), "no": math.log(0.1)}, abs=1e-12)
    assert two_way_verdict(Reply(logprobs=pooled), "yes", "no").score == pytest.approx(math.log(6))


def test_an_answer_that_is_not_listed_is_not_guessed():
    assert "'no'" in unreadable(two_way_verdict(Reply(logprobs={"yes": -0.1}), "yes", "no"))
    assert "finite" in unreadable(
        two_way_verdict(Reply(logprobs={"yes": -math.inf, "no": -math.inf}), "yes", "no")
    )


def test_the_expected_digit():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, generator=generator, dtype=torch.float64)
    reply = Reply(logprobs=dict(zip(DIGITS, logits.tolist(), strict=True)))
    expected = float((logits.softmax(0) * torch.arange(10)).sum())
    assert expected_digit_verdict(reply, DIGITS).score == pytest.approx(expected, abs=1e-12)


def test_digits_that_are_not_listed_must_not_matter():
    seen = {"8": math.log(0.5), "9": math.log(0.5)}
    little, much = math.log(1e-3 / 8.1), math.log(1e-3 / 7.9)
    read = expected_digit_verdict(Reply(logprobs=seen, bound=little), DIGITS)
    assert read.score == pytest.approx(8.5, abs=1e-12)
    assert "8 digits" in unreadable(
        expected_digit_verdict(Reply(logprobs=seen, bound=much), DIGITS)
    )
    unreadable(expected_digit_verdict(Reply(logprobs=seen), DIGITS))
    unreadable(expected_digit_verdict(Reply(bound=little), DIGITS))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<answer>[[A]]</answer>", 1.0),
        ("[[B]]", -1.0),
        ("It is [[A]] at first sight." + 80 * " " + "[[B]]", -1.0),
        ("[[A]] [[A]]", 1.0),
    ],
)
def test_tagged_choices(text, score):
    assert tagged_choice_verdict(Reply(text)).score == score


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither"),
        ("A", "neither"),
        ("[ [A] ]", "neither"),
        ("[[C]]", "neither"),
        ("[[a]]", "neither"),
        ("[[A]]" + 80 * ".", "neither"),
        ("[[A]] [[B]]", "both"),
        ("the response says [[B]], so [[A]]", "both"),
    ],
)
def test_choices_that_cannot_be_read(text, reason):
    assert reason in unreadable(tagged_choice_verdict(Reply(text)))


@pytest.mark.parametrize(
    ("text", "score"), [("<answer>-3</answer>", -3.0), ("<ANSWER> +1.5\n</ANSWER>", 1.5),
                        ("<answer>2</answer> no: <answer>0</answer>", 0.0)]
)  # fmt: skip
def test_tagged_numbers(text, score):
    assert tagged_number_verdict(Reply(text), least=-3.0, most=3.0).score == score


@pytest.mark.parametrize(
    "text", ["", "3", "<answer>", "<answer>4</answer>", "<answer>1 or 2</answer>",
             "<answer>1</answer><answer>good</answer>", "<answer>nan</answer>"]
)  # fmt: skip
def test_numbers_that_cannot_be_read(text):
    unreadable(tagged_number_verdict(Reply(text), least=-3.0, most=3.0))


@pytest.mark.parametrize(
    "text",
    [
        '{"1": 2, "2": 4.5}',
        'I think so.\n```json\n{"2": 4.5, "1": 2}\n```\n',
        # A response that brings a verdict of its own, which the judge quotes.
        'The first one says {"1": 5, "2": 1} and {"x" in braces}. {"1": 2, "2": 4.5}',
        '"}" and "{" {{{ {"1": 2, "2": 4.5}',
    ],
)
def test_the_object_that_closes_the_reply(text):
    found = json_verdicts(Reply(text), ["1", "2"], least=1.0, most=5.0)
    assert [one.score for one in found] == [2.0, 4.5]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ('{"1": 2, "2": 4', "no JSON object"),
        ("{'1': 2, '2': 4}", "no JSON object"),
        ('{"1": 2, "2": 4} I quote: nothing', "no JSON object"),
        ('[{"1": 2, "2": 4}]', "no JSON object"),
        ('{"1": 2}', "names"),
        ('{"1": 2, "2": 4, "3": 4}', "names"),
        ('{"1": 2, "2": 4, "1": 5}', "names"),
        ('{"scores": {"1": 2, "2": 4}}', "names"),
    ],
)
def test_objects_that_cannot_be_read(text, reason):
    for verdict in json_verdicts(Reply(text), ["1", "2"], least=1.0, most=5.0):
        assert reason in unreadable(verdict)


@pytest.mark.parametrize(
    "value", ["6", "0", "NaN", "Infinity", '"4"', "true", "null", "[4]", "1e999"]
)
def test_values_that_are_no_ratings(value):
    first, second = json_verdicts(
        Reply(f'{{"1": {value}, "2": 4}}'), ["1", "2"], least=1.0, most=5.0
    )
    unreadable(first)
    assert second.score == 4.0


def test_a_reply_that_was_cut_off_is_not_read():
    readings = [
        tagged_choice_verdict(Reply("[[A]]", ended=False)),
        tagged_number_verdict(Reply("<answer>1</answer>", ended=False), least=0.0, most=1.0),
        *json_verdicts(Reply('{"1": 1}', ended=False), ["1"], least=0.0, most=1.0),
    ]
    assert [unreadable(verdict) for verdict in readings] == ["the reply was cut off"] * 3


def test_a_rubric_is_a_weighted_mean():
    reply = Reply('{"true": 4, "short": 1, "kind": 2}')
    weights = {"true": 2.0, "short": 1.0, "kind": 1.0}
    assert rubric_verdict(reply, weights, least=1.0, most=5.0).score == 2.75
    assert "names" in unreadable(rubric_verdict(reply, {"true": 1.0}, least=1.0, most=5.0))
    unreadable(rubric_verdict(reply, weights, least=2.0, most=5.0))
    for wrong in ({}, {"true": 0.0}, {"true": math.nan}):
        with pytest.raises(DataError, match="positive"):
            rubric_verdict(reply, wrong, least=1.0, most=5.0)
