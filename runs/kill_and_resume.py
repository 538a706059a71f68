"""Kill a training run at random moments, resume it each time, and compare it with an unkilled one.

    python runs/kill_and_resume.py --kills 50
    python runs/kill_and_resume.py --kills 10 --signal TERM

A small policy on the built-in vocabulary trains in a child process that is sent SIGKILL after a
random time; the next child goes on in the same folder. At the end metrics and weights must equal,
bit for bit, those of a run that nobody killed. Prints how often each phase was hit; exits with 1
if anything differs. With SIGTERM checkpoints are rare, and the child writes one before it ends.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.checkpoints import checkpoints_in
from tokencredit.recipes.policy.setting_groups import (
    KLSettings,
    MachineSettings,
    OptimizerSettings,
    RecordSettings,
    SamplingSettings,
)
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.toy.hf_tokenizer import toy_tokenizer
from tokencredit.toy.reviews import VOCABULARY

PHASES = ("starting", "rollout", "score", "update", "checkpoint", "between")


def write_models(folder: Path) -> None:
    """A random policy and reward model, and prompts of one word."""
    tokenizer = toy_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    for name, kind in (
        ("policy", LlamaForCausalLM),
        ("reward", LlamaForSequenceClassification),
    ):
        labels = {} if name == "policy" else {"num_labels": 1}
        kind(LlamaConfig(**shape, **labels)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = (json.dumps({"prompt": word}) + "\n" for word in VOCABULARY[:64])
    (folder / "prompts.jsonl").write_text("".join(rows))


def run_config(
    folder: Path, output: str, steps: int, *, checkpoint_every: int = 1
) -> TrainPolicyConfig:
    return TrainPolicyConfig(
        policy=str(folder / "policy"),
        reward_model=str(folder / "reward"),
        prompts=str(folder / "prompts.jsonl"),
        output=str(folder / output),
        steps=steps,
        batch_size=8,
        sampling=SamplingSettings(max_new_tokens=12),
        optimizer=OptimizerSettings(learning_rate=1e-3),
        kl=KLSettings(target=6.0),
        score=ScoreSettings(normalization="running"),
        machine=MachineSettings(device="cpu"),
        record=RecordSettings(checkpoint_every=checkpoint_every, progress=False),
    )


def train_and_tell(config: TrainPolicyConfig, phase: Any) -> None:
    """The run, which says in shared memory what it is doing."""
    timed, write_checkpoint = recipe.timed, recipe.write_checkpoint

    @contextmanager
    def told(seconds: Any, name: str) -> Iterator[None]:
        phase.value = PHASES.index(name)
        with timed(seconds, name):
            yield
        phase.value = PHASES.index("between")

    def told_checkpoint(*args: Any, **kwargs: Any) -> None:
        phase.value = PHASES.index("checkpoint")
        write_checkpoint(*args, **kwargs)
        phase.value = PHASES.index("between")

    recipe.timed, recipe.write_checkpoint = told, told_checkpoint
    sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115
    train_policy(config)


def child_of(config: TrainPolicyConfig) -> tuple[Any, Any]:
    """A process that trains, and what it says it does."""
    fork = multiprocessing.get_context("fork")
    phase = fork.Value("i", 0)
    child = fork.Process(target=train_and_tell, args=(config, phase))
    child.start()
    return child, phase


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Metrics without the times."""
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def differences(folder: Path) -> list[str]:
    """What the killed run and the whole one do not have in common."""
    found = []
    if rows_of(folder / "killed") != rows_of(folder / "whole"):
        found.append("metrics.jsonl")
    killed, whole = (
        load_file(folder / name / "policy" / "model.safetensors") for name in ("killed", "whole")
    )
    found += [name for name in whole if not torch.equal(killed[name], whole[name])]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, hit = random.Random(arguments.seed), Counter[str]()
    number = signal.Signals[f"SIG{arguments.signal}"]
    every = 1 if number == signal.SIGKILL else 10_000
    # By the signal itself where it comes before the first step, and nothing is lost.
    expected = {-number} if number == signal.SIGKILL else {-number, 128 + number}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        config = run_config(folder, "whole", arguments.steps, checkpoint_every=every)
        whole, _ = child_of(config)
        whole.join()
        config = run_config(folder, "killed", arguments.steps, checkpoint_every=every)
        lost = 0
        for _ in track(range(arguments.kills), "kill"):
            child, phase = child_of(config)
            time.sleep(draw.uniform(0.0, arguments.longest))
            at = PHASES[phase.value]  # after SIGTERM a run goes on to the end of its step
            os.kill(child.pid, number)
            child.join()
            if child.exitcode not in expected:
                raise SystemExit(
                    f"the run ended by itself (exit code {child.exitcode}) before the kills: give "
                    "more --steps or fewer --kills"
                )
            hit[at] += 1
            done = len(rows_of(folder / "killed"))
            kept = max(checkpoints_in(folder / "killed"), default=0)
            lost = max(lost, done - kept)
        last, _ = child_of(config)
        last.join()
        print(f"{arguments.kills} kills: " + ", ".join(f"{hit[p]} {p}" for p in PHASES if hit[p]))
        print(f"most steps after the last whole checkpoint: {lost}")
        wrong = differences(folder)
        print(f"differs from the unkilled run in: {', '.join(wrong) or 'nothing'}")
    raise SystemExit(bool(wrong or last.exitcode))


if __name__ == "__main__":
    main()
