import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import log_ratio as reference

from tokencredit.credit.implicit import (
    contrastive_prompt_credit,
    implicit_advantages,
    implicit_q_values,
    implicit_values,
    log_ratio_credit,
    shaped_log_ratio_credit,
    top_share_mask,
)
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.shaping import potential_shaping

NAN, INF = math.nan, math.inf
seeds = st.integers(0, 10**6)
clips = st.sampled_from([None, 0.05, 1.0])


def random_case(seed, batch=3, time=6):
    """Log-probs under two models, scores, and masks with holes and empty rows."""
    torch.manual_seed(seed)
    policy, ref = -torch.rand(2, batch, time, dtype=torch.float64) * 5
    return policy, ref, torch.randn(batch, dtype=torch.float64), torch.rand(batch, time) < 0.6


def test_literals():
    policy = torch.tensor([[-1.0, -0.5, -3.0, NAN]])
    ref = torch.tensor([[-2.0, -4.5, -1.0, -INF]])
    mask = torch.tensor([[True, True, True, False]])
    plain = log_ratio_credit(policy, ref, mask, dpo_beta=0.1)
    torch.testing.assert_close(plain, torch.tensor([[0.1, 0.4, -0.2, 0.0]]))
    clipped = log_ratio_credit(policy, ref, mask, dpo_beta=0.1, clip=0.15)
    torch.testing.assert_close(clipped, torch.tensor([[0.1, 0.15, -0.15, 0.0]]))
    shaped = shaped_log_ratio_credit(torch.tensor([2.0]), policy, ref, mask, dpo_beta=0.1)
    torch.testing.assert_close(shaped, torch.tensor([[0.1, 0.4, 1.5, 0.0]]))


def test_it_is_scaled_before_it_is_clipped():
    """A ratio of 4 nats at 0.1 is 0.4, within 1; clipped first it would be 0.1."""
    policy, ref, mask = torch.tensor([[0.0]]), torch.tensor([[-4.0]]), torch.tensor([[True]])
    assert log_ratio_credit(policy, ref, mask, dpo_beta=0.1, clip=1.0).item() == pytest.approx(0.4)


def test_contrastive_prompt_literal():
    better = torch.tensor([[-1.0, math.log(0.75), -9.0]])
    worse = torch.tensor([[-1.0, math.log(0.25), -1.0]])
    mask = torch.tensor([[True, True, False]])
    token_scores = contrastive_prompt_credit(better, worse, mask)
    torch.testing.assert_close(token_scores, torch.tensor([[0.0, 0.25, 0.0]]))


@given(seeds, clips)
def test_log_ratio_against_the_reference(seed, clip):
    policy, ref, _, mask = random_case(seed)
    limit = INF if clip is None else clip
    expected = [
        reference.log_ratio(*row, 0.3, limit)
        for row in zip(policy.tolist(), ref.tolist(), mask.tolist(), strict=True)
    ]
    token_scores = log_ratio_credit(policy, ref, mask, dpo_beta=0.3, clip=clip)
    torch.testing.assert_close(token_scores, torch.tensor(expected))


@given(seeds, clips)
def test_shaped_against_the_reference(seed, clip):
    policy, ref, scores, mask = random_case(seed)
    limit = INF if clip is None else clip
    expected = [
        reference.shaped_log_ratio(*row, 0.3, limit)
        for row in zip(scores.tolist(), policy.tolist(), ref.tolist(), mask.tolist(), strict=True)
    ]
    token_scores = shaped_log_ratio_credit(scores, policy, ref, mask, dpo_beta=0.3, clip=clip)
    torch.testing.assert_close(token_scores, torch.tensor(expected))


@given(seeds)
def test_contrastive_prompt_against_the_reference(seed):
    better, worse, _, mask = random_case(seed)
    expected = [
        reference.contrastive_prompt(*row)
        for row in zip(better.tolist(), worse.tolist(), mask.tolist(), strict=True)
    ]
    token_scores = contrastive_prompt_credit(better, worse, mask)
    torch.testing.assert_close(token_scores, torch.tensor(expected))


