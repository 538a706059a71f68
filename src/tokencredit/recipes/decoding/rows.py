"""What `generate` writes and reports of its responses."""

import statistics
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.hf_generate import GuidedOutput
from tokencredit.evaluation.text_statistics import diversity, repetition


def response_rows(
    tokenizer: Any,
    batch: ResponseBatch,
    scores: dict[str, Float[Tensor, "batch"]],
    output: GuidedOutput | None,
    positions: dict[str, Int[Tensor, "batch"]],
) -> Iterator[dict[str, Any]]:
    """A line of `responses.jsonl` per response."""
    for row, mask in enumerate(batch.response_mask):
        ids = batch.response_ids[row][mask].tolist()
        line = {
            "prompt": tokenizer.decode(batch.prompt_ids[row][batch.prompt_mask[row]]),
            "response": tokenizer.decode(ids, skip_special_tokens=True),
            "token_ids": ids,
            **{name: float(value[row]) for name, value in scores.items()},
            **{name: int(value[row]) for name, value in positions.items()},
        }
        if output is not None:
            assert output.guidance_kl is not None
            line["kl"] = float(output.guidance_kl[row].sum())
            line["steps"] = _steps(tokenizer, output, row, len(ids))
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
    """Means over responses; KL in nats per response, positions per token of the responses."""
    names = [name for name in ("score", "held_out_score", "kl") if name in rows[0]]
    metrics = {str(name): statistics.mean(row[name] for row in rows) for name in names}
    tokens = [row["token_ids"] for row in rows]
    metrics["diversity"] = statistics.mean(diversity(ids) for ids in tokens)
    metrics["repetition_of_4"] = statistics.mean(repetition(ids, n=4) for ids in tokens)
    metrics["length"] = statistics.mean(map(len, tokens))
    for name in ("lm_positions", "reward_positions"):
        if name in rows[0]:
            read = sum(row[name] for row in rows)
            metrics[f"{name}_per_token"] = read / max(sum(map(len, tokens)), 1)
    metrics["tokens_per_second"] = sum(map(len, tokens)) / max(seconds, 1e-9)
    return metrics
