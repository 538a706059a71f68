"""Votes of several models on one pair after another, over Python floats."""

import math


def votes(leads: list[list[float]], flip: float, drop: float, soft_label: str) -> list[dict]:
    """What becomes of each pair; `leads` has a row of each model."""
    pairs = list(zip(*leads, strict=True))
    lowest = sorted(range(len(pairs)), key=lambda at: sum(pairs[at]) / len(leads))
    flips, drops = (int(share * len(pairs) + 1e-9) for share in (flip, drop))
    found = []
    for at, said in enumerate(pairs):
        flipped = at in lowest[:flips]
        own = [-lead if flipped else lead for lead in said]
        mean = sum(own) / len(own)
        shares = [(lead > 0) + 0.5 * (lead == 0) for lead in own]
        if soft_label == "probabilities":
            shares = [1 / (1 + math.exp(-lead)) for lead in own]
        found.append(
            {
                "mean": mean,
                "std": math.sqrt(sum((lead - mean) ** 2 for lead in own) / len(own)),
                "margin": abs(mean) if flipped else mean,
                "preferred": sum(shares) / len(shares),
                "flipped": flipped,
                "dropped": at in lowest[flips : flips + drops],
            }
        )
    return found
