import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import faithfulness as reference

from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.evaluation.faithfulness import (
    FEW_TOKENS,
    FRACTIONS,
    area_under_curve,
    comprehensiveness,
    deletion_curve,
    insertion_curve,
    sufficiency,
)

MEASURES = [
    (deletion_curve, reference.deletion),
    (insertion_curve, reference.insertion),
    (comprehensiveness, reference.comprehensiveness),
    (sufficiency, reference.sufficiency),
]
every_measure = pytest.mark.parametrize("measure", [measure for measure, _ in MEASURES])
same = partial(torch.testing.assert_close, equal_nan=True)


def bent(values):
    """A score in which kept values bear on each other, wherever they stand."""

    def scores(keep):
        kept = torch.where(keep, values[:, None], 0.0)
        return 0.3 + kept.sum(-1) + kept.sum(-1).sin() * kept.square().sum(-1)

    return scores


def random_case(seed, time=8):
    """Values of tokens, token scores with many ties, and a mask with holes and an empty row."""
    torch.manual_seed(seed)
    mask = torch.rand(4, time) < 0.7
    mask[2] = False
    return torch.randn(4, time, dtype=torch.float64), torch.randint(-2, 3, (4, time)).float(), mask


def total(values):
    return lambda keep: 1.0 + torch.where(keep, values[:, None], 0.0).sum(-1)


def test_literals():
    values = torch.tensor([[1.0, -2.0, 4.0, 8.0, 9.0]])
    scores, mask = total(values), torch.tensor([[True] * 4 + [False]])
    fractions = (0.0, 0.25, 0.26, 1.0)
    found = deletion_curve(scores, values, mask, fractions=fractions)
    assert found.tolist() == [[12, 4, 0, 1]]
    found = insertion_curve(scores, values, mask, fractions=fractions)
    assert found.tolist() == [[1, 9, 13, 12]]
    found = deletion_curve(scores, values, mask, fractions=fractions, direction="low")
    assert found.tolist() == [[12, 14, 13, 1]]
    found = insertion_curve(scores, values, mask, fractions=(0.75,), direction="magnitude")
    assert found.tolist() == [[11]]
    assert comprehensiveness(scores, values, mask, fractions=(0.25, 1.0)).tolist() == [9.5]
    assert sufficiency(scores, values, mask, fractions=(0.25, 0.5)).tolist() == [1.0]
    curve = torch.tensor([[12.0, 4.0, 0.0], [0.0, 4.0, 8.0]])
    assert area_under_curve(curve, fractions=(0.0, 0.25, 0.75)).tolist() == [3.0, 3.5]


