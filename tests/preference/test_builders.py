"""Pairs of what is known of answers, by each row of the table."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.builders import PAIR_BUILDERS, built_pairs
from tokencredit.preference.pair_making import AnswerGroup, BuilderSettings
from tokencredit.preference.word_vectors import word_vectors


def group(*texts, prompt="Why?", cells=None, **numbers):
    known = {name: tuple(map(float, values)) for name, values in numbers.items()}
    return AnswerGroup(prompt, texts, (True,) * len(texts), known, cells or {})


def sides(built):
    return [(row["chosen"], row["rejected"]) for row in built.rows]


def test_ratings_need_a_gap_beyond_their_errors():
    answers = group("a", "b", "c", rating=[5, 4.9, 1], error=[0.1, 0.1, 0.1])
    built = built_pairs("ratings", [answers], BuilderSettings(z=3.0))
    assert sides(built) == [("a", "c"), ("b", "c")]
    assert [row["margin"] for row in built.rows] == pytest.approx([4, 3.9])
    everything = built_pairs("ratings", [answers], BuilderSettings(z=0.0))
    assert sides(everything) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_what_has_no_rating_or_error_is_counted_and_in_no_pair():
    answers = group("a", "b", "c", rating=[5, math.nan, 1], error=[0, 0, math.nan])
    built = built_pairs("ratings", [answers, group("d", rating=[1])], BuilderSettings())
    assert built.rows == []
    assert {name: count for name, count in built.counts.items() if count} == {
        "answers without a rating": 1,
        "answers without an error": 1,
        "prompts without a pair": 1,
        "prompts with fewer than 2 answers": 1,
    }


def test_the_first_factor_that_differs_enough_decides_and_less_may_be_better():
    answers = group("a", "b", "c", errors=[2, 0, 0], length=[9, 1, 5])
    built = built_pairs("factors", [answers], BuilderSettings(factors=("-errors", "length")))
    assert set(sides(built)) == {("b", "a"), ("c", "a"), ("c", "b")}
    # Errors differ by less than three of their standard deviations, so that length alone decides.
    wide = BuilderSettings(factors=("-errors", "length"), thresholds=(3.0, 0.0))
    assert set(sides(built_pairs("factors", [answers], wide))) == {
        ("a", "b"),
        ("a", "c"),
        ("c", "b"),
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-9, 9, width=16), min_size=2, max_size=5), st.floats(0.5, 8, width=16))
def test_one_factor_without_threshold_is_the_order_of_ratings_in_any_unit(values, unit):
    texts = [str(at) for at in range(len(values))]
    factors = BuilderSettings(factors=("value",))
    one = built_pairs("factors", [group(*texts, value=values)], factors)
    other = built_pairs("ratings", [group(*texts, rating=[v * unit for v in values])],
                        BuilderSettings())  # fmt: skip
    assert set(sides(one)) == set(sides(other))


def test_factors_have_to_be_named_with_a_threshold_each():
    with pytest.raises(ConfigError, match=r"no build\.factors"):
        built_pairs("factors", [group("a", "b")], BuilderSettings())
    with pytest.raises(ConfigError, match="thresholds has 2 numbers and factors 1"):
        BuilderSettings(factors=("a",), thresholds=(1.0, 2.0))


def test_consensus_takes_the_best_of_those_that_say_the_same():
    answers = group(" Ulm", "ulm", "ULM ", "Bonn", score=[1, 3, 2, 9])
    built = built_pairs("consensus", [answers], BuilderSettings())
    assert sides(built) == [("ulm", "Bonn")]
    # A column may say otherwise who means the same.
    apart = group(*"abcd", score=[1, 3, 2, 9], cells={"group": ("x", "y", "y", "y")})
    assert sides(built_pairs("consensus", [apart], BuilderSettings())) == [("d", "a")]
    none = group(*"abcd", score=[1, 3, 2, 9])
    assert built_pairs("consensus", [none], BuilderSettings()).counts == {
        "prompts without a consensus, or with nothing else": 1
    }


def test_a_design_asks_about_directions_that_nobody_asked_about():
    same, other = (0.0, 0.0), (0.0, 1.5)
    groups = [
        group("a", "b", prompt="1", cells={"features": ((2.0, 0.0), same)}),
        group("c", "d", prompt="2", cells={"features": ((2.0, 0.0), same)}),
        group("e", "f", prompt="3", cells={"features": (other, same)}),
    ]
    built = built_pairs("design", groups, BuilderSettings(count=2))
    assert [row["responses"] for row in built.rows] == [["a", "b"], ["e", "f"]]
    assert [row["gain"] for row in built.rows] == pytest.approx([math.log(5), math.log(3.25)])
    assert built.counts["pairs that are not asked"] == 1
    ragged = group("a", "b", cells={"features": ((1.0,), (1.0, 2.0))})
    with pytest.raises(DataError, match="vectors of one length"):
        built_pairs("design", [ragged], BuilderSettings())


def test_contrast_exchanges_answers_of_prompts_that_are_nearly_alike():
    groups = [
        group("one", prompt="name two rivers in Bavaria"),
        group("two", prompt="name two rivers in Saxony"),
        group("far", prompt="why is the sky blue"),
    ]
    built = built_pairs("contrast", groups, BuilderSettings(least_likeness=0.5))
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in built.rows] == [
        ("name two rivers in Bavaria", "one", "two"),
        ("name two rivers in Saxony", "two", "one"),
    ]
    assert built.counts["prompts that are like no other"] == 1


def test_a_tree_has_pairs_by_score_with_the_tokens_that_both_share():
    cells = {"tokens": ((1, 2, 3), (1, 2, 4), (5,))}
    built = built_pairs("tree", [group(*"abc", score=[1, 2, 2], cells=cells)], BuilderSettings())
    assert [(row["chosen"], row["rejected"], row["shared_tokens"]) for row in built.rows] == [
        ("b", "a", 2),
        ("c", "a", 0),
    ]
    assert built.counts["pairs of equal scores"] == 1
    unjudged = built_pairs("tree", [group(*"abc", cells=cells)], BuilderSettings())
    assert [row["responses"] for row in unjudged.rows] == [["a", "b", "c"]]


def test_most_pairs_are_drawn_by_the_seed_alone():
    answers = group(*"abcdef", rating=range(6))
    few = BuilderSettings(most_pairs=3, seed=1)
    one, again = (built_pairs("ratings", [answers], few) for _ in range(2))
    assert sides(one) == sides(again)
    assert len(one.rows) == 3
    assert one.counts["pairs beyond most_pairs"] == len(list(combinations(range(6), 2))) - 3
    other = BuilderSettings(most_pairs=3, seed=2)
    assert sides(built_pairs("ratings", [answers], other)) != sides(one)


def test_equal_texts_are_no_pair():
    built = built_pairs("ratings", [group("a", "a", rating=[2, 1])], BuilderSettings())
    assert built.rows == []
    assert built.counts["pairs of equal answers"] == 1


def test_rare_words_weigh_more():
    vectors = word_vectors(["the plot", "the film", ""])
    assert vectors.shape == (3, 3)
    the, plot = vectors[0, 0], vectors[0, 1]
    assert the == pytest.approx(1 + math.log(4 / 3))
    assert plot == pytest.approx(1 + math.log(2))
    assert torch.equal(vectors[2], torch.zeros(3, dtype=torch.float64))


def test_every_setting_belongs_to_a_method():
    known = {name for row in PAIR_BUILDERS.values() for name in row.settings}
    assert known == set(BuilderSettings.__dataclass_fields__)
