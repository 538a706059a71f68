import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import prefix_potentials as reference

from tokencredit.credit.prefixes import (
    length_centred_prefix_scores,
    prefix_difference_credit,
    prefix_length_means,
    segment_held_prefix_scores,
    smoothed_prefix_scores,
)
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import ConfigError, ShapeError
from tokencredit.masking import masked_sum
from tokencredit.text.pooling import scores_at_segment_ends

SEEDS = st.integers(0, 10**6)
NAN = math.nan


def drawn(seed: int, *, batch: int = 4, time: int = 6):
    """Scores and masks with holes, and one row without any response."""
    torch.manual_seed(seed)
    mask = torch.rand(batch, time) < 0.6
    mask[-1] = False
    return torch.randn(batch, time + 1, dtype=torch.float64), mask


def segments_in(mask: torch.Tensor) -> torch.Tensor:
    starts = mask & ((torch.rand(mask.shape) < 0.5) | (mask.cumsum(-1) == 1))
    return (starts.cumsum(-1) - 1).masked_fill(~mask, -1)


def test_smoothing_literal():
    scores = torch.tensor([[0.0, 4.0, 0.0, 8.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    assert smoothed_prefix_scores(scores, mask, decay=0.5).tolist() == [[0.0, 2.0, 1.0, 8.0, 8.0]]


def test_the_last_token_collects_what_smoothing_still_owes():
    """A rise by 8 at the first token is paid 4, 2 and, at the end, the 2 that are left."""
    scores, mask = torch.tensor([[0.0, 8.0, 8.0, 8.0]]), torch.ones(1, 3, dtype=torch.bool)
    smoothed = smoothed_prefix_scores(scores, mask, decay=0.5)
    assert prefix_difference_credit(smoothed, mask).tolist() == [[4.0, 2.0, 2.0]]


@given(SEEDS, st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_smoothing_against_the_reference(seed, decay):
    scores, mask = drawn(seed)
    expected = [
        reference.smoothed(*row, decay) for row in zip(scores.tolist(), mask.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        smoothed_prefix_scores(scores, mask, decay=decay), torch.tensor(expected)
    )


def test_without_decay_nothing_is_smoothed_and_with_all_of_it_only_the_end_is_left():
    scores, mask = torch.randn(3, 6), torch.ones(3, 5, dtype=torch.bool)
    assert torch.equal(smoothed_prefix_scores(scores, mask, decay=0.0), scores)
    alone = prefix_difference_credit(smoothed_prefix_scores(scores, mask, decay=1.0), mask)
    torch.testing.assert_close(alone, terminal_credit(scores[:, -1] - scores[:, 0], mask))


def test_noise_that_comes_and_goes_is_paid_less():
    scores = torch.tensor([[0.0, 1.0, -1.0, 1.0, -1.0, 0.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    smoothed = smoothed_prefix_scores(scores, mask, decay=0.8)
    plain, calm = (prefix_difference_credit(s, mask).abs().sum() for s in (scores, smoothed))
    assert calm < 0.3 * plain


def test_centring_literal():
    scores = torch.tensor([[1.0, 5.0, NAN, 9.0, 20.0]])
    mask = torch.tensor([[True, False, True, True]])
    means = torch.tensor([2.0, 3.0, 6.0])  # the third prefix takes the last one
    centred = length_centred_prefix_scores(scores, mask, means)
    assert centred.tolist() == [[1.0, 4.0, 4.0, 5.0, 20.0]]
    all_of_it = length_centred_prefix_scores(scores, mask, means, ending="centred")
    assert all_of_it.tolist() == [[1.0, 4.0, 4.0, 5.0, 16.0]]


@given(SEEDS, st.sampled_from(["true", "centred"]), st.integers(1, 7))
def test_centring_against_the_reference(seed, ending, lengths):
    scores, mask = drawn(seed)
    means = torch.randn(lengths, dtype=torch.float64)
    expected = [
        reference.length_centred(*row, means.tolist(), ending)
        for row in zip(scores.tolist(), mask.tolist(), strict=True)
    ]
    centred = length_centred_prefix_scores(scores, mask, means, ending=ending)
    torch.testing.assert_close(centred, torch.tensor(expected))


def test_offsets_that_training_leaves_free_change_no_centred_credit():
    """c_k added to every score of k tokens costs a pairwise loss nothing, and centring removes it.

    Only whole responses keep theirs, unless they are centred too.
    """
    scores = torch.randn(6, 5)
    mask = torch.tensor([[True] * 4] * 3 + [[True, True, False, False]] * 3)
    shifted = scores + torch.tensor([0.0, 3.0, -1.0, 7.0, 2.0])

    def credit(of: torch.Tensor, ending: str) -> torch.Tensor:
        centred = length_centred_prefix_scores(
            of, mask, prefix_length_means(of, mask), ending=ending
        )
        return prefix_difference_credit(centred, mask)

    is_last = terminal_credit(torch.ones(6), mask).bool()
    before, after = (credit(of, "true").masked_fill(is_last, 0.0) for of in (scores, shifted))
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(credit(shifted, "centred"), credit(scores, "centred"))


def test_means_literal():
    scores = torch.tensor([[1.0, 2.0, NAN, 4.0], [3.0, 6.0, NAN, NAN], [NAN, NAN, NAN, NAN]])
    mask = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])
    assert prefix_length_means(scores, mask).tolist() == [2.0, 4.0, 4.0]


@given(SEEDS)
def test_means_against_the_reference(seed):
    scores, mask = drawn(seed)
    rows = list(zip(scores.tolist(), mask.tolist(), strict=True))
    expected = torch.tensor(reference.length_means(rows) or [0.0])
    torch.testing.assert_close(prefix_length_means(scores, mask), expected)


def test_centred_by_its_own_means_the_mean_credit_is_zero_but_at_the_ends():
    scores, mask = torch.randn(50, 8), torch.ones(50, 7, dtype=torch.bool)
    centred = length_centred_prefix_scores(scores, mask, prefix_length_means(scores, mask))
    credit = prefix_difference_credit(centred, mask)
    torch.testing.assert_close(credit[:, :-1].mean(0), torch.zeros(6), rtol=0, atol=1e-6)


def test_held_literal():
    scores = torch.tensor([[0.0, 1.0, NAN, 3.0, 2.0, NAN]])
    segments = torch.tensor([[0, -1, 0, 1, -1]])
    held = segment_held_prefix_scores(scores, segments)
    assert held.tolist() == [[0.0, 0.0, 0.0, 3.0, 2.0, 2.0]]


@given(SEEDS)
def test_held_against_the_reference(seed):
    scores, mask = drawn(seed)
    segments = segments_in(mask)
    expected = [
        reference.segment_held(*row) for row in zip(scores.tolist(), segments.tolist(), strict=True)
    ]
    torch.testing.assert_close(segment_held_prefix_scores(scores, segments), torch.tensor(expected))


def test_credit_of_a_segment_stands_on_its_last_token_and_is_that_of_its_tokens():
    scores, mask = torch.randn(1, 7), torch.ones(1, 6, dtype=torch.bool)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2]])
    held = prefix_difference_credit(segment_held_prefix_scores(scores, segments), mask)[0]
    tokens = prefix_difference_credit(scores, mask)[0]
    assert held.nonzero().flatten().tolist() == [2, 4, 5]
    torch.testing.assert_close(held[[2, 4, 5]], torch.stack([tokens[:3].sum(), tokens[3:5].sum(),
                                                             tokens[5]]))  # fmt: skip


@given(SEEDS)
def test_held_prefixes_are_credit_paid_at_segment_ends(seed):
    scores, mask = drawn(seed)
    segments = segments_in(mask)
    held = prefix_difference_credit(segment_held_prefix_scores(scores, segments), segments >= 0)
    credit = prefix_difference_credit(scores, segments >= 0)
    torch.testing.assert_close(held, scores_at_segment_ends(credit, segments), rtol=1e-4, atol=1e-5)


def test_one_segment_is_terminal_and_a_segment_per_token_changes_nothing():
    scores, mask = torch.randn(2, 5), torch.ones(2, 4, dtype=torch.bool)
    every = torch.arange(4).expand(2, 4)
    assert torch.equal(segment_held_prefix_scores(scores, every), scores)
    one = prefix_difference_credit(segment_held_prefix_scores(scores, 0 * every), mask)
    torch.testing.assert_close(one, terminal_credit(scores[:, -1] - scores[:, 0], mask))


def transformed(scores: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    segments = torch.where(mask, (mask.cumsum(-1) - 1) // 2, -1)
    return {
        "smoothed": smoothed_prefix_scores(scores, mask, decay=0.7),
        "centred": length_centred_prefix_scores(scores, mask, torch.tensor([0.1, 3.0, -2.0])),
        "held": segment_held_prefix_scores(scores, segments),
    }


@given(SEEDS)
def test_the_sum_of_the_credit_stays(seed):
    scores, mask = drawn(seed)
    plain = masked_sum(prefix_difference_credit(scores, mask), mask)
    for potentials in transformed(scores, mask).values():
        torch.testing.assert_close(
            prefix_difference_credit(potentials, mask).sum(-1), plain, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("garbage", [NAN, math.inf, -1e30])
def test_what_the_mask_hides_changes_neither_scores_nor_gradients(garbage):
    mask = torch.tensor([[True, False, True, False]])
    seen = torch.tensor([[True, True, False, True, False]])
    found = []
    for filler in (0.0, garbage):
        scores = torch.tensor([[0.5, 1.0, 9.0, -2.0, 9.0]]).masked_fill(~seen, filler)
        scores.requires_grad_()
        results = transformed(scores, mask)
        sum((prefix_difference_credit(r, mask) ** 2).sum() for r in results.values()).backward()
        found.append((torch.stack(list(results.values())), scores.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[1][1][~seen].eq(0).all()


def test_no_columns():
    scores, mask = torch.ones(2, 1), torch.zeros(2, 0, dtype=torch.bool)
    assert smoothed_prefix_scores(scores, mask, decay=0.5).tolist() == [[1.0], [1.0]]
    assert length_centred_prefix_scores(scores, mask, torch.ones(1)).tolist() == [[1.0], [1.0]]
    segments = torch.zeros(2, 0, dtype=torch.long)
    assert segment_held_prefix_scores(scores, segments).tolist() == [[1.0], [1.0]]


def test_float32_comes_out_of_any_precision():
    scores, mask = torch.randn(2, 4).bfloat16(), torch.ones(2, 3, dtype=torch.bool)
    assert {out.dtype for out in transformed(scores, mask).values()} == {torch.float32}
    assert prefix_length_means(scores, mask).dtype == torch.float32


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_is_a_share(decay):
    with pytest.raises(ConfigError, match=f"decay is {decay}"):
        smoothed_prefix_scores(torch.zeros(1, 2), torch.ones(1, 1).bool(), decay=decay)


def test_endings_have_names(unchecked):
    with pytest.raises(ConfigError, match="expected 'true' or 'centred'"):
        length_centred_prefix_scores(
            torch.zeros(1, 2), torch.ones(1, 1).bool(), torch.zeros(2), ending="half"
        )


def test_there_is_a_mean_of_the_prompt_at_least():
    with pytest.raises(ShapeError, match="length_means is empty"):
        length_centred_prefix_scores(torch.zeros(1, 2), torch.ones(1, 1).bool(), torch.zeros(0))


@pytest.mark.parametrize(
    "transform",
    [
        lambda scores, mask: smoothed_prefix_scores(scores, mask, decay=0.5),
        lambda scores, mask: length_centred_prefix_scores(scores, mask, torch.zeros(2)),
        prefix_length_means,
        lambda scores, mask: segment_held_prefix_scores(scores, mask.long()),
    ],
)
def test_there_is_one_more_prefix_than_tokens(transform):
    with pytest.raises(ShapeError, match="3 prefix scores for 3 tokens"):
        transform(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
