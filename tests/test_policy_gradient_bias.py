"""Which estimators of the policy gradient survive which credit, by exact enumeration.

A policy over an end-of-sequence symbol and two words, at most three tokens long, can say fifteen
things. Its gradient and the mean of every estimator are sums over all of them, so that nothing
here is a matter of luck: equal means equal up to float32 rounding of the credit, and biased means
biased.
"""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import attention_credit, terminal_credit, uniform_credit
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import TokenCreditWarning
from tokencredit.policy.advantages import gae_advantages, macro_gae_advantages, rewards_to_go
from tokencredit.recipes.policy.setting_groups import AlgorithmSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig, warn_of_biased_gradient
from tokencredit.shaping import potential_shaping
from tokencredit.text.pooling import scores_at_segment_ends
from tokencredit.text.segments import (
    SegmentSettings,
    closed_when_shown,
    entropy_segments,
    ngram_segments,
    perplexity_segments,
)
from tokencredit.text.sentences import text_segments, text_segments_when_shown

END, WORDS, LONGEST = 0, (1, 2), 3
EQUAL, BIASED = 1e-6, 1e-2
"""Largest difference that is rounding; smallest that is bias. Gradients here are about 0.3."""


@dataclass(frozen=True)
class World:
    """Every response, the state before each of its tokens, and arbitrary rewards.

    Attributes:
        states: row of the policy's table for the prefix before each token.
        prefix_scores: of the prompt alone and then up to each token.
        weights: attention that the last token pays to each one.
        logits: the policy's table, one row per state.
    """

    responses: Tensor
    mask: Tensor
    states: Tensor
    prefix_scores: Tensor
    weights: Tensor
    logits: Tensor

    @property
    def scores(self) -> Tensor:
        """Of whole responses: the prefix score after the last token."""
        return self.prefix_scores.gather(-1, self.mask.sum(-1, keepdim=True))[:, 0]

    @property
    def logprobs(self) -> Tensor:
        table = self.logits.log_softmax(-1)
        return table[self.states, self.responses].masked_fill(~self.mask, 0.0)

    def expectation(self, of: Tensor) -> Tensor:
        """Mean over everything the policy may say."""
        return (self.logprobs.sum(-1).exp() * of).sum()

    def objective_gradient(self, token_rewards: Tensor, gamma: float = 1.0) -> Tensor:
        """Of the expected return, straight from its definition."""
        returns = rewards_to_go(token_rewards.double(), self.mask, gamma=gamma)[:, 0]
        return torch.autograd.grad(self.expectation(returns), self.logits)[0]

    def estimator_mean(self, token_weights: Tensor) -> Tensor:
        """Mean over responses of sum_t weight_t * grad log pi(y_t | s_t)."""
        probabilities = self.logprobs.sum(-1).exp().detach()
        surrogate = (probabilities[:, None] * token_weights * self.logprobs).sum()
        return torch.autograd.grad(surrogate, self.logits)[0]

    def perfect_values(self, token_rewards: Tensor) -> Tensor:
        """Mean reward to go of every state, over all that the policy may say from there."""
        probabilities = self.logprobs.sum(-1).exp().detach()[:, None] * self.mask
        to_go = rewards_to_go(token_rewards.double(), self.mask)
        mass, total = torch.zeros(2, len(self.logits), dtype=torch.float64)
        mass.index_put_((self.states,), probabilities, accumulate=True)
        total.index_put_((self.states,), probabilities * to_go, accumulate=True)
        return (total / mass)[self.states].masked_fill(~self.mask, 0.0)


