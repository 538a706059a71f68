import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import perturbation as reference

from tokencredit.credit.perturbation import (
    EXACT_UNITS,
    exact_shapley_credit,
    leave_one_out_credit,
    shapley_credit,
    window_credit,
)
from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.toy.truth import shapley_credit as toy_shapley_credit
from tokencredit.toy.truth import true_reward

MASK = torch.tensor([[True, True, False, True, True], [True, True, False, False, False]])


def sampled(scores_of_kept, mask, *, samples=8, seed=0, segment_ids=None):
    return shapley_credit(
        scores_of_kept,
        mask,
        samples=samples,
        generator=torch.Generator().manual_seed(seed),
        segment_ids=segment_ids,
    )


SHARING = {
    "leave one out": leave_one_out_credit,
    "sampled": sampled,
    "exact": exact_shapley_credit,
}
METHODS = {**SHARING, "windows": partial(window_credit, width=5)}
every_method = pytest.mark.parametrize("credit", METHODS.values(), ids=METHODS.keys())
every_sharing_method = pytest.mark.parametrize("credit", SHARING.values(), ids=SHARING.keys())


def tangled(values):
    """A score in which every token bears on every other, and one of the empty text."""
    places = torch.arange(1.0, values.shape[1] + 1)

    def scores(keep):
        kept = torch.where(keep, values[:, None], 0.0)
        first, second = kept.sum(-1), (kept * places).sum(-1)
        return 0.5 + first + first * second.sin() + first**3

    return scores


def scored_sets(values, tokens):
    """The same score as a function of a set of units, each a list of tokens of one response."""
    scores = tangled(values[None])

    def score(units):
        keep = torch.zeros(1, 1, len(values), dtype=torch.bool)
        keep[0, 0, [token for unit in units for token in tokens[unit]]] = True
        return scores(keep).item()

    return score


def random_case(seed, batch=3, time=5):
    torch.manual_seed(seed)
    mask = torch.rand(batch, time) < 0.7
    segments = torch.randint(0, 3, (batch, time)).masked_fill(~mask, -1)
    return torch.randn(batch, time, dtype=torch.float64), mask, segments


def tokens_of_units(mask, segments=None):
    """Tokens of each unit of one response, units in the order of their first tokens."""
    units = {}
    for token in mask.nonzero().flatten().tolist():
        units.setdefault(token if segments is None else segments[token].item(), []).append(token)
    return list(units.values())


def expected_row(method, values, tokens):
    units = [None] * len(values)
    for unit, members in enumerate(tokens):
        for token in members:
            units[token] = unit
    credit = method(scored_sets(values, tokens), len(tokens)) if tokens else []
    return reference.spread(credit, units)


def test_literals():
    values, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, True]])

    def product_and_sum(keep):
        kept = torch.where(keep, values[:, None], 0.0)
        return kept.prod(-1) + kept.sum(-1)

    assert leave_one_out_credit(product_and_sum, mask).tolist() == [[7, 8, 9]]
    torch.testing.assert_close(
        exact_shapley_credit(product_and_sum, mask), torch.tensor([[3.0, 4.0, 5.0]])
    )
    segments = torch.tensor([[5, 5, 2]])
    without = leave_one_out_credit(product_and_sum, mask, segment_ids=segments)
    assert without.tolist() == [[4.5, 4.5, 9.0]]
    shared = exact_shapley_credit(product_and_sum, mask, segment_ids=segments)
    torch.testing.assert_close(shared, torch.tensor([[3.0, 3.0, 6.0]]))


def test_windows_in_numbers():
    """A score of 10 for two neighbours together, and their own values."""
    values, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, True]])

    def scores(keep):
        together = keep[..., 0] & keep[..., 1]
        return torch.where(keep, values[:, None], 0.0).sum(-1) + 10.0 * together + 7.0

    assert window_credit(scores, mask, width=1).tolist() == [[1, 2, 4]]
    assert window_credit(scores, mask, width=2).tolist() == [[7, 7, 5]]
    everything = [(1 + 13 + 17) / 3, (2 + 13 + 6 + 17) / 4, (4 + 6 + 17) / 3]
    for width in (3, 4, 9):
        found = window_credit(scores, mask, width=width)
        torch.testing.assert_close(found, torch.tensor([everything]))


@pytest.mark.parametrize("with_segments", [False, True])
@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (leave_one_out_credit, reference.leave_one_out),
        (exact_shapley_credit, reference.shapley_by_coalitions),
        (window_credit, partial(reference.windows, width=3)),
        (partial(window_credit, width=2), partial(reference.windows, width=2)),
    ],
    ids=["leave one out", "exact", "windows", "narrow windows"],
)
@given(seed=st.integers(0, 10**6))
def test_against_the_reference(credit, expected, with_segments, seed):
    values, mask, segments = random_case(seed)
    wanted = [
        expected_row(expected, v, tokens_of_units(m, s if with_segments else None))
        for v, m, s in zip(values, mask, segments, strict=True)
    ]
    found = credit(tangled(values), mask, segment_ids=segments if with_segments else None)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10**6))
