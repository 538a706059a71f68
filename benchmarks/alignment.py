"""What it costs to carry scores over to the tokens of another tokenizer, by length.

    python benchmarks/alignment.py

Wanted: linear in tokens. Three tokens of one list stand for two of the other. Medians of
processor time, so that other work on the machine counts little; memory is that of the tensors made.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from tokencredit.text.alignment import project_token_scores


def seconds_and_mib(tokens: int, split: str, repeats: int) -> tuple[float, float]:
    """Of one projection of so many source tokens onto half as many more."""
    source = [(3 * index, 3 * index + 3) for index in range(tokens)]
    target = [(2 * index, 2 * index + 2) for index in range(tokens * 3 // 2)]
    scores = torch.randn(tokens)
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        project_token_scores(scores, source, target, split=split)  # type: ignore[arg-type]
        times.append(time.process_time() - begin)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        project_token_scores(scores, source, target, split=split)  # type: ignore[arg-type]
    made = sum(max(0, event.self_cpu_memory_usage) for event in run.key_averages())
    return statistics.median(times), made / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 2000, 4000, 8000, 16000])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| source tokens | split | ms | ms / 1,000 tokens | MiB made | MiB / 1,000 tokens |")
    print("|---:|---|---:|---:|---:|---:|")
    for tokens in options.tokens:
        for split in ("overlap", "last"):
            seconds, mib = seconds_and_mib(tokens, split, options.repeats)
            per = tokens / 1000
            print(
                f"| {tokens} | {split} | {seconds * 1e3:.1f} | {seconds * 1e3 / per:.2f} "
                f"| {mib:.2f} | {mib / per:.3f} |"
            )


if __name__ == "__main__":
    main()