@pytest.fixture
def world() -> World:
    words = [list(itertools.product(WORDS, repeat=length)) for length in range(LONGEST + 1)]
    ended = [(*prefix, END) for length in range(LONGEST) for prefix in words[length]]
    said = [*ended, *words[LONGEST]]
    prefixes = [prefix for length in range(LONGEST) for prefix in words[length]]
    number = {prefix: index for index, prefix in enumerate([*prefixes, *said])}
    responses = torch.tensor([[*row, *[END] * (LONGEST - len(row))] for row in said])
    mask = torch.tensor([[t < len(row) for t in range(LONGEST)] for row in said])
    after = torch.tensor([[number[row[:t]] for t in range(LONGEST + 1)] for row in said])
    scores = torch.randn(len(number), dtype=torch.float64)
    return World(
        responses=responses,
        mask=mask,
        states=after[:, :-1].clamp(max=len(prefixes) - 1),
        prefix_scores=scores[after],
        weights=torch.rand(len(said), LONGEST),
        logits=torch.randn(len(prefixes), 3, dtype=torch.float64, requires_grad=True),
    )


CREDIT: dict[str, Callable[[World], Tensor]] = {
    "terminal": lambda world: terminal_credit(world.scores, world.mask),
    "uniform": lambda world: uniform_credit(world.scores, world.mask),
    "attention": lambda world: attention_credit(world.scores, world.weights, world.mask),
    "prefix difference": lambda world: prefix_difference_credit(world.prefix_scores, world.mask),
}
every_credit = pytest.mark.parametrize("name", CREDIT)
CAUSAL = ("terminal", "prefix difference")


def difference(gradient: Tensor, other: Tensor) -> float:
    return (gradient - other).abs().max().item()


def test_the_toy_is_complete(world):
    assert len(world.responses) == 15
    assert world.logprobs.sum(-1).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert world.objective_gradient(CREDIT["terminal"](world)).abs().max() > 0.1


@every_credit
def test_no_credit_moves_the_objective(name, world):
    """Undiscounted, each response is worth what it was, up to a constant of the prompt."""
    terminal = world.objective_gradient(CREDIT["terminal"](world))
    assert difference(world.objective_gradient(CREDIT[name](world)), terminal) < EQUAL


@every_credit
def test_the_full_return_gradient_is_right_for_every_credit(name, world):
    true = world.objective_gradient(CREDIT["terminal"](world))
    totals = CREDIT[name](world).double().sum(-1, keepdim=True).expand_as(world.mask)
    assert difference(world.estimator_mean(totals), true) < EQUAL


@every_credit
def test_the_reward_to_go_gradient_is_right_only_for_causal_credit(name, world):
    true = world.objective_gradient(CREDIT["terminal"](world))
    to_go = rewards_to_go(CREDIT[name](world).double(), world.mask)
    error = difference(world.estimator_mean(to_go), true)
    if name in CAUSAL:
        assert error < EQUAL
    else:
        assert error > BIASED


