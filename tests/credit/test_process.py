import math

import pytest
import torch
from reference import process as reference

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.credit.segments import clipped_step_scores, delta_step_scores, step_score_credit
from tokencredit.errors import ShapeError

# Heights as in the paper's figure of the two mechanisms, four steps.
FIGURE = [0.7, 0.2, 0.4, 0.8]


def all_there(scores: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def test_scores_stand_at_the_last_token_of_each_step():
    ids = torch.tensor([[0, 0, 1, 2, 2, -1], [0, -1, 0, -1, 1, -1]])
    scores = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.3, math.nan]])
    expected = [[0, 0.9, 0.2, 0, 0.5, 0], [0, 0, 0.1, 0, 0.3, 0]]
    torch.testing.assert_close(step_score_credit(scores, ids, ids >= 0), torch.tensor(expected))


def test_token_by_token():
    ids = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    scores = torch.randn(1, 4)
    expected = reference.step_scores_on_tokens(scores[0].tolist(), ids.tolist())
    got = step_score_credit(scores, ids[None], torch.ones(1, 7, dtype=torch.bool))
    assert got[0].tolist() == pytest.approx(expected)


def test_a_masked_end_is_paid_at_the_last_token_that_counts():
    ids, mask = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[True, True, True, False]])
    assert step_score_credit(torch.tensor([[1.0, 2.0]]), ids, mask).tolist() == [[0, 1, 2, 0]]


def test_one_step_is_the_terminal_reward():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ids, scores = torch.zeros(2, 3).long().masked_fill(~mask, -1), torch.tensor([2.0, -1.0])
    credit = step_score_credit(scores[:, None], ids, mask)
    torch.testing.assert_close(credit, terminal_credit(scores, mask))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_a_score_for_every_step_of_every_response(unchecked, shape):
    ids = torch.tensor([[0, 1]])
    with pytest.raises(ShapeError):
        step_score_credit(torch.zeros(shape), ids, ids >= 0)
    with pytest.raises(ShapeError, match=r"expected the same \(batch, time\) for the last two"):
        step_score_credit(torch.zeros(1, 2), ids, torch.ones(1, 3, dtype=torch.bool))


def test_clip_keeps_what_lies_below_the_threshold():
    scores = torch.tensor([FIGURE])
    clipped = clipped_step_scores(scores, all_there(scores), eta=0.5)
    torch.testing.assert_close(clipped, torch.tensor([[0.0, -0.3, -0.1, 0.0]]))
    assert clipped[0].tolist() == pytest.approx(reference.clipped(FIGURE, 0.5), abs=1e-6)


def test_delta_drops_the_last_step_and_keeps_the_one_before_it():
    scores = torch.tensor([FIGURE])
    delta = delta_step_scores(scores, all_there(scores))
    torch.testing.assert_close(delta, torch.tensor([[0.5, -0.2, 0.4, 0.0]]))


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_delta_step_by_step(steps):
    scores = torch.randn(2, steps)
    delta = delta_step_scores(scores, all_there(scores))
    for row in range(2):
        expected = reference.delta(scores[row].tolist())
        assert delta[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_from_each_step_on_delta_sums_to_its_score():
    scores = torch.randn(3, 5)
    to_go = delta_step_scores(scores, all_there(scores)).flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(to_go[:, :-1], scores[:, :-1])
    assert to_go[:, -1].eq(0).all()


def test_repeated_steps_earn_nothing_more():
    """Summed as they are, ten good steps pay ten times what one pays; clipped or as Delta, not."""
    few, many = torch.full((1, 3), 0.9), torch.full((1, 30), 0.9)
    assert many.sum() > 9 * few.sum()
    clips = [clipped_step_scores(s, all_there(s), eta=0.8).sum() for s in (few, many)]
    deltas = [delta_step_scores(s, all_there(s)).sum() for s in (few, many)]
    torch.testing.assert_close(clips[0], clips[1])
    torch.testing.assert_close(deltas[0], deltas[1])


def test_clip_then_delta():
    mask = torch.tensor([[True] * 4])
    both = delta_step_scores(clipped_step_scores(torch.tensor([FIGURE]), mask, eta=0.5), mask)
    expected = reference.delta(reference.clipped(FIGURE, 0.5))
    torch.testing.assert_close(both, torch.tensor([expected]))
    assert both.sum() <= 0


@pytest.mark.parametrize("columns", [[0, 1, 2], [2, 3, 4], [0, 2, 4]])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 7.0])
def test_steps_that_are_not_there_change_nothing(columns, garbage):
    scores = torch.tensor([[0.3, 0.9, 0.5]])
    mask = torch.zeros(1, 5, dtype=torch.bool)
    mask[:, columns] = True
    wide = torch.full((1, 5), garbage)
    wide[:, columns] = scores
    wide.requires_grad_()
    for change in (delta_step_scores, lambda s, m: clipped_step_scores(s, m, eta=0.4)):
        changed = change(wide, mask)
        torch.testing.assert_close(changed[:, columns], change(scores, all_there(scores)))
        assert changed[~mask].eq(0).all()
        (gradient,) = torch.autograd.grad(changed.sum(), wide)
        assert gradient[~mask].eq(0).all()
        assert gradient.isfinite().all()


def test_a_batch_is_its_rows_and_a_row_without_steps_is_zero():
    scores = torch.randn(3, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    together = delta_step_scores(scores, mask)
    for row in range(3):
        alone = delta_step_scores(scores[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])
    assert together[2].eq(0).all()
    assert together[1, 0] == scores[1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_for_any_precision(dtype):
    scores = torch.tensor([FIGURE], dtype=dtype)
    assert clipped_step_scores(scores, all_there(scores), eta=0.5).dtype == torch.float32
    assert delta_step_scores(scores, all_there(scores)).dtype == torch.float32


def test_clip_and_delta_on_tokens_with_success_at_the_end():
    """The whole reward of the paper: steps first, success on the last token."""
    ids = torch.tensor([[0, 0, 1, 2, 2, 3]])
    mask, steps = ids >= 0, torch.tensor([FIGURE])
    there = all_there(steps)
    steps = delta_step_scores(clipped_step_scores(steps, there, eta=0.5), there)
    reward = step_score_credit(steps, ids, mask) + terminal_credit(torch.tensor([1.0]), mask)
    torch.testing.assert_close(reward, torch.tensor([[0.0, 0.3, -0.2, 0.0, -0.1, 1.0]]))
