"""What a PPO run needs, in memory and time: estimates for large policies, checked on a small one.

    python runs/planning.py measure     # small policies on this machine, a few minutes
    python runs/planning.py             # writes docs/planning.md

The estimate adds up what `train-policy` holds. `measure` runs the real recipe on small models on
the CPU and keeps what it took in docs/results/planning.json, so that the page shows both.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from tokencredit.logprobs import token_logprobs
from tokencredit.recipes.policy.setting_groups import (
    MachineSettings,
    RecordSettings,
    SamplingSettings,
)
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.toy.hf_tokenizer import toy_tokenizer

KEPT = Path("docs/results/planning.json")
PAGE = Path("docs/planning.md")
GPU_BYTES, GPU_FLOPS, GPU_BYTES_PER_SECOND = 80e9, 989e12, 3.35e12  # H100 SXM, data sheet
UTILISATION = 0.40  # Llama 3, arXiv 2407.21783, table 4: 38 to 43 %
RESPONSES, PROMPT, NEW, EPOCHS = 512, 512, 512, 4
TOKENS = PROMPT + NEW


@dataclass(frozen=True)
class Shape:
    """A Llama-like model; the reward model is taken to be as large as the policy."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
            num_labels=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden


POLICIES = {  # Llama 3.2 1B's configuration; Llama 3, arXiv 2407.21783, table 3
    "1B": Shape(16, 2048, 8192, 32, 8, 128_256, tied=True),
    "8B": Shape(32, 4096, 14_336, 32, 8, 128_256, tied=False),
    "70B": Shape(80, 8192, 28_672, 64, 8, 128_256, tied=False),
}
WORDS = len(toy_tokenizer())
MEASURED = {
    "tiny": Shape(1, 32, 64, 2, 2, WORDS, tied=False),  # what Python and the libraries take
    "deep": Shape(16, 512, 1376, 8, 8, WORDS, tied=False),
    "wide": Shape(8, 1024, 2752, 16, 16, WORDS, tied=False),
}
MEASURED_BATCH, MEASURED_PROMPT, MEASURED_NEW = 8, 8, 120


def training_bytes(shape: Shape, *, gpus: int, width: int) -> dict[str, float]:
    """Per GPU, of all weights in training, with numbers of `width` bytes in forward passes."""
    shared = shape.parameters / gpus
    return {
        "weights, gradients, moments": 16 * shared,  # float32: 4 + 4 + 8
        # By FSDP2 for the rollout; on one GPU autocast's copies of the weights.
        "gathered policy": 0 if gpus == 1 and width == 4 else width * shape.parameters,
        "reference": width * shape.parameters,
        "reward model": width * shape.parameters,
    }


def cached_bytes(shape: Shape, *, width: int, responses: int, tokens: int) -> float:
    """Keys and values of the responses that one GPU draws at the same time."""
    return 2 * shape.layers * shape.kv_width * width * responses * tokens


def remembered_bytes(shape: Shape, *, dtype: torch.dtype, prompt: int, new: int) -> int:
    """What autograd keeps of one response until its backward pass, counted.

    The forward pass of transformers runs on tensors without data, of the true sizes, and every
    tensor that it saves is counted once, weights aside.
    """
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
        ids = torch.zeros(1, prompt + new, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                logits_to_keep=new + 1,
                use_cache=False,
            )
            token_logprobs(output.logits[:, :-1].float(), ids[:, -new:])
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return sum(size for storage, size in kept.items() if storage not in weights)


def seconds(shape: Shape, *, gpus: int) -> dict[str, float]:
    """Per PPO step of `RESPONSES` responses: products at the published utilisation.

    A rollout reads all weights once per token, whatever the batch: this is the least it can take.
    """
    per_pass = 2 * shape.parameters * RESPONSES * TOKENS / (gpus * GPU_FLOPS * UTILISATION)
    return {
        "rollout, at least": NEW * 2 * shape.parameters / GPU_BYTES_PER_SECOND,
        "scoring": 3 * per_pass,  # policy, reference, reward model
        "update": EPOCHS * 3 * per_pass,
    }