def test_small_contrasts_are_exact():
    tiny = contrastive_prompt_credit(
        torch.tensor([[2e-9]]), torch.tensor([[0.0]]), torch.tensor([[True]])
    )
    assert tiny.item() == pytest.approx(5e-10)


def test_opposite_prompts_give_opposite_scores():
    better, worse, _, mask = random_case(0)
    forth, back = (
        contrastive_prompt_credit(*pair, mask) for pair in [(better, worse), (worse, better)]
    )
    assert torch.equal(forth, -back)


def test_reductions():
    policy, ref, scores, mask = random_case(1)
    same = shaped_log_ratio_credit(scores, ref, ref, mask, dpo_beta=0.3)
    torch.testing.assert_close(same, terminal_credit(scores, mask))
    assert log_ratio_credit(ref, ref, mask, dpo_beta=0.3).eq(0).all()
    assert contrastive_prompt_credit(ref, ref, mask).eq(0).all()
    wide = log_ratio_credit(policy, ref, mask, dpo_beta=0.3, clip=100.0)
    assert torch.equal(wide, log_ratio_credit(policy, ref, mask, dpo_beta=0.3))
    # A slope of one quarter at zero.
    near = contrastive_prompt_credit(1e-3 * policy, 1e-3 * ref, mask)
    linear = log_ratio_credit(1e-3 * policy, 1e-3 * ref, mask, dpo_beta=0.25)
    torch.testing.assert_close(near, linear, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_shaped_is_the_terminal_reward_with_potential_based_shaping(clip):
    policy, ref, scores, _ = random_case(2)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] + [False] * 5])
    ratios = log_ratio_credit(policy, ref, mask, dpo_beta=0.3, clip=clip)
    potentials = torch.nn.functional.pad(ratios.cumsum(-1), (1, 0))
    expected = terminal_credit(scores, mask) + potential_shaping(potentials, mask)
    token_scores = shaped_log_ratio_credit(scores, policy, ref, mask, dpo_beta=0.3, clip=clip)
    torch.testing.assert_close(token_scores, expected)


def by_text(mdp):
    """Log-probs of every text under the optimal policy and the reference, as (text, time)."""
    texts = list(mdp.texts())

    def table(logprob):
        rows = [[logprob(text[:t], text[t]) for t in range(mdp.horizon)] for text in texts]
        return torch.tensor(rows, dtype=torch.float64)

    policy = table(mdp.policy_logprob)
    ref = table(lambda state, action: mdp.ref_logprob[state, action])
    return texts, policy, ref, torch.ones_like(policy, dtype=torch.bool)


