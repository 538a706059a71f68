"""Losses and accuracies of reward models for one pair or response, over Python floats."""

import math


def neg_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def bradley_terry(
    chosen: float, rejected: float, margin: float = 0.0, preferred: float = 1.0
) -> float:
    return cross_entropy(chosen - rejected - margin, preferred)


def cross_entropy(score: float, label: float) -> float:
    return label * neg_log_sigmoid(score) + (1 - label) * neg_log_sigmoid(-score)


def prefix_bradley_terry(
    chosen: list[float], rejected: list[float], margin: float = 0.0, preferred: float = 1.0
) -> float:
    """One preference per length, each answer cut there or, where shorter, taken whole."""
    longest = max(len(chosen), len(rejected))
    losses = []
    for length in range(1, longest + 1):
        chosen_prefix, rejected_prefix = chosen[:length], rejected[:length]
        losses.append(bradley_terry(chosen_prefix[-1], rejected_prefix[-1], margin, preferred))
    return sum(losses) / longest


def segment_bradley_terry(
    chosen: list[float],
    rejected: list[float],
    chosen_ends: list[bool],
    rejected_ends: list[bool],
    margin: float = 0.0,
    preferred: float = 1.0,
) -> float:
    """The score of a response is the mean of the scores at the ends of its segments."""
    read = [
        [score for score, is_end in zip(scores, ends, strict=True) if is_end]
        for scores, ends in ((chosen, chosen_ends), (rejected, rejected_ends))
    ]
    means = [sum(scores) / len(scores) for scores in read]
    return bradley_terry(means[0], means[1], margin, preferred)


def plackett_luce(scores: list[float], ranks: list[float]) -> float:
    """Each answer against itself and those behind it; scores and ranks of one ranking."""
    loss = 0.0
    for score, rank in zip(scores, ranks, strict=True):
        behind = [s for s, other in zip(scores, ranks, strict=True) if other > rank]
        loss += math.log(sum(math.exp(s - score) for s in [score, *behind]))
    return loss


def prefix_plackett_luce(answers: list[list[float]], ranks: list[float]) -> float:
    """One ranking per length, each answer cut there or, where shorter, taken whole."""
    longest = max(map(len, answers))
    cut = [[answer[:length][-1] for answer in answers] for length in range(1, longest + 1)]
    return sum(plackett_luce(scores, ranks) for scores in cut) / longest


def hidden_state_regulariser(
    chosen: float,
    rejected: float,
    chosen_ref: float,
    rejected_ref: float,
    form: str,
    scale: float,
) -> float:
    if form == "likelihood":
        return -chosen
    if form == "sft":
        return neg_log_sigmoid(scale * chosen)
    return neg_log_sigmoid(scale * ((chosen - chosen_ref) - (rejected - rejected_ref)))


def expanded_bradley_terry(
    chosen: list[float],
    rejected: list[float],
    same: int,
) -> float:
    """The sum over pairs of prefixes longer than the `same` first tokens, each an example."""
    longest = max(len(chosen), len(rejected))
    lengths = range(same + 1, longest + 1)
    return sum(bradley_terry(chosen[:k][-1], rejected[:k][-1]) for k in lengths)


def prefix_squared_error(scores: list[float], rating: float) -> float:
    return sum((score - rating) ** 2 for score in scores) / len(scores)


def prefix_cross_entropy(scores: list[float], label: float) -> float:
    return sum(cross_entropy(score, label) for score in scores) / len(scores)


def score_at_fraction(scores: list[float], tenths: int) -> float:
    """Score when so many tenths have been seen; whole numbers, so that nothing is rounded."""
    seen = 0
    while 10 * seen < tenths * len(scores):
        seen += 1
    return scores[seen - 1]


def length_weights(tokens: int) -> list[float]:
    """RAD: prefix t of a response of l tokens counts t of 1 + 2 + ... + l."""
    whole = sum(range(1, tokens + 1))
    return [t / whole for t in range(1, tokens + 1)]


def length_weighted_squared_error(scores: list[float], rating: float) -> float:
    total = 0.0
    for t, score in enumerate(scores, start=1):
        total += t * (score - rating) ** 2
    return total / (len(scores) * (len(scores) + 1) / 2)


def length_weighted_cross_entropy(scores: list[float], label: float) -> float:
    total = 0.0
    for t, score in enumerate(scores, start=1):
        probability = 1 / (1 + math.exp(-score))
        total -= t * (label * math.log(probability) + (1 - label) * math.log(1 - probability))
    return total / (len(scores) * (len(scores) + 1) / 2)


def several_squared_errors(scores: list[list[float]], ratings: list[float]) -> float:
    """Of one response: prefixes by objectives, and the ratings, NaN where one is missing."""
    means = []
    for objective, rating in enumerate(ratings):
        if math.isnan(rating):
            continue
        errors = [(prefix[objective] - rating) ** 2 for prefix in scores]
        means.append(sum(errors) / len(errors))
    return sum(means) / len(means) if means else 0.0


def mixture(losses: list[float], weights: list[float]) -> float:
    """Of one pair: what it costs each head, and how much each counts."""
    likelihood = 0.0
    for loss, weight in zip(losses, weights, strict=True):
        likelihood += weight * math.exp(-loss)
    return -math.log(likelihood)


def memberships(
    losses: list[list[float]], users: list[int], shares: list[float]
) -> list[list[float]]:
    """Of each user the posterior of every head, from all of their pairs."""
    found = []
    for user in range(max(users) + 1):
        likelihoods = list(shares)
        for pair, own in enumerate(users):
            if own == user:
                for head, loss in enumerate(losses[pair]):
                    likelihoods[head] *= math.exp(-loss)
        whole = sum(likelihoods)
        found.append([one / whole for one in likelihoods])
    return found


def kl_to_standard_normal(mean: list[float], variance: list[float]) -> float:
    total = 0.0
    for m, v in zip(mean, variance, strict=True):
        total += (v + m * m - 1 - math.log(v)) / 2
    return total


def contrastive(first: list[list[float]], second: list[list[float]], temperature: float) -> float:
    """Each row is to find itself among all rows of the other reading, by the cosine."""

    def cosine(one: list[float], other: list[float]) -> float:
        product = sum(a * b for a, b in zip(one, other, strict=True))
        return product / math.hypot(*one) / math.hypot(*other)

    total = 0.0
    for row, own in enumerate(first):
        alike = [math.exp(cosine(own, other) / temperature) for other in second]
        total -= math.log(alike[row] / sum(alike))
    return total / len(first)
