"""Pairs, win rates and consistencies of one prompt's responses, over Python floats."""

import math


def groups_of(group_ids):
    found = {}
    for row, group in enumerate(group_ids):
        found.setdefault(group, []).append(row)
    return list(found.values())


def all_pairs(scores, group_ids, least_gap):
    """Every pair of a better and a worse response that are far enough apart."""
    return {
        (a, b)
        for rows in groups_of(group_ids)
        for a in rows
        for b in rows
        if scores[a] > scores[b] and scores[a] - scores[b] >= least_gap
    }


def win_rates(scores, group_ids):
    rates = [math.nan] * len(scores)
    for rows in groups_of(group_ids):
        for a in rows:
            won = [1 / (1 + math.exp(scores[b] - scores[a])) for b in rows if b != a]
            rates[a] = sum(won) / len(won) if won else 0.5
    return rates


def consistency(scores, others, agreement):
    """As scipy and the code of CREAM have it: ordinal ranks, ties in the order of the rows."""
    n = len(scores)
    if n < 2:
        return 1.0
    ranks = [sorted(range(n), key=lambda i, s=s: (s[i], i)) for s in (scores, others)]
    place, other = ([order.index(i) for i in range(n)] for order in ranks)
    if agreement == "top-order":
        return float(ranks[0][0] == ranks[1][0] and ranks[0][-1] == ranks[1][-1])
    if agreement == "spearman":
        mean = (n - 1) / 2
        covariance = sum((a - mean) * (b - mean) for a, b in zip(place, other, strict=True))
        return (covariance / sum((a - mean) ** 2 for a in place) + 1) / 2
    agree = disagree = 0
    for i in range(n):
        for j in range(i):
            if (place[i] > place[j]) == (other[i] > other[j]):
                agree += 1
            else:
                disagree += 1
    return ((agree - disagree) / (agree + disagree) + 1) / 2