@pytest.mark.parametrize("dpo_beta", [0.1, 1.0])
def test_from_r_to_q_the_log_ratio_is_the_reward_with_the_value_as_potential(dpo_beta):
    mdp = reference.LanguageMDP(vocab=3, horizon=3, dpo_beta=dpo_beta, seed=0)
    texts, policy, ref, mask = by_text(mdp)
    token_scores = log_ratio_credit(policy, ref, mask, dpo_beta=dpo_beta)
    expected = [
        [
            mdp.reward[text[:t], text[t]] + mdp.value[text[: t + 1]] - mdp.value[text[:t]]
            for t in range(3)
        ]
        for text in texts
    ]
    torch.testing.assert_close(token_scores, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    totals = torch.tensor([mdp.total_reward(text) for text in texts])
    torch.testing.assert_close(token_scores.sum(-1), totals - mdp.value[()])
    shaped = shaped_log_ratio_credit(totals, policy, ref, mask, dpo_beta=dpo_beta)
    torch.testing.assert_close(shaped.sum(-1), totals)


def test_the_values_of_the_toy_are_those_of_the_closed_form():
    """V of the empty text, once backwards step by step, once over whole texts."""
    mdp = reference.LanguageMDP(vocab=3, horizon=3, dpo_beta=0.5, seed=1)
    texts, policy, ref, _ = by_text(mdp)
    totals = torch.tensor([mdp.total_reward(text) for text in texts], dtype=torch.float64)
    tilted = ref.sum(-1) + totals / 0.5
    assert mdp.value[()] == pytest.approx(0.5 * tilted.logsumexp(0).item())
    torch.testing.assert_close(policy.sum(-1), tilted - tilted.logsumexp(0))


def test_implicit_values_are_those_of_the_toy():
    mdp = reference.LanguageMDP(vocab=3, horizon=3, dpo_beta=0.5, seed=2)
    states = mdp.states()
    q_values = torch.tensor([[mdp.q_value[state, a] for a in range(3)] for state in states])
    values = torch.tensor([mdp.value[state] for state in states])
    logits = q_values / 0.5
    torch.testing.assert_close(implicit_q_values(logits, dpo_beta=0.5), q_values)
    torch.testing.assert_close(implicit_values(logits, dpo_beta=0.5), values)
    advantages = implicit_advantages(logits, dpo_beta=0.5)
    torch.testing.assert_close(advantages, q_values - values[:, None])
    assert (advantages <= 0).all()


def test_values_are_known_up_to_a_constant_of_each_state_and_advantages_exactly():
    logits, shift = torch.randn(4, 7), torch.randn(4, 1)
    moved = logits + shift
    torch.testing.assert_close(
        implicit_values(moved, dpo_beta=0.5),
        implicit_values(logits, dpo_beta=0.5) + 0.5 * shift[:, 0],
    )
    torch.testing.assert_close(
        implicit_advantages(moved, dpo_beta=0.5), implicit_advantages(logits, dpo_beta=0.5)
    )


@pytest.mark.parametrize("of", [implicit_q_values, implicit_values, implicit_advantages])
def test_implicit_values_are_float32_whatever_the_logits(of):
    logits = torch.randn(2, 5).to(torch.bfloat16)
    assert of(logits, dpo_beta=0.5).dtype == torch.float32
    torch.testing.assert_close(of(logits, dpo_beta=0.5), of(logits.float(), dpo_beta=0.5))


@pytest.mark.parametrize("of", [implicit_q_values, implicit_values, implicit_advantages])
@pytest.mark.parametrize("dpo_beta", [0.0, -1.0, NAN])
def test_implicit_values_need_a_positive_beta(of, dpo_beta):
    with pytest.raises(ConfigError, match="dpo_beta is"):
        of(torch.zeros(2), dpo_beta=dpo_beta)


def test_top_share_literals():
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0], [9.0, -1.0, -2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 5, [False, True, True, False, False]])
    top = top_share_mask(scores, mask, share=0.4, side="top")
    assert top.tolist() == [[True, False, True, False, False], [False, True, False, False, False]]
    bottom = top_share_mask(scores, mask, share=0.4, side="bottom")
    assert bottom.tolist() == [
        [False, True, False, True, False],
        [False, False, True, False, False],
    ]


def test_short_responses_keep_a_token_and_empty_ones_none():
    mask = torch.tensor([[True, True, True], [True, False, False], [False] * 3])
    selected = top_share_mask(torch.randn(3, 3), mask, share=0.3, side="top")
    assert selected.sum(-1).tolist() == [1, 1, 0]


@pytest.mark.parametrize("side", ["top", "bottom"])
def test_of_equal_scores_the_earlier_is_taken(side):
    scores = torch.zeros(1, 200)
    selected = top_share_mask(scores, torch.ones(1, 200).bool(), share=0.5, side=side)
    assert selected.tolist() == [[True] * 100 + [False] * 100]


def test_a_share_that_is_a_whole_number_of_tokens_is_not_rounded_down():
    """0.29 * 100 is 28.999... in floating point."""
    mask = torch.ones(1, 100, dtype=torch.bool)
    assert top_share_mask(torch.randn(1, 100), mask, share=0.29, side="top").sum() == 29
    assert torch.equal(top_share_mask(torch.randn(1, 100), mask, share=1.0, side="top"), mask)


@given(seeds, st.sampled_from([0.05, 0.3, 0.5, 1.0]), st.sampled_from(["top", "bottom"]))
def test_top_share_against_the_reference(seed, share, side):
    _, _, _, mask = random_case(seed)
    scores = torch.randint(-2, 3, mask.shape).double()  # many ties
    expected = [
        reference.top_share(*row, share, side)
        for row in zip(scores.tolist(), mask.tolist(), strict=True)
    ]
    selected = top_share_mask(scores.masked_fill(~mask, NAN), mask, share=share, side=side)
    assert selected.tolist() == expected


