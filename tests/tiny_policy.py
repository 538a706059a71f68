"""A tiny policy, reward models and prompts on disk, as a user of `train-policy` would have them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tokencredit.cli import main
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from
from tokencredit.toy.hf_tokenizer import toy_tokenizer

PROMPTS = ("the plot is", "this film", "the music was", "a", "his first comedy is a", "the cast")


OBJECTIVES = {
    "num_labels": 2,
    "id2label": {0: "helpfulness", 1: "verbosity"},
    "label2id": {"helpfulness": 0, "verbosity": 1},
    "problem_type": "regression",
}


def write_models(folder: Path, **changes: Any) -> Path:
    """Write `policy/`, `reward/`, `held-out/`, `objectives/` and `prompts.jsonl`.

    Changes are of their shape.
    """
    tokenizer = toy_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **changes,
    }
    kinds = {
        "policy": (LlamaForCausalLM, {}),
        "reward": (LlamaForSequenceClassification, {"num_labels": 1}),
        "held-out": (LlamaForSequenceClassification, {"num_labels": 2}),
        "objectives": (LlamaForSequenceClassification, OBJECTIVES),
    }
    for seed, (name, (model_class, extra)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        model = model_class(LlamaConfig(**shape, **extra, initializer_range=0.3))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    with (folder / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    return folder


def tiny_config(models: Path, output: Path, **changes: Any) -> TrainPolicyConfig:
    """Two steps of four responses of up to five tokens.

    A setting of a group is changed by `group__setting=...` or `**{"group.setting": ...}`.
    """
    settings: dict[str, Any] = {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "prompts": str(models / "prompts.jsonl"),
        "output": str(output),
        "steps": 2,
        "batch_size": 4,
        "algorithm.epochs": 2,
        "sampling.max_new_tokens": 5,
        "optimizer.learning_rate": 1e-2,
        "record.checkpoint_every": 1,
        "machine.device": "cpu",
        "record.progress": False,
        "record.figure": False,
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    config: TrainPolicyConfig = settings_from(TrainPolicyConfig, {**settings, **changed})
    return config


def by_command(models: Path, output: Path, **settings: Any) -> list[dict[str, Any]]:
    """What `tokencredit train-policy` says of each step, of one unless the settings ask for more.

    A setting that is None is left out, `reward_model` for example.
    """
    arguments: dict[str, Any] = {
        "policy": models / "policy",
        "reward_model": models / "reward",
        "prompts": models / "prompts.jsonl",
        "output": output,
        "steps": 1,
        "batch_size": 4,
        "sampling.max_new_tokens": 4,
        "machine.device": "cpu",
        "record.progress": "false",
        **settings,
    }
    given = ((f"--{name}", str(value)) for name, value in arguments.items() if value is not None)
    assert main(["train-policy", *(text for both in given for text in both)]) == 0
    return list(read_jsonl(output / "metrics.jsonl"))
