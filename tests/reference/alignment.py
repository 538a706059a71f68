"""Slow loops for projecting token scores by character spans."""


def projected_by_overlap(scores, source_spans, target_spans):
    """Spread each score over the targets by common characters; no span may occur twice."""
    projected = [0.0] * len(target_spans)
    for score, (start, end) in zip(scores, source_spans, strict=True):
        common = [len(set(range(start, end)) & set(range(*span))) for span in target_spans]
        if sum(common) == 0:
            common = [0] * len(target_spans)
            common[nearest_before(start, target_spans)] = 1
        for target, characters in enumerate(common):
            projected[target] += score * characters / sum(common)
    return projected


def projected_to_last(scores, source_spans, target_spans):
    """Pay each score to the first target that reaches the source token's end."""
    projected = [0.0] * len(target_spans)
    for score, (start, end) in zip(scores, source_spans, strict=True):
        target = nearest_before(start, target_spans)
        if end > start:
            for index, (other_start, other_end) in enumerate(target_spans):
                if other_end > other_start and other_end >= end:
                    target = index
                    break
        projected[target] += score
    return projected


def nearest_before(position, spans):
    found = 0
    for index, (start, _) in enumerate(spans):
        if start <= position:
            found = index
    return found
