"""Potentials made of prefix scores, as slow loops over Python floats, one response at a time.

`scores[0]` is the prompt alone, `scores[t + 1]` the prefix that ends with token t.
"""


def counted(scores: list[float], mask: list[bool]) -> list[float]:
    """The prompt's score and those of the prefixes that end with a token that counts."""
    return [scores[0], *(scores[t + 1] for t, counts in enumerate(mask) if counts)]


def spread(potentials: list[float], mask: list[bool]) -> list[float]:
    """Back to one column per token, a token that does not count repeating the one before."""
    columns, seen = [potentials[0]], 0
    for counts in mask:
        seen += counts
        columns.append(potentials[seen])
    return columns


def smoothed(scores: list[float], mask: list[bool], decay: float) -> list[float]:
    """Each difference paid in instalments, what is owed at the end paid by the last token."""
    true = counted(scores, mask)
    last = len(true) - 1
    potentials = [true[0]]
    for t in range(1, last):
        paid = 0.0
        for k in range(1, t + 1):
            paid += (1 - decay) * decay ** (t - k) * (true[k] - true[k - 1])
        potentials.append(potentials[-1] + paid)
    if last:
        potentials.append(true[last])
    return spread(potentials, mask)


def length_centred(
    scores: list[float], mask: list[bool], means: list[float], ending: str
) -> list[float]:
    true = counted(scores, mask)
    potentials = []
    for k, score in enumerate(true):
        is_end = k == len(true) - 1
        usual = means[k] if k < len(means) else means[-1]
        potentials.append(score if is_end and ending == "true" else score - usual + means[0])
    return spread(potentials, mask)


def length_means(rows: list[tuple[list[float], list[bool]]]) -> list[float]:
    present = [counted(scores, mask) for scores, mask in rows if any(mask)]
    means, length = [], 0
    while any(len(row) > length for row in present):
        there = [row[length] for row in present if len(row) > length]
        means.append(sum(there) / len(there))
        length += 1
    return means


def segment_held(scores: list[float], segment_ids: list[int]) -> list[float]:
    columns, shown = [scores[0]], scores[0]
    for t, segment in enumerate(segment_ids):
        later = [other for other in segment_ids[t + 1 :] if other >= 0]
        if segment >= 0 and (not later or later[0] != segment):
            shown = scores[t + 1]
        columns.append(shown)
    return columns