def reference(world: World) -> Tensor:
    """Log-probabilities of every next token by a reference, as arbitrary as the rewards."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(world.logits.shape, generator=generator).log_softmax(-1)
    return table[world.states]


def by_perplexity(world: World) -> Tensor:
    logprobs = reference(world).gather(-1, world.responses[..., None])[..., 0]
    return perplexity_segments(logprobs, world.mask)


def by_entropy(world: World, is_eos: Tensor | None) -> Tensor:
    entropies = -(reference(world).exp() * reference(world)).sum(-1)
    return entropy_segments(
        entropies, world.mask, threshold=entropies.median().item(), is_eos=is_eos
    )


def by_text(world: World, segments: Callable[..., Tensor]) -> Tensor:
    """Sentences, where a full stop ends one unless a letter follows."""
    texts = {END: "", 1: " so.", 2: "x"}
    rows = torch.full(world.responses.shape, -1)
    for row, (said, real) in enumerate(zip(world.responses, world.mask, strict=True)):
        pieces = [texts[token] for token in said[real].tolist()]
        ends = list(itertools.accumulate(map(len, pieces)))
        rows[row, real] = segments(ends, "".join(pieces))
    return rows


def sentences_at_end(ends: list[int], text: str) -> Tensor:
    return text_segments(list(itertools.pairwise([0, *ends])), text, kind="sentence")


def sentences_when_shown(ends: list[int], text: str) -> Tensor:
    return text_segments_when_shown(ends, text, kind="sentence")


SEGMENTS: dict[str, Callable[[World], Tensor]] = {
    "perplexity": by_perplexity,
    "perplexity, when shown": lambda world: closed_when_shown(by_perplexity(world)),
    "entropy": lambda world: by_entropy(world, is_eos=world.responses == END),
    "entropy, when shown": lambda world: by_entropy(world, is_eos=None),
    "sentences": lambda world: by_text(world, sentences_at_end),
    "sentences, when shown": lambda world: by_text(world, sentences_when_shown),
}


@pytest.mark.parametrize("cut", SEGMENTS)
def test_paying_at_the_ends_of_segments_is_right_only_where_they_show_in_time(cut, world):
    true = world.objective_gradient(CREDIT["terminal"](world))
    ids = SEGMENTS[cut](world)
    assert bool(((ids[:, 1:] == ids[:, :-1]) & world.mask[:, 1:]).any())  # else no score moves
    paid = scores_at_segment_ends(CREDIT["prefix difference"](world), ids).double()
    error = difference(world.estimator_mean(rewards_to_go(paid, world.mask)), true)
    assert (error < EQUAL) if "when shown" in cut else (error > BIASED)


@pytest.mark.parametrize("pooling", ["first", "mean", "last", "position"])
@pytest.mark.parametrize("cut", [*SEGMENTS, "n-grams"])
def test_macro_actions_are_right_with_the_value_of_their_first_state(cut, pooling, world):
    true = world.objective_gradient(CREDIT["terminal"](world))
    ids = ngram_segments(world.mask, n=2) if cut == "n-grams" else SEGMENTS[cut](world)
    rewards = CREDIT["prefix difference"](world).double()
    values = world.perfect_values(rewards)
    options = {} if pooling == "first" else {"value_pooling": pooling}
    advantages, _ = macro_gae_advantages(
        rewards, values, world.mask, ids, gae_lambda=1.0, **options
    )
    error = difference(world.estimator_mean(advantages), true)
    in_time = "when shown" in cut or cut == "n-grams"
    assert (error < EQUAL) if in_time and pooling == "first" else (error > BIASED)


def test_the_published_pooling_takes_the_first_tokens_gradient(world):
    """One macro action of three tokens, and a critic that knows its mean return in every state."""
    true = world.objective_gradient(CREDIT["terminal"](world))
    rewards = CREDIT["prefix difference"](world).double()
    probabilities = world.logprobs.sum(-1).exp().detach()[:, None] * world.mask
    mass, total = torch.zeros(2, len(world.logits), dtype=torch.float64)
    mass.index_put_((world.states,), probabilities, accumulate=True)
    earned = probabilities * rewards.sum(-1, keepdim=True)
    total.index_put_((world.states,), earned, accumulate=True)
    values = (total / mass)[world.states].masked_fill(~world.mask, 0.0)
    kept = {}
    for pooling in ("first", "mean"):
        advantages, _ = macro_gae_advantages(
            rewards,
            values,
            world.mask,
            ngram_segments(world.mask, n=3),
            gae_lambda=1.0,
            value_pooling=pooling,
        )
        found = world.estimator_mean(advantages)
        kept[pooling] = ((found * true)[0].sum() / true[0].square().sum()).item()
    assert kept["first"] == pytest.approx(1.0, abs=1e-4)
    assert kept["mean"] < 0.8


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
@every_credit
def test_gae_with_a_perfect_critic_is_right_only_for_causal_credit(name, gae_lambda, world):
    true = world.objective_gradient(CREDIT["terminal"](world))
    rewards = CREDIT[name](world).double()
    advantages, _ = gae_advantages(
        rewards, world.perfect_values(rewards), world.mask, gae_lambda=gae_lambda
    )
    error = difference(world.estimator_mean(advantages), true)
    if name in CAUSAL:
        assert error < EQUAL
    else:
        assert error > BIASED


def test_part_of_the_bias_comes_with_part_of_the_attention(world):
    """Credit is linear in credit_beta, and so is the bias of the reward-to-go gradient."""
    true = world.objective_gradient(CREDIT["terminal"](world))

    def bias(credit_beta: float) -> Tensor:
        credit = attention_credit(world.scores, world.weights, world.mask, credit_beta=credit_beta)
        return world.estimator_mean(rewards_to_go(credit.double(), world.mask)) - true

    torch.testing.assert_close(bias(0.5), bias(1.0) / 2, rtol=1e-4, atol=EQUAL)
    assert bias(0.0).abs().max() < EQUAL


def test_a_baseline_of_the_state_changes_no_estimate(world):
    """The prompt's constant in prefix differences is such a baseline."""
    credit = CREDIT["prefix difference"](world).double()
    plain = world.estimator_mean(rewards_to_go(credit, world.mask))
    shifted = (
        rewards_to_go(credit, world.mask) - torch.randn(len(world.logits)).double()[world.states]
    )
    assert difference(world.estimator_mean(shifted), plain) < EQUAL