def test_the_exact_value_is_the_mean_over_all_orders(seed):
    values, mask, _ = random_case(seed)
    wanted = [
        expected_row(reference.shapley_by_all_orders, v, tokens_of_units(m))
        for v, m in zip(values, mask, strict=True)
    ]
    found = exact_shapley_credit(tangled(values), mask)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_a_sample_is_an_order_and_its_reverse():
    """Two orders are drawn; whichever they are, the credit is theirs."""
    values, mask, _ = random_case(2, batch=1, time=3)
    mask[:] = True
    score = scored_sets(values[0], [[0], [1], [2]])
    pairs = [[order, order[::-1]] for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2])]
    possible = [torch.tensor(reference.shapley_by_orders(score, pair)) for pair in pairs]
    drawn = {
        index
        for seed in range(30)
        for index, credit in enumerate(possible)
        if sampled(tangled(values), mask, samples=2, seed=seed)[0].allclose(credit, rtol=1e-5)
    }
    assert drawn == {0, 1, 2}
    found = [sampled(tangled(values), mask, samples=2, seed=seed)[0] for seed in range(30)]
    assert all(any(row.allclose(credit, rtol=1e-5) for credit in possible) for row in found)


def test_every_order_is_as_likely():
    """The token that stands first in an order is paid; reverses pay the last."""
    mask = torch.ones(1, 5).bool()
    found = sampled(lambda keep: keep.any(-1).float(), mask, samples=4000)
    torch.testing.assert_close(found, torch.full((1, 5), 0.2), rtol=0.0, atol=0.025)


def test_sampling_comes_near_the_exact_value():
    values, mask, segments = random_case(5)
    exact = exact_shapley_credit(tangled(values), mask)
    few, many = (
        (sampled(tangled(values), mask, samples=samples) - exact).abs().max().item()
        for samples in (2, 2000)
    )
    assert many < 0.1 * few
    by_segment = sampled(tangled(values), mask, samples=8000, segment_ids=segments)
    exact = exact_shapley_credit(tangled(values), mask, segment_ids=segments)
    torch.testing.assert_close(by_segment, exact, rtol=0.0, atol=0.05)


def test_one_pair_of_orders_is_exact_where_tokens_interact_in_pairs():
    bonds = torch.randn(6, 6, dtype=torch.float64)

    def scores(keep):
        kept = keep.double()
        return torch.einsum("bsi,ij,bsj->bs", kept, bonds, kept)

    mask = torch.rand(3, 6) < 0.8
    expected = exact_shapley_credit(scores, mask)
    torch.testing.assert_close(sampled(scores, mask, samples=2), expected)


@pytest.mark.parametrize("credit", [sampled, exact_shapley_credit], ids=["sampled", "exact"])
@pytest.mark.parametrize("with_segments", [False, True])
def test_shapley_values_sum_to_what_the_response_adds_to_nothing(credit, with_segments):
    values, mask, segments = random_case(7)
    scores = tangled(values)
    found = credit(scores, mask, segment_ids=segments if with_segments else None)
    none_and_all = scores(torch.stack([torch.zeros_like(mask), mask], dim=1))
    torch.testing.assert_close(found.sum(-1), none_and_all.diff(dim=-1)[:, 0].float())


@every_sharing_method
def test_an_additive_score_is_its_own_credit(credit):
    values, mask, _ = random_case(8)

    def scores(keep):
        return 7.0 + torch.where(keep, values[:, None], 0.0).sum(-1)

    torch.testing.assert_close(credit(scores, mask), values.float().masked_fill(~mask, 0.0))
    tokens = torch.arange(5).expand(3, 5).masked_fill(~mask, -1)
    torch.testing.assert_close(credit(scores, mask, segment_ids=tokens), credit(scores, mask))


@every_method
def test_one_segment_gets_the_whole_in_equal_parts(credit):
    values, mask = random_case(9)[0], MASK[[0, 1, 1]]
    scores = tangled(values)
    found = credit(scores, mask, segment_ids=torch.full((3, 5), 4).masked_fill(~mask, -1))
    whole = scores(torch.stack([torch.zeros_like(mask), mask], dim=1)).diff(dim=-1).float()
    torch.testing.assert_close(found, (whole / mask.sum(-1, keepdim=True)).where(mask, 0.0))


