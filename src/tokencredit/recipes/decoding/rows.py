"""What `generate` writes and reports of its responses."""

import statistics
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tokencredit.decoding.hf_generate import GuidedOutput
from tokencredit.evaluation.text_statistics import diversity, repetition
from tokencredit.models.hf_sampling import response_extent
from tokencredit.recipes.decoding.methods import Found, Models
from tokencredit.scorers.hf_policy_tokens import decoded_responses


def response_rows(
    models: Models, found: Found, scores: dict[str, Float[Tensor, "batch"]]
) -> Iterator[dict[str, Any]]:
    """A line of `responses.jsonl` per response; texts are without special tokens."""
    batch, tokenizer = found.batch, models.tokenizer
    _, ended = response_extent(batch.response_ids, models.reading.turn_ends, batch.lengths)
    texts = decoded_responses(tokenizer, batch)
    for row, (mask, text) in enumerate(zip(batch.response_mask, texts, strict=True)):
        ids = batch.response_ids[row][mask].tolist()
        line = {
            "prompt": text.prompt,
            "response": text.response,
            "token_ids": ids,
            "ended": bool(ended[row]),
            **{name: float(value[row]) for name, value in scores.items()},
            **{name: int(value[row]) for name, value in found.positions.items()},
        }
        if found.kl is not None:
            line["kl"] = float(found.kl[row])
        if found.guided is not None:
            line["steps"] = _steps(tokenizer, found.guided, row, len(ids))
        yield line


def _steps(tokenizer: Any, output: GuidedOutput, row: int, length: int) -> list[dict[str, Any]]:
    """Per token its score, that of the text before it, and the candidates."""
    assert output.chosen_scores is not None
    assert output.prefix_scores is not None
    steps = []
    for t in range(length):
        step: dict[str, Any] = {
            "score": round(float(output.chosen_scores[row, t]), 4),
            "prefix_score": round(float(output.prefix_scores[row, t]), 4),
        }
        parts = (output.candidate_ids, output.candidate_logprobs, output.candidate_scores)
        if output.candidate_mask is not None:
            kept = output.candidate_mask[row, t]
            columns = (part[row, t][kept].tolist() for part in parts if part is not None)
            step["candidates"] = [
                [tokenizer.decode([token]), round(logprob, 4), round(score, 4)]
                for token, logprob, score in zip(*columns, strict=True)
            ]
        steps.append(step)
    return steps


def response_metrics(rows: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Means over responses; KL in nats per response, positions per token of the responses.

    `ended` is the share of responses that ended themselves.
    """
    names = [name for name in ("score", "held_out_score", "kl") if name in rows[0]]
    metrics = {str(name): statistics.mean(row[name] for row in rows) for name in names}
    tokens = [row["token_ids"] for row in rows]
    metrics["diversity"] = statistics.mean(diversity(ids) for ids in tokens)
    metrics["repetition_of_4"] = statistics.mean(repetition(ids, n=4) for ids in tokens)
    metrics["ended"] = statistics.mean(row["ended"] for row in rows)
    metrics["length"] = statistics.mean(map(len, tokens))
    for name in ("lm_positions", "reward_positions"):
        if name in rows[0]:
            read = sum(row[name] for row in rows)
            metrics[f"{name}_per_token"] = read / max(sum(map(len, tokens)), 1)
    metrics["tokens_per_second"] = sum(map(len, tokens)) / max(seconds, 1e-9)
    return metrics
