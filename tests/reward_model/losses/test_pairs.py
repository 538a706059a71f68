import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reward_losses as reference
from torch.autograd import gradcheck

from tokencredit.errors import DataError
from tokencredit.reward_model.losses.pairs import (
    bradley_terry_loss,
    centering_loss,
    held_prefix_scores,
    prefix_bradley_terry_loss,
    segment_bradley_terry_loss,
    segment_leads,
)
from tokencredit.reward_model.losses.targets import (
    classification_loss,
    prefix_classification_loss,
    prefix_cross_entropy,
    prefix_regression_loss,
    prefix_squared_error,
    regression_loss,
)

LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


def padded(rows: list[list[float]], *, side: str = "right", filler: float = math.nan):
    """Rows as a tensor with its mask, anything at all where there is no token."""
    width = max(map(len, rows))
    filled = [
        row + [filler] * (width - len(row))
        if side == "right"
        else [filler] * (width - len(row)) + row
        for row in rows
    ]
    scores = torch.tensor(filled)
    columns = torch.arange(width)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    return scores, columns < lengths if side == "right" else columns >= width - lengths


def drawn(lengths: list[int], seed: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(length, generator=generator)).tolist() for length in lengths]


def test_bradley_terry_literal():
    loss = bradley_terry_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)


def test_a_margin_asks_for_a_larger_lead():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.5])
    loss = bradley_terry_loss(chosen, rejected, margin=torch.tensor([1.5]))
    assert loss.item() == pytest.approx(math.log(2))


def test_a_strength_multiplies_the_loss_of_its_pair():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    loss = bradley_terry_loss(chosen, rejected, strength=torch.tensor([3.0, 0.5]))
    expected = 3 * math.log(1 + math.exp(-2)) + 0.5 * math.log(1 + math.exp(1))
    assert loss.item() == pytest.approx(expected / 2)


def test_a_strength_of_one_changes_nothing_and_other_ones_the_same_everywhere():
    chosen, rejected = torch.randn(2, 4, 3)
    mask, strength = torch.ones(4, 3, dtype=torch.bool), torch.tensor([1.0, 2.0, 0.5, 3.0])
    for loss, options in (
        (prefix_bradley_terry_loss, (mask, mask)),
        (segment_bradley_terry_loss, (mask, mask)),
    ):
        plain = loss(chosen, rejected, *options)
        assert torch.equal(loss(chosen, rejected, *options, strength=torch.ones(4)), plain)
        one_by_one = [
            loss(*(t[row : row + 1] for t in (chosen, rejected, *options))) for row in range(4)
        ]
        weighted = loss(chosen, rejected, *options, strength=strength)
        torch.testing.assert_close(weighted, (torch.stack(one_by_one) * strength).mean())


def test_a_soft_label_mixes_both_preferences():
    """A lead of 1.5 less a margin of 0.5, right with 3 of 4: log(1 + e^-1) and log(1 + e)."""
    loss = bradley_terry_loss(
        torch.tensor([2.0]), torch.tensor([0.5]), margin=torch.tensor([0.5]),
        preferred=torch.tensor([0.75]),
    )  # fmt: skip
    expected = 0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))
    assert loss.item() == pytest.approx(expected)


@given(LENGTHS, st.integers(0, 10**6))
def test_soft_labels_against_the_reference(lengths, seed):
    chosen, rejected = (drawn([pair[side] for pair in lengths], seed + side) for side in (0, 1))
    margins = [0.1 * row for row in range(len(lengths))]
    shares = [(row % 5) / 4 for row in range(len(lengths))]
    rows = list(zip(chosen, rejected, margins, shares, strict=True))
    said = {"margin": torch.tensor(margins), "preferred": torch.tensor(shares)}
    whole = [reference.bradley_terry(one[-1], other[-1], m, p) for one, other, m, p in rows]
    ends = [torch.tensor([row[-1] for row in side]) for side in (chosen, rejected)]
    loss = bradley_terry_loss(*ends, **said)
    assert loss.item() == pytest.approx(sum(whole) / len(whole), rel=1e-4)
    prefixes = [reference.prefix_bradley_terry(*row) for row in rows]
    (one, one_mask), (other, other_mask) = padded(chosen), padded(rejected)
    loss = prefix_bradley_terry_loss(one, other, one_mask, other_mask, **said)
    assert loss.item() == pytest.approx(sum(prefixes) / len(prefixes), rel=1e-4)
    segments = [
        reference.segment_bradley_terry(w, v, [True] * len(w), [True] * len(v), m, p)
        for w, v, m, p in rows
    ]
    loss = segment_bradley_terry_loss(one, other, one_mask, other_mask, **said)
    assert loss.item() == pytest.approx(sum(segments) / len(segments), rel=1e-4)


