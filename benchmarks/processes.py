"""PPO by two processes against one, each with the same work: what the exchange between them costs.

    python benchmarks/processes.py

`train-policy` on random models of 4.5 million parameters on the CPU, one thread per process: 16
responses by one process, then 32 by two over gloo, in turn. A ratio of 1 would mean that the second
process costs nothing; two processes also share the machine's caches and memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ppo import make_models

from tokencredit.recipes.run.run_folder import read_jsonl

PHASES = ("rollout", "score", "update")


def seconds_of_steps(models: Path, *, processes: int, steps: int) -> dict[str, float]:
    """Medians over the steps but the first, by phase."""
    with tempfile.TemporaryDirectory() as output:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        settings = {
            "policy": models / "policy",
            "reward_model": models / "reward_model",
            "prompts": models / "prompts.jsonl",
            "output": output,
            "batch_size": 16 * processes,
            "steps": steps,
            "sampling.min_new_tokens": 48,
            "sampling.max_new_tokens": 48,
            "sampling.response_lengths": "uniform",
            "record.progress": "false",
        }
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        subprocess.run(
            [sys.executable, *launch, "-m", "tokencredit.cli", "train-policy", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
        rows = read_jsonl(Path(output) / "metrics.jsonl")[1:]
    found = {phase: statistics.median(r[f"seconds_{phase}"] for r in rows) for phase in PHASES}
    return found | {"step": statistics.median(sum(r[f"seconds_{p}"] for p in PHASES) for r in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), size="small", prompt_tokens=8)
        for _ in range(arguments.repeats):
            one, two = (
                seconds_of_steps(Path(folder), processes=count, steps=arguments.steps)
                for count in (1, 2)
            )
            for name, seconds in one.items():
                ratios.setdefault(name, []).append(two[name] / seconds)
    print("| seconds of two processes / of one | median | all |")
    print("|---|---:|---|")
    for name, found in ratios.items():
        every = ", ".join(f"{ratio:.2f}" for ratio in found)
        print(f"| {name} | {statistics.median(found):.2f} | {every} |")


if __name__ == "__main__":
    main()