@pytest.mark.parametrize(("share", "side"), [(0.0, "top"), (1.1, "top"), (NAN, "top"), (0.5, "up")])
@pytest.mark.usefixtures("unchecked")
def test_shares_and_sides_are_checked(share, side):
    with pytest.raises(ConfigError, match=r"share is .* side"):
        top_share_mask(torch.zeros(1, 2), torch.ones(1, 2).bool(), share=share, side=side)


def test_gradients_stay_clear_of_what_lies_under_the_mask():
    policy = torch.tensor([[-1.0, NAN, -INF]], requires_grad=True)
    ref, mask = torch.tensor([[-2.0, NAN, -INF]]), torch.tensor([[True, False, False]])
    log_ratio_credit(policy, ref, mask, dpo_beta=0.5).sum().backward()
    assert policy.grad.tolist() == [[0.5, 0.0, 0.0]]
    policy.grad = None
    contrastive_prompt_credit(policy, torch.full_like(ref, -1.0), mask).sum().backward()
    assert policy.grad.tolist() == [[0.25, 0.0, 0.0]]


@pytest.mark.parametrize("setting", [{"dpo_beta": 0.0}, {"dpo_beta": NAN}, {"clip": 0.0}])
def test_beta_and_clip_are_positive(setting):
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    settings = {"dpo_beta": 0.1} | setting
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} is .*expected a positive number"):
        log_ratio_credit(zeros, zeros, mask, **settings)
    with pytest.raises(ConfigError, match=f"{name} is"):
        shaped_log_ratio_credit(torch.zeros(1), zeros, zeros, mask, **settings)


def calls(first, second, mask):
    """Every credit of this file on the same log-probs."""
    scores = torch.zeros(len(mask))
    return [
        lambda: log_ratio_credit(first, second, mask, dpo_beta=0.1),
        lambda: shaped_log_ratio_credit(scores, first, second, mask, dpo_beta=0.1),
        lambda: contrastive_prompt_credit(first, second, mask),
    ]


@pytest.mark.usefixtures("unchecked")
def test_shapes_are_not_broadcast():
    mask, wrong = torch.ones(2, 3, dtype=torch.bool), torch.zeros(1, 3)
    good = torch.zeros(2, 3)
    for call in [*calls(wrong, good, mask), *calls(good, wrong, mask)]:
        with pytest.raises(ShapeError, match=r"_logprobs has shape \(1, 3\) and response_mask"):
            call()
    with pytest.raises(ShapeError, match="one score per response"):
        shaped_log_ratio_credit(torch.zeros(1), good, good, mask, dpo_beta=0.1)
    with pytest.raises(ShapeError, match=r"token_scores has shape \(1, 3\)"):
        top_share_mask(wrong, mask, share=0.5, side="top")


@pytest.mark.parametrize(("first", "second"), [(NAN, -1.0), (-1.0, NAN), (-INF, -INF)])
def test_nan_inside_the_mask_is_an_error(first, second):
    pair = torch.tensor([[first, -1.0]]), torch.tensor([[second, -1.0]])
    for call in calls(*pair, torch.tensor([[True, True]])):
        with pytest.raises(NumericError, match="inside response_mask are NaN or infinite"):
            call()


def test_an_impossible_token_needs_a_clip():
    policy, ref = torch.tensor([[-1.0, -INF]]), torch.tensor([[-INF, -1.0]])
    mask = torch.tensor([[True, True]])
    with pytest.raises(NumericError, match="infinite"):
        log_ratio_credit(policy, ref, mask, dpo_beta=0.1)
    assert log_ratio_credit(policy, ref, mask, dpo_beta=0.1, clip=2.0).tolist() == [[2.0, -2.0]]
    assert contrastive_prompt_credit(policy, ref, mask).tolist() == [[0.5, -0.5]]


def test_every_text_of_the_toy_is_there():
    mdp = reference.LanguageMDP(vocab=2, horizon=2, dpo_beta=0.5, seed=0)
    assert list(mdp.texts()) == list(itertools.product((0, 1), repeat=2))
    assert len(mdp.states()) == 3