def measured(name: str, shape: Shape) -> dict[str, float]:
    """One run of two steps in a process of its own; the most memory it held, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "run", name, folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the run of {name} failed")
        rows = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])
    phases = {key: last[key] for key in last if key.startswith("seconds")}
    return {"parameters": shape.parameters, "bytes": usage.ru_maxrss * 1024, **phases}


def run(name: str, folder: Path) -> None:
    """Two steps of the real recipe, in float32 on one thread; weights and prompts are random."""
    torch.set_num_threads(1)
    shape, tokenizer = MEASURED[name], toy_tokenizer()
    for kind, model_class in (
        ("policy", AutoModelForCausalLM),
        ("reward", AutoModelForSequenceClassification),
    ):
        model_class.from_config(shape.config()).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    words = "the plot is good and the cast is not bad"[:28]
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": words}) + "\n")
    train_policy(
        TrainPolicyConfig(
            policy=str(folder / "policy"),
            reward_model=str(folder / "reward"),
            prompts=str(folder / "prompts.jsonl"),
            output=str(folder / "run"),
            steps=2,
            batch_size=MEASURED_BATCH,
            sampling=SamplingSettings(
                response_lengths="uniform",
                min_new_tokens=MEASURED_NEW,
                max_new_tokens=MEASURED_NEW,
            ),
            machine=MachineSettings(device="cpu"),
            record=RecordSettings(progress=False),
        )
    )


def measure() -> None:
    """Keep what the small policies took."""
    found = {name: measured(name, shape) for name, shape in MEASURED.items()}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(KEPT, json.dumps({"commit": commit(), "runs": found}, indent=1) + "\n")


def commit() -> str:
    describe = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def checked_rows(kept: dict[str, Any]) -> list[str]:
    """The estimate beside what was measured; the tiny model's memory is taken off both."""
    lines = [
        "| policy | parameters | estimated | measured | scoring / rollout | update / scoring |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    start = kept["runs"]["tiny"]["bytes"]
    for name, shape in MEASURED.items():
        if name == "tiny":
            continue
        seen = kept["runs"][name]
        state = sum(training_bytes(shape, gpus=1, width=4).values())
        backward = MEASURED_BATCH * remembered_bytes(
            shape, dtype=torch.float32, prompt=MEASURED_PROMPT, new=MEASURED_NEW
        )
        phases = [seen[f"seconds_{phase}"] for phase in ("rollout", "score", "update")]
        lines.append(
            f"| {name} | {shape.parameters / 1e6:.0f}M | {(state + backward) / 1e9:.2f} GB "
            f"| {(seen['bytes'] - start) / 1e9:.2f} GB | {phases[1] / phases[0]:.2f} "
            f"| {phases[2] / phases[1]:.1f} |"
        )
    return lines


def memory_rows() -> list[str]:
    """Per GPU in bfloat16 with float32 masters: what stays, then what comes and goes, and all."""
    stays = [
        "| policy | GPUs | weights, gradients, moments | gathered policy | reference "
        "| reward model |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    passes = [
        "| policy | GPUs | backward pass | rollout's cache | all | fits 80 GB |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, shape in POLICIES.items():
        backward = remembered_bytes(shape, dtype=torch.bfloat16, prompt=PROMPT, new=NEW)
        for gpus in (1, 8, 64):
            state = training_bytes(shape, gpus=gpus, width=2)
            cache = cached_bytes(shape, width=2, responses=RESPONSES // gpus, tokens=TOKENS)
            total = sum(state.values()) + max(backward, cache)
            away = total - state["reward model"] - state["reference"]
            fits = "yes" if total < GPU_BYTES else "no"
            if fits == "no" and away + state["reference"] < GPU_BYTES:
                fits = "with the frozen models offloaded"
            kept, others = (
                " | ".join(f"{part / 1e9:.1f}" for part in parts)
                for parts in (state.values(), (backward, cache, total))
            )
            stays.append(f"| {name} | {gpus} | {kept} |")
            passes.append(f"| {name} | {gpus} | {others} | {fits} |")
    return [*stays, "", *passes]


def time_rows() -> list[str]:
    lines = [
        "| policy | GPUs | rollout, at least (s) | scoring (s) | update (s) | one step (s) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, shape in POLICIES.items():
        for gpus in (1, 8, 64):
            phases = seconds(shape, gpus=gpus)
            cells = " | ".join(
                f"{value:,.1f}" for value in (*phases.values(), sum(phases.values()))
            )
            lines.append(f"| {name} | {gpus} | {cells} |")
    return lines


def write_page() -> None:
    """The page, from what was kept and the estimates."""
    kept = json.loads(KEPT.read_text())
    text = (Path(__file__).parent / "planning.md").read_text()
    for mark, rows in (
        ("CHECKED", checked_rows(kept)),
        ("MEMORY", memory_rows()),
        ("TIME", time_rows()),
        ("COMMIT", [kept["commit"]]),
    ):
        text = text.replace(f"<{mark}>", "\n".join(rows))
    write_atomically(PAGE, text)
    print(PAGE)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", name, folder]:
            run(name, Path(folder))
        case ["measure"]:
            measure()
        case _:
            write_page()
