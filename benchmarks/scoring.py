"""What the attention row costs: scoring with it, without it, and with `output_attentions=True`.

    python benchmarks/scoring.py --lengths 128 512 1024 2048

The same random weights three times in one process, the variants in turn within each repeat, so
that a slow moment of the machine hits all of them; medians are reported, as ratios to plain
scoring: the model's own forward with SDPA, head included. Batches are full: without padding SDPA
needs no mask, the fastest case for plain scoring and the hardest to keep up with.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from tokencredit.reward_model.hf_scores import reward_model_output

SIZES = {
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}


def variants(arguments: argparse.Namespace) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Three ways to score, of the same weights."""
    config = LlamaConfig(
        **SIZES[arguments.size],
        max_position_embeddings=max(arguments.lengths),
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    sdpa = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    sdpa = sdpa.eval().to(arguments.device, getattr(torch, arguments.dtype))
    eager = copy.deepcopy(sdpa)
    eager.set_attn_implementation("eager")
    for mine, its in zip(eager.parameters(), sdpa.parameters(), strict=True):
        mine.data = its.data

    def plain(ids: torch.Tensor) -> Any:
        return sdpa(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    def with_row(ids: torch.Tensor) -> Any:
        return reward_model_output(sdpa, ids, torch.ones_like(ids), attention_layer=-1)

    def all_maps(ids: torch.Tensor) -> Any:
        mask = torch.ones_like(ids)
        output = eager(ids, attention_mask=mask, use_cache=False, output_attentions=True)
        return output.logits, output.attentions[-1].mean(1)[:, -1]

    return {"plain SDPA": plain, "with attention row": with_row, "output_attentions": all_maps}


def seconds(score: Callable[[torch.Tensor], Any], ids: torch.Tensor, clock: str) -> float:
    """Time of one call."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    synchronise(ids)
    start = now()
    score(ids)
    synchronise(ids)
    return now() - start


def seconds_in_turn(
    ways: Mapping[str, Callable[[torch.Tensor], Any]],
    ids: torch.Tensor,
    *,
    repeats: int,
    clock: str,
) -> dict[str, list[float]]:
    """Times of each way, one of each in turn, after one of each that does not count.

    In a new order each time: the one that runs after the largest pays for its cache.
    """
    names, times = list(ways), {name: list[float]() for name in ways}
    for repeat in range(-1, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed = seconds(ways[name], ids, clock)
            if repeat >= 0:
                times[name].append(elapsed)
    return times


def synchronise(ids: torch.Tensor) -> None:
    if ids.is_cuda:
        torch.cuda.synchronize()


def peak_megabytes(score: Callable[[torch.Tensor], Any], ids: torch.Tensor) -> float:
    """Most memory that tensors took during one call, above what was there before."""
    if ids.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        score(ids)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        score(ids)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per length and variant."""
    rows = []
    ways = variants(arguments)
    for length in arguments.lengths:
        ids = torch.randint(1, 8192, (arguments.batch_size, length), device=arguments.device)
        times = seconds_in_turn(ways, ids, repeats=arguments.repeats, clock=arguments.clock)
        for name, score in ways.items():
            ratios = [
                one / base for one, base in zip(times[name], times["plain SDPA"], strict=True)
            ]
            rows.append(
                {
                    "length": length,
                    "variant": name,
                    "seconds": statistics.median(times[name]),
                    "ratio": statistics.median(times[name])
                    / statistics.median(times["plain SDPA"]),
                    "ratio_quartiles": statistics.quantiles(ratios, n=4),
                    "peak_megabytes": peak_megabytes(score, ids),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown."""
    lines = [
        "| tokens | scoring | seconds | time / plain | its quartiles | peak MB | MB / plain |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain = next(other for other in rows if other["length"] == row["length"])
        low, _, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['length']} | {row['variant']} | {row['seconds']:.4f} | {row['ratio']:.3f} | "
            f"{low:.3f} to {high:.3f} | {row['peak_megabytes']:.1f} | "
            f"{row['peak_megabytes'] / plain['peak_megabytes']:.2f} |"
        )
    return "\n".join(lines)


def variants_parser(
    description: str, *, lengths: list[int], batch_size: int
) -> argparse.ArgumentParser:
    """Options of benchmarks that time variants of a random Llama in turn."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: processor time, for a CPU that others use too",
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the rows here")
    return parser


def report(
    arguments: argparse.Namespace,
    measured: Callable[[argparse.Namespace], list[dict[str, Any]]],
    table: Callable[[list[dict[str, Any]]], str],
    *,
    without_gradients: Callable[[], Any] = torch.inference_mode,
) -> None:
    """Measure without gradients, print the table, and write the rows if they are asked for."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with without_gradients():
        rows = measured(arguments)
    print(
        f"{arguments.size} Llama, {arguments.dtype} on {arguments.device}, batches of "
        f"{arguments.batch_size}, {arguments.clock} time, medians of {arguments.repeats}, "
        f"torch {torch.__version__}\n"
    )
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"settings": vars(arguments), "rows": rows}, default=str)
        )


def main() -> None:
    parser = variants_parser(__doc__.split("\n")[0], lengths=[128, 512, 1024, 2048], batch_size=4)
    report(parser.parse_args(), measured, table)


if __name__ == "__main__":
    main()
