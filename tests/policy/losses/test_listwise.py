"""Lists of responses: reductions, ties, gradients, the average of discriminative tuning."""

import pytest
import torch
from preference_cases import answers_for, as_floats, losses_of, options_of
from reference import preference_losses as reference
from torch.nn.functional import logsigmoid

from tokencredit.errors import ConfigError, DataError
from tokencredit.policy.losses.grouped import negative_weights
from tokencredit.policy.losses.listwise import (
    best_answers,
    discriminative_losses,
    discriminative_weights,
    misordering_losses,
    ranking_losses,
    require_lists,
    soft_list_losses,
)

ALL = torch.ones(1, 3, dtype=torch.bool)
SCORES = torch.tensor([[-1.0, -0.5, -2.0]], dtype=torch.float64)
REWARDS = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64)


def test_two_ranked_responses_are_a_logistic_loss_with_the_gap_as_slope():
    losses = ranking_losses(SCORES[:, :2], REWARDS[:, :2], ALL[:, :2])
    torch.testing.assert_close(losses, -logsigmoid(torch.tensor([-0.5]).double()))


def test_equal_rewards_are_not_compared():
    same = torch.ones(1, 3, dtype=torch.float64)
    for losses in (ranking_losses, misordering_losses):
        scores = SCORES.clone().requires_grad_()
        found = losses(scores, same, ALL)
        assert found.tolist() == [0.0]
        found.sum().backward()
        assert not scores.grad.any()


def test_the_right_order_costs_rrhf_nothing():
    ordered = torch.tensor([[-0.1, -0.5, -2.0]], dtype=torch.float64)
    assert misordering_losses(ordered, REWARDS, ALL).tolist() == [0.0]
    assert misordering_losses(SCORES, REWARDS, ALL).tolist() == [0.5]


def test_answers_may_stand_in_any_order_and_absent_ones_count_for_nothing():
    order = torch.tensor([2, 0, 1])
    present = torch.tensor([[True, False, True, True]])
    rewards = torch.tensor([[0.5, torch.nan, 2.0, 1.0]], dtype=torch.float64)
    for losses in (
        ranking_losses,
        misordering_losses,
        lambda *some: soft_list_losses(*some, temperature=0.7),
    ):
        whole = losses(SCORES, REWARDS, ALL)
        torch.testing.assert_close(losses(SCORES[:, order], REWARDS[:, order], ALL), whole)
        scores = torch.tensor([[-2.0, torch.nan, -1.0, -0.5]], dtype=torch.float64)
        scores.requires_grad_()
        found = losses(scores, rewards, present)
        torch.testing.assert_close(found, whole)
        found.sum().backward()
        assert bool(scores.grad.isfinite().all())
        assert float(scores.grad[0, 1]) == 0.0


def test_brain_with_two_responses_and_no_temperature_is_dpo_of_price_one():
    answers = answers_for("dpo")
    lists = type(answers)(**{**vars(answers), "scores": torch.tensor([[1.0, 0.0]]).expand(3, 2)})
    torch.testing.assert_close(
        losses_of("brain", lists, list_temperature=0.0), losses_of("dpo", answers, dpo_beta=1.0)
    )


def test_brain_where_shares_are_as_deserved_and_its_gradient():
    scores = (REWARDS / 0.4 + 5.0).requires_grad_()
    loss = soft_list_losses(scores, REWARDS, ALL, temperature=0.4)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert float(torch.autograd.grad(loss.sum(), scores)[0].abs().max()) < 1e-12
    scores = SCORES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        soft_list_losses(scores, REWARDS, ALL, temperature=0.4).sum(), scores
    )
    torch.testing.assert_close(gradient, SCORES.softmax(-1) - (REWARDS / 0.4).softmax(-1))
    tied = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    halves = soft_list_losses(
        torch.tensor([[3.0, 3.0, -90.0]]).double(), tied, ALL, temperature=0.0
    )
    assert float(halves) == pytest.approx(0.0, abs=1e-9)


def test_the_surrogate_of_dft_has_the_gradient_of_its_objective():
    start, tau = torch.tensor([[-1.5, -3.0]], dtype=torch.float64), 0.6
    present = torch.ones(1, 2, dtype=torch.bool)
    good = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    bad = torch.tensor([[-2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    objective = -good + tau * (bad / tau - start).exp().mean(-1).log()
    expected = torch.autograd.grad(objective.sum(), (good, bad))
    weights, averages = discriminative_weights(
        bad, start, present, torch.tensor([7.0]), temperature=tau, average_rate=1.0
    )
    surrogate = discriminative_losses(good, bad, weights, present)
    for ours, theirs in zip(
        torch.autograd.grad(surrogate.sum(), (good, bad)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert float(averages) == pytest.approx(float((bad.detach() / tau - start).exp().mean().log()))
    weights.requires_grad_()
    discriminative_losses(good, bad, weights, present).sum().backward()
    assert weights.grad is None
    alone = discriminative_weights(
        bad[:, :1], None, present[:, :1], averages, temperature=tau, average_rate=1.0
    )[0]
    assert alone.tolist() == [[1.0]]  # one bad response, nothing kept: −s(y+) + s(y')


def test_averages_run_and_begin_with_the_first_visit():
    for name in ("dft", "dft2"):
        answers = answers_for(name)
        options = options_of(name)
        by_length = name == "dft2"
        so_far = torch.tensor([0.3, -torch.inf, -1.0], dtype=torch.float64)
        weights, averages = negative_weights(answers, options, so_far)
        assert not weights.requires_grad
        for row, responses in enumerate(as_floats(answers)):
            before = None if row == 1 else float(so_far[row])
            expected, average = reference.dft_weights(
                responses, options.list_temperature, options.average_rate, before, by_length
            )
            assert weights[row, : len(expected)].tolist() == pytest.approx(expected)
            assert float(averages[row]) == pytest.approx(average)
        assert float(weights[2, 1]) == 0.0


def test_the_best_answer_is_the_first_of_them():
    rewards = torch.tensor([[1.0, 3.0, 3.0], [9.0, 0.0, 1.0]])
    present = torch.tensor([[True, True, True], [False, True, True]])
    assert best_answers(rewards, present).int().tolist() == [[0, 1, 0], [0, 0, 1]]


def test_bad_lists_and_settings_are_refused():
    with pytest.raises(DataError, match="1 lists have fewer than two answers"):
        require_lists(torch.tensor([[True, True], [True, False]]))
    for losses in (ranking_losses, misordering_losses):
        with pytest.raises(DataError, match="fewer than two"):
            losses(SCORES[:, :1], REWARDS[:, :1], ALL[:, :1])
    with pytest.raises(DataError, match="fewer than two"):
        soft_list_losses(SCORES[:, :1], REWARDS[:, :1], ALL[:, :1], temperature=1.0)
    with pytest.raises(ConfigError, match=r"temperature is -1.0; expected at least 0"):
        soft_list_losses(SCORES, REWARDS, ALL, temperature=-1.0)
    for wrong in (
        {"temperature": 0.0, "average_rate": 1.0},
        {"temperature": 1.0, "average_rate": 0.0},
    ):
        with pytest.raises(ConfigError, match="expected a positive temperature and a rate above 0"):
            discriminative_weights(SCORES, None, ALL, torch.zeros(1), **wrong)
