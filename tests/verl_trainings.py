"""verl's trainer as a user starts it, on two processes of the CPU, and what it says of itself."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_policy import PROMPTS
from torch import Tensor
from transformers import AutoModelForSequenceClassification

HERE = Path(__file__).resolve().parent
SCRIPT = HERE.parent / "examples" / "verl" / "train.sh"
PLUGIN = HERE / "engines" / "verl_cpu"
STEPS = (1, 2)
VALIDATION = 3
"""Where responses stand that were drawn with the weights of after the last step."""
TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Rollout:
    """One response, as it was drawn, and what the reward model pays its tokens."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    token_scores: list[float]


@dataclass(frozen=True)
class Training:
    """What a finished training left in its folder."""

    models: Path
    folder: Path

    @cached_property
    def metrics(self) -> dict[int, dict[str, float]]:
        """The numbers that verl logged, by step."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]
        return {row["step"]: row["data"] for row in rows}

    def logged_scores(self, step: int) -> list[float]:
        """What verl's trainer wrote of each response."""
        rows = (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        return [json.loads(row)["score"] for row in rows]

    @cached_property
    def rollouts(self) -> dict[int, list[Rollout]]:
        """Responses by step; their server knows how many updates its weights have had.

        The reward model was not trained on an end of sequence: one that ends a response is not
        read, and earns nothing.
        """
        model = AutoModelForSequenceClassification.from_pretrained(self.models / "reward").eval()
        found: dict[int, list[Rollout]] = {step: [] for step in (*STEPS, VALIDATION)}
        for line in (self.folder / "drawn.jsonl").open():
            row = json.loads(line)
            prompt, response = row["prompt_ids"], row["response_ids"]
            ended = response[-1] == model.config.eos_token_id
            read = len(response) - ended
            scores = [score(model, prompt + response[:end]) for end in range(read + 1)]
            paid = [after - before for before, after in pairwise(scores)] + [0.0] * ended
            found[row["step"] + 1].append(Rollout(tuple(prompt), tuple(response), paid))
        return found


def score(model: Any, ids: list[int]) -> float:
    """What the head says at the last token, which may be the pad token where the policy drew it."""
    with torch.no_grad():
        return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()


def write_prompts(path: Path) -> None:
    """Eight prompts as verl reads them, so that two steps see four each."""
    from datasets import Dataset

    texts = [*PROMPTS, "the lead", "his film is"]
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "data_source": "toy",
            "reward_model": {"style": "model", "ground_truth": ""},
        }
        for text in texts
    ]
    Dataset.from_list(rows).to_parquet(path)


def trained(models: Path, folder: Path, *overrides: str) -> Training:
    """Run `examples/verl/train.sh` until it ends.

    Args:
        models: of `write_models`; the policy gets a chat template.
        folder: for whatever the training writes.
        overrides: of verl's settings.
    """
    folder.mkdir(parents=True)
    (models / "policy" / "chat_template.jinja").write_text(TEMPLATE)
    prompts = folder / "prompts.parquet"
    write_prompts(prompts)
    told = {
        "POLICY": str(models / "policy"),
        "REWARD_MODEL": str(models / "reward"),
        "TRAIN_FILES": str(prompts),
        "VAL_FILES": str(prompts),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_cpu",
        "VERL_CPU_ROLLOUTS": str(folder / "drawn.jsonl"),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(PLUGIN.parent), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "0,1",  # names for Ray to count by
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
    }
    with tempfile.TemporaryDirectory(prefix="ray-") as ray:  # sockets lie there: a short path
        settings = (
            f"hydra.searchpath=[file://{PLUGIN}]",
            "+on=two_processes",
            f"hydra.run.dir={folder}/hydra",
            f"trainer.default_local_dir={folder}/checkpoints",
            f"trainer.rollout_data_dir={folder}/rollouts",
            f"+ray_kwargs.ray_init._temp_dir={ray}",
        )
        log = folder / "log.txt"
        with log.open("w") as file:
            done = subprocess.run(
                [str(SCRIPT), *settings, *overrides],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **told},
                timeout=2400,
            )
    assert done.returncode == 0, log.read_text()[-6000:]
    return Training(models, folder)


def merged(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, brought together by verl's own command."""
    folder = checkpoint.with_name("merged")
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    done = subprocess.run(
        [*command, "--local_dir", str(checkpoint), "--target_dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(folder / "model.safetensors")