@every_method
@pytest.mark.parametrize("with_segments", [False, True])
@settings(max_examples=10)
@given(seed=st.integers(0, 10**4))
def test_padding_and_the_rest_of_the_batch_change_nothing(credit, with_segments, seed):
    values, mask, segments = random_case(seed)
    places = torch.tensor([1, 2, 4, 5, 7])
    wide_mask, wide_values = torch.zeros(3, 9).bool(), torch.full((3, 9), math.nan).double()
    wide_segments = torch.full((3, 9), -1)
    wide_mask[:, places], wide_values[:, places] = mask, values
    wide_segments[:, places] = segments

    def by_order(values):
        """A score of the kept values in their order, wherever they stand."""

        def scores(keep):
            order = keep.cumsum(-1)
            kept = torch.where(keep, values[:, None], 0.0)
            return (3.0 * kept.sum(-1)).sin() + (kept * order.sin()).sum(-1) ** 3

        return scores

    def credit_of(values, mask, segments):
        return credit(by_order(values), mask, segment_ids=segments if with_segments else None)

    expected = credit_of(values, mask, segments)
    wide = credit_of(wide_values, wide_mask, wide_segments)
    torch.testing.assert_close(wide[:, places], expected)
    assert wide[~wide_mask].eq(0).all()
    for row in range(3):
        one = slice(row, row + 1)
        alone = credit_of(values[one], mask[one], segments[one])
        torch.testing.assert_close(alone, expected[one])


@every_method
def test_what_is_asked_for_are_tokens_of_the_response(credit):
    asked = []

    def scores(keep):
        asked.append(keep)
        return keep.sum(-1).float()

    credit(scores, MASK)
    subsets = torch.cat(asked, dim=1)
    assert not (subsets & ~MASK[:, None]).any()
    assert (subsets == MASK[:, None]).all(-1).any(-1).all()


@every_method
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_no_tokens_and_no_responses(credit, shape):
    token_scores = credit(lambda keep: keep.sum(-1) + 3.0, torch.zeros(shape).bool())
    assert token_scores.tolist() == torch.zeros(shape).tolist()


def test_the_true_credit_of_the_built_in_task():
    words = ["not", "very", "good", ",", "hardly", "superb", "or", "dull"]
    mask = torch.ones(1, len(words)).bool()

    def scores(keep):
        texts = [[w for w, k in zip(words, kept, strict=True) if k] for kept in keep[0].tolist()]
        return torch.tensor([[true_reward(text) if text else 0.0 for text in texts]])

    # The border is a player here and none there, so the clauses are compared without it.
    present = mask & torch.tensor([[word != "," for word in words]])
    expected = toy_shapley_credit([word for word in words if word != ","])
    found = exact_shapley_credit(scores, present)[present]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert len(set(expected)) > 3


def test_the_same_seed_gives_the_same_credit():
    values, mask, _ = random_case(11)
    assert torch.equal(
        sampled(tangled(values), mask, samples=2), sampled(tangled(values), mask, samples=2)
    )
    found = {tuple(sampled(tangled(values), mask, samples=2, seed=s)[0].tolist()) for s in range(9)}
    assert len(found) > 1


@pytest.mark.parametrize("samples", [-2, 0, 1, 7])
def test_samples_are_pairs(samples):
    with pytest.raises(ConfigError, match=rf"samples is {samples}; expected an even number"):
        sampled(tangled(torch.ones(2, 5)), MASK, samples=samples)


@pytest.mark.parametrize("width", [-1, 0])
def test_a_window_holds_something(width):
    with pytest.raises(ConfigError, match=f"width is {width}; expected .* from 1"):
        window_credit(tangled(torch.ones(2, 5)), MASK, width=width)


def test_too_many_subsets():
    mask = torch.ones(1, EXACT_UNITS + 1).bool()
    with pytest.raises(ConfigError, match=r"has 13 tokens or segments.*at most 12"):
        exact_shapley_credit(tangled(torch.ones(1, 13)), mask)
    halves = (torch.arange(13) // 2)[None]
    exact_shapley_credit(tangled(torch.ones(1, 13)), mask, segment_ids=halves)


@every_method
@pytest.mark.usefixtures("unchecked")
def test_segments_that_do_not_fit(credit):
    scores = tangled(torch.ones(2, 5))
    with pytest.raises(ShapeError, match="an id from 0 for every token"):
        credit(scores, MASK, segment_ids=torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ShapeError, match="an id from 0 for every token"):
        credit(scores, MASK, segment_ids=torch.full((2, 5), -1))
    with pytest.raises(ShapeError, match="one score per response and subset"):
        credit(lambda keep: keep.sum((1, 2)).float(), MASK)


@every_method
def test_scores_that_are_no_numbers(credit):
    with pytest.raises(NumericError, match=r"responses \[0, 1\]"):
        credit(lambda keep: torch.where(keep.all(-1), 1.0, math.nan), MASK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_scores_of_any_precision(dtype):
    found = leave_one_out_credit(lambda keep: keep.sum(-1).to(dtype), MASK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, MASK.float())