@pytest.mark.parametrize("name", ["uniform", "attention", "prefix difference"])
def test_discounting_moves_the_objective_of_every_dense_credit(name, world):
    terminal = world.objective_gradient(CREDIT["terminal"](world), gamma=0.7)
    dense = world.objective_gradient(CREDIT[name](world), gamma=0.7)
    assert difference(dense, terminal) > BIASED


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_potential_shaping_moves_no_objective_at_any_discount(gamma, world):
    plain = CREDIT["terminal"](world).double()
    shaped = plain + potential_shaping(world.prefix_scores, world.mask, gamma=gamma)
    expected = world.objective_gradient(plain, gamma=gamma)
    assert difference(world.objective_gradient(shaped, gamma=gamma), expected) < EQUAL


def _settings(credit: str, gamma: float) -> TrainPolicyConfig:
    return TrainPolicyConfig(
        policy="p",
        reward_model="r",
        prompts="d",
        output="o",
        credit=CreditSettings(method=credit),
        algorithm=AlgorithmSettings(gamma=gamma),
    )


@pytest.mark.parametrize("credit", ["uniform", "attention", "prefix-difference"])
def test_dense_credit_with_a_discount_warns(credit):
    with pytest.warns(TokenCreditWarning, match=r"gamma is 0\.9 .*conserved only undiscounted"):
        _settings(credit, 0.9)


@pytest.mark.parametrize(("credit", "gamma"), [("terminal", 0.9), ("attention", 1.0)])
def test_no_warning_where_the_objective_stays(credit, gamma):
    assert _settings(credit, gamma).algorithm.gamma == gamma


def _cut(segments: SegmentSettings, credit: str = "prefix-difference") -> TrainPolicyConfig:
    return TrainPolicyConfig(
        policy="p",
        reward_model="r",
        prompts="d",
        output="o",
        credit=CreditSettings(method=credit),
        segments=segments,
    )


@pytest.mark.parametrize("kind", ["sentence", "phrase", "entropy", "perplexity"])
def test_segments_that_end_where_a_later_token_shows_it_warn(kind):
    message = rf"segments\.kind '{kind}' ends segments where a later token shows it"
    with pytest.warns(TokenCreditWarning, match=message):
        warn_of_biased_gradient(_cut(SegmentSettings(kind)))
    with pytest.warns(TokenCreditWarning, match=message):
        warn_of_biased_gradient(_cut(SegmentSettings(kind, use="macro-actions"), "terminal"))


@pytest.mark.parametrize(
    ("segments", "credit"),
    [
        (SegmentSettings("sentence", close="when-shown"), "prefix-difference"),
        (SegmentSettings("ngram"), "prefix-difference"),
        (SegmentSettings("sentence"), "terminal"),
        (SegmentSettings(), "prefix-difference"),
    ],
)
def test_segments_that_show_in_time_do_not_warn(segments, credit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_biased_gradient(_cut(segments, credit))