@pytest.mark.parametrize(("measure", "expected"), MEASURES)
@pytest.mark.parametrize("fractions", [FRACTIONS, FEW_TOKENS, (0.55,), (1.0, 0.3, 0.3)])
@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_against_the_reference(measure, expected, fractions, seed):
    values, token_scores, mask = random_case(seed)
    found = measure(bent(values), token_scores, mask, fractions=fractions)
    for row in range(4):
        tokens = mask[row].nonzero().flatten()
        if not len(tokens):
            assert found[row].isnan().all()
            continue

        def score(kept, row=row, tokens=tokens):
            keep = torch.zeros(4, 1, 8, dtype=torch.bool)
            keep[row, 0, tokens[list(kept)]] = True
            return bent(values)(keep)[row, 0].item()

        wanted = expected(score, token_scores[row, tokens].tolist(), fractions)
        same(found[row], torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_fractions_of_a_hundred_tokens_are_not_rounded_up_by_accident():
    mask = torch.ones(1, 100).bool()
    fractions = tuple(percent / 100 for percent in range(101))
    kept = insertion_curve(
        lambda keep: keep.sum(-1).float(), torch.rand(1, 100), mask, fractions=fractions
    )
    assert kept.tolist() == [list(range(101))]


@given(seed=st.integers(0, 10**6))
def test_area_against_the_reference(seed):
    torch.manual_seed(seed)
    curve, fractions = torch.randn(3, 11), FRACTIONS
    wanted = [reference.area(row, fractions) for row in curve.double().tolist()]
    same(area_under_curve(curve), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_no_order_beats_the_values_of_an_additive_score():
    values, _, mask = random_case(3)
    area = {}
    for curve in (deletion_curve, insertion_curve):
        best = area_under_curve(curve(total(values), values, mask))
        others = [
            area_under_curve(curve(total(values), torch.randn(4, 8), mask)) for _ in range(20)
        ]
        area[curve] = best, torch.stack(others)
    full = mask.any(-1)
    best, others = area[deletion_curve]
    assert (best <= others + 1e-5)[:, full].all()
    assert (best < others - 0.1).any()
    best, others = area[insertion_curve]
    assert (best >= others - 1e-5)[:, full].all()
    assert (best > others + 0.1).any()


def test_highest_gone_first_is_lowest_kept_last():
    """Without ties: what deletion leaves at f is what insertion from below brings at 1 - f."""
    values, _, mask = random_case(4, time=10)
    mask[:] = True
    token_scores = torch.randn(4, 10)
    left = deletion_curve(bent(values), token_scores, mask)
    brought = insertion_curve(bent(values), token_scores, mask, direction="low")
    same(left, brought.flip(-1))


@every_measure
def test_garbage_padding_and_the_rest_of_the_batch_change_nothing(measure):
    values, token_scores, mask = random_case(5)
    expected = measure(bent(values), token_scores, mask)
    dirty = token_scores.masked_fill(~mask, math.nan)
    same(measure(bent(values.masked_fill(~mask, math.nan)), dirty, mask), expected)
    pad = partial(torch.nn.functional.pad, pad=(2, 3))
    same(measure(bent(pad(values)), pad(token_scores), pad(mask)), expected)
    rows = [measure(bent(values[i][None]), token_scores[i][None], mask[i][None]) for i in range(4)]
    same(torch.cat(rows), expected)
    assert expected.dtype == torch.float32
    assert expected.isnan().reshape(4, -1).all(-1).tolist() == [False, False, True, False]


@every_measure
def test_only_the_order_of_the_token_scores_counts(measure):
    values, token_scores, mask = random_case(6)
    expected = measure(bent(values), token_scores, mask)
    same(measure(bent(values), (3 * token_scores - 7).exp(), mask), expected)
    flipped = measure(bent(values), -token_scores, mask, direction="low")
    same(flipped, expected)


@every_measure
@pytest.mark.parametrize("fractions", [(), (-0.1,), (0.5, 1.1), (math.nan,)])
def test_fractions_are_shares(measure, fractions):
    values, token_scores, mask = random_case(7)
    with pytest.raises(ConfigError, match="numbers from 0 to 1"):
        measure(bent(values), token_scores, mask, fractions=fractions)


@every_measure
@pytest.mark.usefixtures("unchecked")
def test_scores_that_do_not_fit_or_are_no_numbers(measure):
    values, token_scores, mask = random_case(8)
    with pytest.raises(ShapeError, match="one score per response and subset"):
        measure(lambda keep: keep.sum((1, 2)).float(), token_scores, mask)
    with pytest.raises(NumericError, match="scores_of_kept gives NaN"):
        measure(lambda keep: keep.sum(-1) * math.nan, token_scores, mask)
    with pytest.raises(NumericError, match="inside the mask"):
        measure(bent(values), token_scores.masked_fill(mask, math.inf), mask)


@pytest.mark.usefixtures("unchecked")
def test_areas_under_curves_that_do_not_fit():
    with pytest.raises(ShapeError, match="2 columns of the curve for 3 fractions"):
        area_under_curve(torch.zeros(1, 2), fractions=(0.0, 0.5, 1.0))
    for fractions in [(0.5, 0.5), (1.0, 0.0)]:
        with pytest.raises(ConfigError, match="expected them rising"):
            area_under_curve(torch.zeros(1, 2), fractions=fractions)