def test_preferences_that_are_sure_cost_the_same_bits_and_doubtful_ones_pull_to_their_odds():
    chosen, rejected = torch.randn(2, 4, 3)
    mask, margin = torch.ones(4, 3, dtype=torch.bool), torch.rand(4)
    for loss, sides in (
        (bradley_terry_loss, (chosen[:, 0], rejected[:, 0])),
        (prefix_bradley_terry_loss, (chosen, rejected, mask, mask)),
        (segment_bradley_terry_loss, (chosen, rejected, mask, mask)),
    ):
        plain = loss(*sides, margin=margin)
        assert torch.equal(loss(*sides, margin=margin, preferred=torch.ones(4)), plain)
        swapped = loss(sides[1], sides[0], *sides[2:], margin=-margin)
        turned = loss(*sides, margin=margin, preferred=torch.zeros(4))
        torch.testing.assert_close(turned, swapped)
    leads = torch.tensor([0.0, 0.5 + math.log(3)], requires_grad=True)
    said = {"margin": torch.tensor([0.0, 0.5]), "preferred": torch.tensor([0.5, 0.75])}
    (slope,) = torch.autograd.grad(bradley_terry_loss(leads, torch.zeros(2), **said), leads)
    assert slope.abs().max() < 1e-6


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_probabilities_of_preferences_lie_between_0_and_1(share):
    scores, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    preferred = torch.tensor([share])
    for loss, sides in (
        (bradley_terry_loss, (scores[0], scores[0])),
        (prefix_bradley_terry_loss, (scores, scores, mask, mask)),
        (segment_bradley_terry_loss, (scores, scores, mask, mask)),
    ):
        with pytest.raises(DataError, match=f"preferred goes from {share:g} .* from 0 to 1"):
            loss(*sides, preferred=preferred)


def test_regression_literal():
    loss = regression_loss(torch.tensor([1.0, -1.0]), torch.tensor([3, 0]))
    assert loss.item() == pytest.approx((4 + 1) / 2)


