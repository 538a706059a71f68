"""Searches over segments in Python lists and floats: every text is written out, nothing is cached.

What the fast loops drew is replayed: `draw` gives the next tokens of all rows, in their order.
"""

from collections.abc import Callable, Iterator, Sequence
from math import exp, inf

Score = Callable[[Sequence[int]], float]
NextLogprobs = Callable[[Sequence[int]], list[float]]
Text = list[int]
Segment = tuple[int, ...]


def threshold(
    length: int, prompt_score: float, *, target: float, tokens: int, start: float
) -> float:
    first = (1 - start) * prompt_score + start * target
    return min(target, first + length * (target - first) / tokens)


def acceptance(score: float, tau: float, *, beta: float) -> float:
    return min(1.0, exp(min(0.0, (score - tau) / beta)))


def accepted_law(
    proposals: dict[Segment, float], scores: dict[Segment, float], tau: float, *, beta: float
) -> dict[Segment, float]:
    """Probability of the first segment that is accepted, however long that takes."""
    kept = {s: p * acceptance(scores[s], tau, beta=beta) for s, p in proposals.items()}
    total = sum(kept.values())
    return {s: p / total for s, p in kept.items()}


def cascade(
    prompts: Sequence[Text],
    score: Score,
    entropy: Score,
    draw: Iterator[list[int]],
    chance: Iterator[tuple[list[float], list[bool]]],
    *,
    target: float,
    beta: float,
    start: float,
    uncertain: float,
    least: int,
    most: int,
    proposals: int,
    longest: int,
    ends: Sequence[int] = (),
) -> list[Text]:
    """CARDS with replayed tokens and replayed luck, whose probabilities are compared."""
    accepted: list[Text] = [[] for _ in prompts]
    tried: list[list[tuple[float, Text]]] = [[] for _ in prompts]

    def over(text: Text) -> bool:
        return len(text) >= longest or (bool(text) and text[-1] in ends)

    while not all(map(over, accepted)):
        texts = [list(text) for text in accepted]
        writing = {i for i, text in enumerate(texts) if not over(text)}
        proposing = sorted(writing)
        for drawn in range(most):
            for i in sorted(writing):
                if over(texts[i]) or (
                    drawn >= least and entropy([*prompts[i], *texts[i]]) >= uncertain
                ):
                    writing.remove(i)
            if not writing:
                break
            tokens = next(draw)
            for i in writing:
                texts[i].append(tokens[i])
        probabilities, happened = next(chance)
        for i in proposing:
            value = score([*prompts[i], *texts[i]])
            tau = threshold(
                len(texts[i]), score(prompts[i]), target=target, tokens=longest, start=start
            )
            assert abs(acceptance(value, tau, beta=beta) - probabilities[i]) < 1e-4
            tried[i].append((value, texts[i]))
            if happened[i]:
                accepted[i], tried[i] = texts[i], []
            elif len(tried[i]) == proposals:
                accepted[i], tried[i] = max(tried[i], key=lambda each: each[0])[1], []
    return accepted


def survivors(scores: dict[int, float], share: float) -> list[int]:
    left = max(1, round((1 - share) * len(scores)))
    return sorted(sorted(scores, key=lambda i: (-scores[i], i))[:left])


def weighted_reward(logprobs: Sequence[float], ref_logprobs: Sequence[float]) -> float:
    return sum(
        (p - q) / (i + 1) for i, (p, q) in enumerate(zip(logprobs, ref_logprobs, strict=True))
    )


def written(
    texts: list[Text], tokens: int, draw: Iterator[list[int]], *, longest: int, ends: Sequence[int]
) -> None:
    """Each response takes up to so many tokens, in place."""

    def finished(text: Text) -> bool:
        return len(text) >= longest or (bool(text) and text[-1] in ends)

    for _ in range(tokens):
        if all(map(finished, texts)):
            return
        for text, token in zip(texts, next(draw), strict=True):
            if not finished(text):
                text.append(token)


