"""Credit from log-probabilities as slow loops over Python floats, and a tiny language MDP."""

import itertools
import math
import random
from collections.abc import Iterator

Prefix = tuple[int, ...]


def log_ratio(
    policy: list[float], ref: list[float], mask: list[bool], dpo_beta: float, clip: float = math.inf
) -> list[float]:
    scores = []
    for policy_logprob, ref_logprob, counts in zip(policy, ref, mask, strict=True):
        ratio = dpo_beta * (policy_logprob - ref_logprob)
        scores.append(max(-clip, min(clip, ratio)) if counts else 0.0)
    return scores


def shaped_log_ratio(
    score: float,
    policy: list[float],
    ref: list[float],
    mask: list[bool],
    dpo_beta: float,
    clip: float = math.inf,
) -> list[float]:
    """gamma Phi(s') - Phi(s) at every token with Phi(end) = 0, and the score on the last."""
    ratios = log_ratio(policy, ref, mask, dpo_beta, clip)
    counted = [t for t, counts in enumerate(mask) if counts]
    scores, potential = [0.0] * len(mask), 0.0
    for t in counted:
        is_last = t == counted[-1]
        after = 0.0 if is_last else potential + ratios[t]
        scores[t] = after - potential + (score if is_last else 0.0)
        potential = after
    return scores


def contrastive_prompt(better: list[float], worse: list[float], mask: list[bool]) -> list[float]:
    return [
        1 / (1 + math.exp(-(b - w))) - 0.5 if counts else 0.0
        for b, w, counts in zip(better, worse, mask, strict=True)
    ]


def top_share(scores: list[float], mask: list[bool], share: float, side: str) -> list[bool]:
    """Take the best token that is left, again and again."""
    left = [t for t, counts in enumerate(mask) if counts]
    wanted = max(1, math.floor(share * len(left) + 1e-9)) if left else 0
    selected = [False] * len(mask)
    for _ in range(wanted):
        best = left[0]
        for t in left:
            if (scores[t] > scores[best]) if side == "top" else (scores[t] < scores[best]):
                best = t
        selected[best] = True
        left.remove(best)
    return selected


def likelihood(
    own: list[float], likeliest: list[float], mask: list[bool], agree: float, diverge: float
) -> list[float]:
    scores, has_diverged = [], False
    for own_logprob, best_logprob, counts in zip(own, likeliest, mask, strict=True):
        if not counts:
            scores.append(0.0)
        elif own_logprob < best_logprob:
            has_diverged = True
            scores.append(diverge)
        else:
            scores.append(0.0 if has_diverged else agree)
    return scores


class LanguageMDP:
    """Every text of `horizon` tokens, a random reward for each token, and a random reference.

    Values come from soft value iteration, backwards from the end, where V = 0.
    """

    def __init__(self, vocab: int, horizon: int, dpo_beta: float, seed: int) -> None:
        draw = random.Random(seed)
        self.vocab, self.horizon, self.dpo_beta = vocab, horizon, dpo_beta
        self.reward: dict[tuple[Prefix, int], float] = {}
        self.ref_logprob: dict[tuple[Prefix, int], float] = {}
        for state in self.states():
            weights = [draw.random() + 0.1 for _ in range(vocab)]
            for action in range(vocab):
                self.reward[state, action] = draw.gauss(0.0, 1.0)
                self.ref_logprob[state, action] = math.log(weights[action] / sum(weights))
        self.value: dict[Prefix, float] = dict.fromkeys(self.texts(), 0.0)
        self.q_value: dict[tuple[Prefix, int], float] = {}
        for state in sorted(self.states(), key=len, reverse=True):
            for action in range(vocab):
                self.q_value[state, action] = (
                    self.reward[state, action]
                    + dpo_beta * self.ref_logprob[state, action]
                    + self.value[*state, action]
                )
            total = sum(math.exp(self.q_value[state, a] / dpo_beta) for a in range(vocab))
            self.value[state] = dpo_beta * math.log(total)

    def states(self) -> list[Prefix]:
        return [
            state
            for length in range(self.horizon)
            for state in itertools.product(range(self.vocab), repeat=length)
        ]

    def texts(self) -> Iterator[Prefix]:
        return itertools.product(range(self.vocab), repeat=self.horizon)

    def policy_logprob(self, state: Prefix, action: int) -> float:
        """Of the optimal policy."""
        return (self.q_value[state, action] - self.value[state]) / self.dpo_beta

    def total_reward(self, text: Prefix) -> float:
        return sum(self.reward[text[:t], text[t]] for t in range(self.horizon))
