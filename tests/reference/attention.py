"""Attention of one query, entry by entry, after Vaswani et al. 2017, equation 1, in float64."""

import math


def attention_row(query, keys, visible, *, scaling, softcap=None, bias=None, sink=None):
    """Probabilities of one query of one head over all keys; all arguments are lists of floats."""
    logits = []
    for position, key in enumerate(keys):
        logit = scaling * sum(q * k for q, k in zip(query, key, strict=True))
        if softcap is not None:
            logit = softcap * math.tanh(logit / softcap)
        if bias is not None:
            logit += bias[position]
        logits.append(logit if visible[position] else -math.inf)
    masses = [math.exp(logit) for logit in logits]
    total = sum(masses) + (0.0 if sink is None else math.exp(sink))
    return [mass / total for mass in masses]