def tree(
    prompts: Sequence[Text],
    score: Score,
    draw: Iterator[list[int]],
    *,
    keep: int,
    children: int,
    lengths: Sequence[int],
    ends: Sequence[int] = (),
    final_score: Score | None = None,
) -> list[Text]:
    """The best response to each prompt; of several copies of an ended one, the first counts."""
    longest, width = sum(lengths), keep * children
    texts: list[Text] = [[] for _ in prompts for _ in range(width)]
    copy = [False] * len(texts)
    for layer, tokens in enumerate(lengths):
        if layer:
            chosen: list[Text] = []
            for i, prompt in enumerate(prompts):
                mine = slice(i * width, (i + 1) * width)
                for text in _best(texts[mine], copy[mine], prompt, score, keep):
                    chosen += [list(text) for _ in range(children)]
            texts = chosen
            copy = [j % children > 0 and bool(t) and t[-1] in ends for j, t in enumerate(texts)]
        written(texts, tokens, draw, longest=longest, ends=ends)
    found = []
    for i, prompt in enumerate(prompts):
        mine = slice(i * width, (i + 1) * width)
        found += _best(texts[mine], copy[mine], prompt, final_score or score, 1)
    return found


def _best(texts: list[Text], copy: list[bool], prompt: Text, score: Score, keep: int) -> list[Text]:
    values = [-inf if c else score([*prompt, *t]) for t, c in zip(texts, copy, strict=True)]
    order = sorted(range(len(texts)), key=lambda j: (-values[j], j))
    return [texts[j] for j in order[:keep]]


def speculative(
    prompts: Sequence[Text],
    score: Score,
    draw: Iterator[list[int]],
    *,
    n: int,
    share: float,
    every: int,
    longest: int,
    ends: Sequence[int] = (),
) -> list[Text]:
    """Reject the worst share of what runs every few tokens; the ended ones stay for the choice."""
    candidates: list[dict[int, Text]] = [{j: [] for j in range(n)} for _ in prompts]
    running = [set(range(n)) for _ in prompts]

    def over(text: Text) -> bool:
        return len(text) >= longest or (bool(text) and text[-1] in ends)

    while True:
        texts = [text for of_prompt in candidates for text in of_prompt.values()]
        written(texts, every, draw, longest=longest, ends=ends)
        if all(map(over, texts)):
            break
        if all(len(survivors(dict.fromkeys(r, 0.0), share)) == len(r) for r in running):
            continue
        for i, prompt in enumerate(prompts):
            scores = {j: score([*prompt, *candidates[i][j]]) for j in running[i]}
            running[i] = set(survivors(scores, share))
            candidates[i] = {
                j: text for j, text in candidates[i].items() if j in running[i] or over(text)
            }
    return [
        max(of_prompt.values(), key=lambda text, prompt=prompt: score([*prompt, *text]))
        for prompt, of_prompt in zip(prompts, candidates, strict=True)
    ]


def beam(
    prompt: Text,
    reward: NextLogprobs,
    likely: NextLogprobs,
    *,
    beams: int,
    top_k: int,
    longest: int,
    ends: Sequence[int] = (),
) -> tuple[Text, float]:
    """The response with the largest sum of rewards among `beams` beginnings."""
    found: list[tuple[Text, float]] = [([], 0.0)]
    while any(len(t) < longest and not (t and t[-1] in ends) for t, _ in found):
        longer: list[tuple[Text, float]] = []
        for text, total in found:
            if len(text) >= longest or (text and text[-1] in ends):
                longer.append((text, total))
                continue
            logprobs, rewards = likely([*prompt, *text]), reward([*prompt, *text])
            for v in sorted(range(len(logprobs)), key=lambda v: -logprobs[v])[:top_k]:
                longer.append(([*text, v], total + rewards[v]))
        found = sorted(longer, key=lambda each: -each[1])[:beams]
    return found[0]