def test_classification_literal():
    loss = classification_loss(torch.tensor([2.0, 2.0]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(
        (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    )


def test_an_ended_answer_keeps_its_last_score():
    """The chosen answer ends at 3 after one token; the rejected one goes on to 5."""
    chosen, chosen_mask = padded([[3.0]])
    rejected, rejected_mask = padded([[1.0, 5.0]])
    loss = prefix_bradley_terry_loss(chosen, rejected, chosen_mask, rejected_mask)
    expected = (reference.neg_log_sigmoid(3.0 - 1.0) + reference.neg_log_sigmoid(3.0 - 5.0)) / 2
    assert loss.item() == pytest.approx(expected)


@given(LENGTHS, st.integers(0, 10**6))
def test_prefix_bradley_terry_against_the_reference(lengths, seed):
    chosen = drawn([a for a, _ in lengths], seed)
    rejected = drawn([b for _, b in lengths], seed + 1)
    margins = [0.1 * row for row in range(len(lengths))]
    expected = [
        reference.prefix_bradley_terry(*row) for row in zip(chosen, rejected, margins, strict=True)
    ]
    (chosen_scores, chosen_mask), (rejected_scores, rejected_mask) = (
        padded(chosen),
        padded(rejected),
    )
    loss = prefix_bradley_terry_loss(
        chosen_scores,
        rejected_scores,
        chosen_mask,
        rejected_mask,
        margin=torch.tensor(margins),
    )
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@given(LENGTHS, st.integers(0, 10**6), st.sampled_from(["left", "right"]))
def test_prefix_classification_against_the_reference(lengths, seed, side):
    rows = drawn([a for a, _ in lengths], seed)
    labels = [row % 2 for row in range(len(rows))]
    expected = [reference.prefix_cross_entropy(*row) for row in zip(rows, labels, strict=True)]
    scores, mask = padded(rows, side=side)
    loss = prefix_classification_loss(scores, torch.tensor(labels), mask)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@given(LENGTHS, st.integers(0, 10**6), st.sampled_from(["left", "right"]))
def test_prefix_regression_against_the_reference(lengths, seed, side):
    rows = drawn([a for a, _ in lengths], seed)
    ratings = [0.5 * row - 1 for row in range(len(rows))]
    expected = [reference.prefix_squared_error(*row) for row in zip(rows, ratings, strict=True)]
    scores, mask = padded(rows, side=side)
    loss = prefix_regression_loss(scores, torch.tensor(ratings), mask)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@given(LENGTHS, st.integers(0, 10**6))
def test_segment_bradley_terry_against_the_reference(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    sides, expected = [], []
    for side in range(2):
        rows = drawn([pair[side] for pair in lengths], seed + side)
        scores, mask = padded(rows)
        ends = mask & (torch.rand(mask.shape, generator=generator) < 0.5)
        ends[torch.arange(len(rows)), mask.sum(-1) - 1] = True
        sides.append((rows, scores, ends))
    (chosen, *_), (rejected, *_) = sides
    margins = [0.1 * row for row in range(len(lengths))]
    for row, margin in enumerate(margins):
        ends = [side[2][row, : len(side[0][row])].tolist() for side in sides]
        expected.append(reference.segment_bradley_terry(chosen[row], rejected[row], *ends, margin))
    loss = segment_bradley_terry_loss(
        sides[0][1], sides[1][1], sides[0][2], sides[1][2], margin=torch.tensor(margins)
    )
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_a_response_that_is_one_segment_is_scored_at_its_end():
    chosen, rejected = torch.randn(2, 3, 4)
    ends = torch.tensor([[False, False, False, True]]).expand(3, 4)
    torch.testing.assert_close(
        segment_bradley_terry_loss(chosen, rejected, ends, ends),
        bradley_terry_loss(chosen[:, 3], rejected[:, 3]),
    )


@pytest.mark.parametrize("lengths", [(4, 4), (2, 5), (5, 3)])
def test_prefixes_as_examples_of_their_own_cost_the_same_but_for_equal_beginnings(lengths):
    """Where an ended answer keeps its score, and but for a constant and a factor."""
    chosen, rejected = drawn(list(lengths), seed=3)
    rejected[0] = chosen[0]  # the first token is the same, and so is its score
    (chosen_scores, chosen_mask), (rejected_scores, rejected_mask) = (
        padded([chosen]),
        padded([rejected]),
    )
    loss = prefix_bradley_terry_loss(chosen_scores, rejected_scores, chosen_mask, rejected_mask)
    examples = reference.expanded_bradley_terry(chosen, rejected, same=1)
    assert max(lengths) * loss.item() == pytest.approx(examples + math.log(2), rel=1e-4)


def test_targets_of_their_own_that_are_all_the_same_are_labels_and_ratings():
    scores, mask = padded([[1.0, -2.0, 0.5], [3.0]])
    labels = torch.tensor([1.0, 0.25])
    targets = labels[:, None].expand(2, 3).masked_fill(~mask, math.nan)
    assert torch.equal(
        prefix_cross_entropy(scores, targets, mask),
        prefix_classification_loss(scores, labels, mask),
    )
    assert torch.equal(
        prefix_squared_error(scores, targets, mask), prefix_regression_loss(scores, labels, mask)
    )


def test_one_token_long_responses_give_the_losses_of_whole_responses():
    chosen, rejected, margin = torch.randn(3, 5)
    mask, labels = torch.ones(5, 1, dtype=torch.bool), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(
        prefix_bradley_terry_loss(chosen[:, None], rejected[:, None], mask, mask, margin=margin),
        bradley_terry_loss(chosen, rejected, margin=margin),
    )
    torch.testing.assert_close(
        prefix_classification_loss(chosen[:, None], labels, mask),
        classification_loss(chosen, labels),
    )
    torch.testing.assert_close(
        prefix_regression_loss(chosen[:, None], labels, mask), regression_loss(chosen, labels)
    )


def test_a_long_answer_weighs_no_more_than_a_short_one():
    """The mean over pairs is the mean of pairs scored one by one."""
    chosen, chosen_mask = padded([[1.0], [0.5, 2.0, -1.0, 4.0]])
    rejected, rejected_mask = padded([[0.0, 3.0], [1.0]])
    together = prefix_bradley_terry_loss(chosen, rejected, chosen_mask, rejected_mask)
    apart = [
        prefix_bradley_terry_loss(
            chosen[row : row + 1],
            rejected[row : row + 1],
            chosen_mask[row : row + 1],
            rejected_mask[row : row + 1],
        )
        for row in range(2)
    ]
    torch.testing.assert_close(together, torch.stack(apart).mean())


def test_what_the_mask_hides_changes_neither_loss_nor_gradient():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    losses, gradients = [], []
    for garbage in (0.0, math.nan, math.inf, -7.0):
        rows = torch.tensor([[1.0, -1.0, garbage], [0.5, garbage, garbage]], requires_grad=True)
        others = torch.tensor([[0.3, garbage, garbage], [0.2, 0.1, garbage]], requires_grad=True)
        loss = prefix_bradley_terry_loss(rows, others, mask, mask.flip(0))
        loss = loss + prefix_bradley_terry_loss(
            rows, others, mask, mask.flip(0), preferred=torch.tensor([0.75, 0.5])
        )
        loss = loss + prefix_classification_loss(rows, torch.tensor([0, 1]), mask)
        loss = loss + prefix_regression_loss(rows, torch.tensor([0.5, 1.5]), mask)
        loss = loss + segment_bradley_terry_loss(rows, others, mask, mask.flip(0))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.stack([rows.grad, others.grad]))
    for loss, gradient in zip(losses, gradients, strict=True):
        assert torch.equal(loss, losses[0])
        assert torch.equal(gradient, gradients[0])
        assert gradient[0][~mask].eq(0).all()


def test_shared_beginnings_have_no_gradient():
    """A model that scores the shared first token scores it alike on both sides."""
    shared = torch.tensor([[1.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    prefix_bradley_terry_loss(shared, shared, mask, mask).backward()
    assert shared.grad.item() == 0.0


def test_gradients():
    chosen = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    rejected = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    chosen_mask = torch.tensor([[True, True, False], [True, True, True]])
    rejected_mask = torch.tensor([[True, True, True, True], [True, False, False, False]])

    def loss(a, b):
        both = chosen_mask | rejected_mask[:, :3]
        centred = centering_loss(
            held_prefix_scores(a, chosen_mask), held_prefix_scores(b, rejected_mask)[:, :3], both
        )
        strength = torch.tensor([0.5, 2.0])
        every = prefix_bradley_terry_loss(a, b, chosen_mask, rejected_mask, strength=strength)
        at_ends = segment_bradley_terry_loss(
            a, b, chosen_mask, rejected_mask, preferred=torch.tensor([0.25, 1.0])
        )
        rated = prefix_regression_loss(a, torch.tensor([0.3, -1.0]), chosen_mask)
        labelled = prefix_classification_loss(b, torch.tensor([1, 0]), rejected_mask)
        return every + centred + at_ends + rated + labelled

    # Losses are float32 whatever comes in, so steps are wide and the check is loose.
    assert gradcheck(loss, (chosen, rejected), eps=1e-2, atol=5e-3, rtol=1e-3)


def test_held_scores_start_at_zero_and_stay():
    scores = torch.tensor([[9.0, 1.0, math.nan, 2.0, math.nan], [math.nan] * 5])
    mask = torch.tensor([[False, True, False, True, False], [False] * 5])
    assert held_prefix_scores(scores, mask).tolist() == [[0.0, 1.0, 1.0, 2.0, 2.0], [0.0] * 5]


def test_centering_is_least_for_opposite_scores():
    mask = torch.tensor([True, True, False])
    chosen, rejected = torch.tensor([2.0, 1.0, math.nan]), torch.tensor([-2.0, 2.0, math.nan])
    assert centering_loss(chosen, rejected, mask).item() == pytest.approx(9 / 2)
    assert centering_loss(chosen, -chosen, mask).item() == 0.0


def test_bfloat16_scores_give_a_float32_loss():
    scores, mask = torch.randn(2, 3).bfloat16(), torch.ones(2, 3, dtype=torch.bool)
    assert prefix_bradley_terry_loss(scores, -scores, mask, mask).dtype == torch.float32
    assert prefix_classification_loss(scores, torch.tensor([0, 1]), mask).dtype == torch.float32
    assert prefix_regression_loss(scores, torch.tensor([0, 1]), mask).dtype == torch.float32
    assert segment_bradley_terry_loss(scores, -scores, mask, mask).dtype == torch.float32
    assert regression_loss(scores[:, 0], torch.tensor([0, 1])).dtype == torch.float32


def test_what_segments_gain_is_compared():
    scores = torch.tensor([[1.0, 4.0, 9.0], [0.0, 2.0, 2.0]])
    leads = segment_leads(scores, torch.tensor([1, 0]), torch.tensor([2, 1]))
    assert leads.tolist() == [5.0, 2.0]
    shifted = segment_leads(scores + 3, torch.tensor([1, 0]), torch.tensor([2, 1]))
    assert torch.equal(shifted, leads)
    whole = torch.tensor([[0.5, 1.0, 3.0], [0.5, 0.0, 2.0]])  # of one prompt
    gains = segment_leads(whole, torch.tensor([0, 0]), torch.tensor([2, 2]))
    plain = bradley_terry_loss(whole[:1, -1], whole[1:, -1])
    torch.testing.assert_close(bradley_terry_loss(gains[:1], gains[1:]), plain)


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (2, 1), (0, 3)])
def test_segments_that_are_none(start, end):
    with pytest.raises(DataError, match=f"from {start} to {end} in a text of 2 tokens"):
        segment_leads(torch.zeros(1, 3), torch.tensor([start]), torch.tensor([end]))
