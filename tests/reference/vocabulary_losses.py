"""Losses of models that score every next token, for one response or pair, over Python floats.

`logits[t]` are the numbers in the place of token t: one for every token that could stand there.
"""

import math


def values(logits: list[list[float]], tokens: list[int]) -> list[float]:
    """The value of each prefix, read where its last token was to be chosen."""
    return [row[token] for row, token in zip(logits, tokens, strict=True)]


def logprobs(logits: list[list[float]], tokens: list[int]) -> list[float]:
    found = []
    for row, token in zip(logits, tokens, strict=True):
        found.append(row[token] - math.log(sum(math.exp(number) for number in row)))
    return found


def neg_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def final_value(chosen: list[float], rejected: list[float], margin: float) -> float:
    return neg_log_sigmoid(chosen[-1] - rejected[-1] - margin)


def constraint_errors(
    logits: list[list[float]], tokens: list[int], first_token: int
) -> list[float]:
    """For every prefix of at least `first_token` tokens that goes on, how far its value is off."""
    errors = []
    for length in range(first_token, len(tokens)):
        value = logits[length - 1][tokens[length - 1]]
        errors.append(value - max(logits[length]))
    return errors


def autoregressive(
    chosen: list[float], rejected: list[float], beta: float, margin: float, *, mean: bool
) -> float:
    """Of the log-probabilities of two responses."""
    over = [sum(side) / len(side) if mean else sum(side) for side in (chosen, rejected)]
    return neg_log_sigmoid(beta * over[0] - beta * over[1] - margin)


def expected_value(
    logits: list[list[float]],
    policy_logits: list[list[float]],
    tokens: list[int],
    outcome: float,
    share: float,
) -> float:
    """Backwards through a response: the target of a prefix mixes what may follow and what did."""
    target, total = outcome, 0.0
    for t in reversed(range(len(tokens))):
        total += (logits[t][tokens[t]] - target) ** 2
        mass = sum(math.exp(number) for number in policy_logits[t])
        mean = sum(
            math.exp(number) / mass * value
            for number, value in zip(policy_logits[t], logits[t], strict=True)
        )
        target = (1 - share) * mean + share * target
    return total / len(tokens)
