"""Guided decoding of one response in Python floats: nothing is cached, nothing packed."""

from collections.abc import Callable, Sequence
from itertools import product
from math import exp, inf, log

NextLogits = Callable[[Sequence[int]], list[float]]
Score = Callable[[Sequence[int]], float]


def log_softmax(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    total = sum(exp(logit - largest) for logit in logits)
    return [logit - largest - log(total) for logit in logits]


def candidates(
    logits: Sequence[float],
    *,
    top_k: int,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_candidates: int | None = None,
) -> list[int]:
    """Top-k, of these top-p, of these min-p, of these the first few; most probable first."""
    logprobs = log_softmax(logits)
    kept = sorted((v for v, x in enumerate(logprobs) if x > -inf), key=lambda v: -logprobs[v])
    kept = kept[: top_k or None]
    total = sum(exp(logprobs[v]) for v in kept)
    nucleus, mass = [], 0.0
    for v in kept:
        if mass < top_p:
            nucleus.append(v)
        mass += exp(logprobs[v]) / total
    largest = logprobs[nucleus[0]]
    likely = [v for v in nucleus if min_p == 0.0 or logprobs[v] >= largest + log(min_p)]
    return likely[:max_candidates]


def guided_law(
    logits: Sequence[float],
    scores: dict[int, float],
    *,
    guidance_beta: float,
    temperature: float = 1.0,
) -> dict[int, float]:
    """Probability of each candidate, whose scores these are."""
    logprobs = log_softmax(logits)
    sums = {v: (logprobs[v] + guidance_beta * s) / temperature for v, s in scores.items()}
    return {v: exp(x) for v, x in zip(sums, log_softmax(list(sums.values())), strict=True)}


def greedy_response(
    next_logits: NextLogits,
    score: Score,
    prompt: Sequence[int],
    *,
    guidance_beta: float,
    top_k: int,
    steps: int,
    ends: Sequence[int] = (),
) -> list[int]:
    """The most probable token of the guided law at every step (ARGS, PARGS-G)."""
    text = list(prompt)
    for _ in range(steps):
        logits = next_logits(text)
        scores = {v: score([*text, v]) for v in candidates(logits, top_k=top_k)}
        law = guided_law(logits, scores, guidance_beta=guidance_beta)
        text.append(max(law, key=law.__getitem__))
        if text[-1] in ends:
            break
    return text[len(prompt) :]


def response_law(
    next_logits: NextLogits,
    score: Score,
    prompt: Sequence[int],
    *,
    guidance_beta: float,
    top_k: int,
    steps: int,
    temperature: float = 1.0,
) -> dict[tuple[int, ...], float]:
    """Probability of every response of this length (PARGS)."""
    law = {(): 1.0}
    for _ in range(steps):
        longer = {}
        for response, probability in law.items():
            text = [*prompt, *response]
            logits = next_logits(text)
            scores = {v: score([*text, v]) for v in candidates(logits, top_k=top_k)}
            step = guided_law(logits, scores, guidance_beta=guidance_beta, temperature=temperature)
            longer |= {(*response, v): probability * p for v, p in step.items()}
        law = longer
    return law


def best_response(
    next_logits: NextLogits,
    score: Score,
    prompt: Sequence[int],
    *,
    guidance_beta: float,
    steps: int,
) -> tuple[int, ...]:
    """The response with the largest log-probability plus beta times its score, of all there are."""
    best, largest = (), -inf
    for response in product(range(len(next_logits(prompt))), repeat=steps):
        total = guidance_beta * score([*prompt, *response])
        for t, token in enumerate(response):
            total += log_softmax(next_logits([*prompt, *response[:t]]))[token]
        if total > largest:
            best, largest = response, total
    return best
