import math

import pytest
import torch
from reference import vocabulary_losses as reference
from torch.autograd import gradcheck

from tokencredit.errors import ConfigError
from tokencredit.logprobs import token_logprobs
from tokencredit.masking import masked_sum
from tokencredit.reward_model.losses.pairs import bradley_terry_loss
from tokencredit.reward_model.losses.targets import prefix_regression_loss
from tokencredit.reward_model.losses.values import q_value_loss
from tokencredit.reward_model.losses.vocabulary import (
    autoregressive_reward_loss,
    best_values,
    expected_value_loss,
    expected_values,
    final_value_loss,
    maximum_constraint_loss,
    token_values,
)

VOCAB = 7
LENGTHS = ([4, 1, 6], [2, 5, 3])
SIDES = ("right", "left", "inner")


def drawn(lengths, seed):
    """Logits and tokens of responses of these lengths, as lists."""
    generator = torch.Generator().manual_seed(seed)
    logits = [(2 * torch.randn(n, VOCAB, generator=generator)).tolist() for n in lengths]
    tokens = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return logits, tokens


def columns(length, width, side):
    if side == "inner":
        return [*range(1), *range(width - length + 1, width)]
    return range(length) if side == "right" else range(width - length, width)


def padded(rows, side="right", width=8):
    """Rows of numbers, or of lists of them, as a tensor with its mask; NaN off it."""
    like = torch.tensor(rows[0])
    values = torch.full((len(rows), width, *like.shape[1:]), math.nan)
    values = values if like.is_floating_point() else torch.zeros_like(values, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        at = list(columns(len(row), width, side))
        values[index, at], mask[index, at] = torch.tensor(row), True
    return values, mask


def pairs(side="right"):
    """Two sides of pairs: lists, and tensors with masks."""
    lists = [drawn(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    tensors = [(padded(logits, side)[0], *padded(tokens, side)) for logits, tokens in lists]
    return lists, tensors


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def test_values_are_read_where_the_token_was_to_be_chosen():
    logits = torch.tensor([[[1.0, 5.0, 2.0], [0.5, -1.0, 3.0]]])
    ids = torch.tensor([[2, 0]])
    assert token_values(logits, ids).tolist() == [[2.0, 0.5]]
    assert best_values(logits).tolist() == [[5.0, 3.0]]
    policy = torch.tensor([[[0.0, 0.0, -math.inf], [9.0, -math.inf, -math.inf]]])
    assert expected_values(logits, policy).tolist() == [[3.0, 0.5]]
    assert token_values(logits.bfloat16(), ids).dtype == torch.float32


def test_a_token_that_the_policy_bans_may_have_any_value():
    logits = torch.tensor([[2.0, math.nan, -math.inf]], requires_grad=True)
    policy = torch.tensor([[1.0, -math.inf, -math.inf]])
    expected = expected_values(logits, policy)
    assert expected.tolist() == [2.0]


def test_literals_by_hand():
    values = torch.tensor([[9.0, 2.0, 4.0]])
    mask = torch.tensor([[True, True, True]])
    two = torch.tensor([[True, True, False]])
    assert final_value_loss(values, values, mask, two).item() == pytest.approx(
        math.log1p(math.exp(-2)), rel=1e-5
    )
    best = torch.tensor([[7.0, 8.0, 6.0]])
    # 9 against 8, then 2 against 6; the last has nothing behind it.
    loss = maximum_constraint_loss(values, best, mask, first_token=1)
    assert loss.item() == pytest.approx((1 + 16) / 2)
    assert maximum_constraint_loss(values, best, mask, first_token=2).item() == 16
    assert maximum_constraint_loss(values, best, two, first_token=2).item() == 0
    assert maximum_constraint_loss(values, best, mask).item() == 0
    expected = torch.tensor([[0.0, 5.0, 3.0]])
    outcome = torch.tensor([6.0])
    # Targets: the policy's mean after the first two tokens, then the outcome.
    loss = expected_value_loss(values, expected, outcome, mask)
    assert loss.item() == pytest.approx(((9 - 5) ** 2 + (2 - 3) ** 2 + (4 - 6) ** 2) / 3)
    logprobs = torch.tensor([[-1.0, -2.0, -9.0]])
    loss = autoregressive_reward_loss(logprobs, logprobs, two, mask, reward_beta=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5 * 9)), rel=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_the_reference_loops_agree(side):
    lists, tensors = pairs(side)
    (chosen, _, chosen_mask), (*_, rejected_mask) = tensors
    read = [[reference.values(*row) for row in zip(*both, strict=True)] for both in lists]
    margin = torch.tensor([0.0, 0.5, 1.0])
    values = [token_values(logits, ids) for logits, ids, _ in tensors]
    loss = final_value_loss(*values, chosen_mask, rejected_mask, margin=margin)
    expected = mean(map(reference.final_value, *read, margin.tolist()))
    assert loss.item() == pytest.approx(expected, rel=1e-4)

    errors = [
        error
        for logits, tokens in zip(*lists[0], strict=True)
        for error in reference.constraint_errors(logits, tokens, 2)
    ]
    loss = maximum_constraint_loss(values[0], best_values(chosen), chosen_mask, first_token=2)
    assert loss.item() == pytest.approx(mean(error**2 for error in errors), rel=1e-4)

    said = [[reference.logprobs(*row) for row in zip(*both, strict=True)] for both in lists]
    logprobs = [token_logprobs(logits, ids) for logits, ids, _ in tensors]
    for over in ("sum", "mean"):
        loss = autoregressive_reward_loss(
            *logprobs, chosen_mask, rejected_mask, reward_beta=0.3, over_tokens=over, margin=margin
        )
        expected = mean(
            reference.autoregressive(*rows, 0.3, lead, mean=over == "mean")
            for *rows, lead in zip(*said, margin.tolist(), strict=True)
        )
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    policy_lists, _ = drawn(LENGTHS[0], 9)
    policy = padded(policy_lists, side)[0]
    outcomes = torch.tensor([1.0, -2.0, 0.5])
    for share in (0.0, 0.3, 1.0):
        loss = expected_value_loss(
            values[0],
            expected_values(chosen, policy),
            outcomes,
            chosen_mask,
            bootstrap_lambda=share,
        )
        rows = zip(lists[0][0], policy_lists, lists[0][1], outcomes.tolist(), strict=True)
        expected = mean(reference.expected_value(*row, share) for row in rows)
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def numbers(side="right"):
    """What the losses take, with gradient, NaN off the masks."""
    _, tensors = pairs(side)
    masks = [mask for *_, mask in tensors]
    values = [
        token_values(logits, ids).masked_fill(~mask, math.nan).requires_grad_()
        for logits, ids, mask in tensors
    ]
    best = best_values(tensors[0][0]).masked_fill(~masks[0], math.nan).requires_grad_()
    return values, best, masks


def losses(values, best, masks):
    outcomes = torch.tensor([1.0, -2.0, 0.5])
    return {
        "final": final_value_loss(*values, *masks),
        "constraint": maximum_constraint_loss(values[0], best, masks[0], first_token=1),
        "autoregressive": autoregressive_reward_loss(*values, *masks, reward_beta=0.3),
        "mean": autoregressive_reward_loss(*values, *masks, over_tokens="mean"),
        "expected": expected_value_loss(values[0], best, outcomes, masks[0]),
    }


@pytest.mark.parametrize("side", SIDES)
def test_neither_padding_nor_garbage_changes_value_or_gradient(side):
    plain = numbers()
    other = numbers(side)
    for name, loss in losses(*other).items():
        torch.testing.assert_close(loss, losses(*plain)[name], msg=name)
    for values, best, masks in (plain, other):
        sum(losses(values, best, masks).values()).backward()
        for tensor, mask in zip([*values, best], [*masks, masks[0]], strict=True):
            assert tensor.grad.isfinite().all()
            assert not tensor.grad[~mask].any()
    for first, second, mask, moved in zip(
        [*plain[0], plain[1]], [*other[0], other[1]], [*plain[2], plain[2][0]],
        [*other[2], other[2][0]], strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(second.grad[moved], first.grad[mask])


@pytest.mark.parametrize("over", [None, "sum", "mean"])
def test_a_batch_costs_the_mean_of_its_pairs(over):
    values, _, masks = numbers()

    def loss(rows):
        some = [tensor[rows] for tensor in (*values, *masks)]
        return (
            autoregressive_reward_loss(*some, over_tokens=over) if over else final_value_loss(*some)
        )

    alone = [loss(slice(row, row + 1)) for row in range(3)]
    torch.testing.assert_close(loss(slice(None)), torch.stack(alone).mean())


def test_rows_without_tokens():
    nothing, none = torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)
    nothing.requires_grad_()
    assert final_value_loss(nothing, nothing, none, none).item() == pytest.approx(math.log(2))
    reward = autoregressive_reward_loss(nothing, nothing, none, none)
    constraint = maximum_constraint_loss(nothing, nothing, none, first_token=1)
    values = expected_value_loss(nothing, nothing, torch.ones(2), none)
    assert constraint.item() == values.item() == 0
    (reward + constraint + values).backward()
    assert not nothing.grad.any()


def test_bfloat16_gives_float32():
    values, best, masks = numbers()
    halves = [value.detach().bfloat16() for value in values]
    for loss in losses(halves, best.detach().bfloat16(), masks).values():
        assert loss.dtype == torch.float32


@pytest.mark.parametrize("loss", ["final", "constraint", "autoregressive", "mean"])
def test_gradients(loss):
    values, best, masks = numbers()
    chosen, rejected, top = (
        tensor.detach().masked_fill(~mask, 0.0).double().requires_grad_()
        for tensor, mask in zip([*values, best], [*masks, masks[0]], strict=True)
    )

    def of(a, b, c):
        return losses([a, b], c, masks)[loss]

    assert gradcheck(of, (chosen, rejected, top), eps=1e-2, atol=1e-2, rtol=1e-3)


def test_targets_of_values_have_no_gradient():
    values, best, masks = numbers()
    losses(values, best, masks)["expected"].backward()
    assert best.grad is None
    assert values[0].grad[masks[0]].any()


def test_the_gradient_of_the_constraint_flows_or_is_stopped():
    for way in ("flows", "stopped"):
        values, best, masks = numbers()
        maximum_constraint_loss(
            values[0], best, masks[0], first_token=1, target_gradient=way
        ).backward()
        assert (best.grad is not None) == (way == "flows")
        assert values[0].grad[masks[0]].any()


def test_a_uniform_language_model_prefers_nothing_but_length():
    logits = torch.zeros(2, 5, VOCAB)
    logprobs = token_logprobs(logits, torch.ones(2, 5, dtype=torch.long))
    mask = torch.ones(2, 5, dtype=torch.bool)
    even = autoregressive_reward_loss(logprobs, logprobs, mask, mask)
    assert even.item() == pytest.approx(math.log(2))
    longer = autoregressive_reward_loss(logprobs, logprobs[:, :3], mask, mask[:, :3])
    assert longer > even
    per_token = autoregressive_reward_loss(
        logprobs, logprobs[:, :3], mask, mask[:, :3], over_tokens="mean"
    )
    assert per_token.item() == pytest.approx(math.log(2))


def test_they_are_the_losses_of_scalar_heads_on_the_same_numbers():
    values, best, masks = numbers()
    last = [v[torch.arange(3), m.sum(-1) - 1] for v, m in zip(values, masks, strict=True)]
    torch.testing.assert_close(losses(values, best, masks)["final"], bradley_terry_loss(*last))
    rewards = [0.3 * masked_sum(v, m) for v, m in zip(values, masks, strict=True)]
    torch.testing.assert_close(
        losses(values, best, masks)["autoregressive"], bradley_terry_loss(*rewards)
    )
    outcomes = torch.tensor([1.0, -2.0, 0.5])
    fudge = expected_value_loss(values[0], best, outcomes, masks[0], bootstrap_lambda=1.0)
    torch.testing.assert_close(fudge, prefix_regression_loss(values[0], outcomes, masks[0]))


def test_a_policy_that_always_writes_these_tokens_learns_from_the_next_value():
    _, tensors = pairs()
    logits, ids, mask = tensors[0]
    certain = torch.full_like(logits, -math.inf).scatter(-1, ids[..., None], 0.0)
    outcomes = torch.tensor([1.0, -2.0, 0.5])
    values = token_values(logits, ids)
    for share in (0.0, 0.4):
        ours = expected_value_loss(
            values, expected_values(logits, certain), outcomes, mask, bootstrap_lambda=share
        )
        torch.testing.assert_close(
            ours, q_value_loss(values, outcomes, mask, bootstrap_lambda=share)
        )


def test_settings_out_of_range():
    values, best, masks = numbers()
    with pytest.raises(ConfigError, match="first_token is 0"):
        maximum_constraint_loss(values[0], best, masks[0], first_token=0)
    with pytest.raises(ConfigError, match="reward_beta is 0"):
        autoregressive_reward_loss(*values, *masks, reward_beta=0.0)
    with pytest.raises(ConfigError, match="bootstrap_lambda is 2"):
        expected_value_loss(values[0], best, torch.ones(3), masks[0], bootstrap_lambda=2.0)
