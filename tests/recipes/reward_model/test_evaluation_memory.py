"""Evaluation while a model trains holds no larger tensors than training itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import byte_level
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForCausalLM

from tokencredit.cli import main

LENGTHS = (3, 11, 30, 7, 18, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and data whose rows are of unlike length."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = byte_level()
    save_reward_model(folder / "reward", tokenizer, "llama")
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = tiny_model("llama", auto_class=AutoModelForCausalLM, **size)
    model.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    rows: dict[str, list[dict[str, Any]]] = {"pairs": [], "texts": [], "edits": []}
    for number, length in enumerate(LENGTHS):
        prompt, text = f"q{number}", " z" * length
        rows["pairs"].append({"prompt": prompt, "chosen": text, "rejected": " x y"})
        rows["texts"].append({"prompt": prompt, "text": text, "label": number % 2})
        rows["texts"][-1]["completion"] = text
        rows["edits"].append({"prompt": prompt, "rejected": text, "edited": text[:-1] + "x"})
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


COMMANDS = {
    "bradley-terry": ("train-reward-model", "reward", "pairs"),
    "every prefix": ("train-reward-model", "reward", "pairs", "--positions", "every"),
    "labels": ("train-reward-model", "reward", "texts", "--objective", "classification"),
    "token classifier": ("train-token-classifier", "lm", "edits", "--labels", "edits"),
    "implicit": ("train-implicit-reward", "lm", "pairs"),
    "farma": ("train-vocabulary-reward", "lm", "pairs", "--objective", "farma"),
    "genarm": ("train-vocabulary-reward", "lm", "pairs", "--objective", "genarm"),
    "cd-fudge": ("train-vocabulary-reward", "lm", "pairs", "--objective", "cd-fudge"),
    "rewriter": ("train-rewriter", "lm", "pairs"),
    "language model": ("train-language-model", "lm", "texts", "--objective", "completions"),
}


def largest_tensors(arguments: list[str]) -> dict[bool, dict[str, int]]:
    """Most numbers that a module gave, by its kind: with gradients, and without."""
    found: dict[bool, dict[str, int]] = {True: {}, False: {}}

    def noted(module: torch.nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            largest = found[torch.is_grad_enabled()]
            kind = f"{type(module).__name__} {output.shape[-1]}"
            largest[kind] = max(largest.get(kind, 0), output.numel())

    hook = register_module_forward_hook(noted)
    try:
        assert main(arguments) == 0
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_no_tensor_of_an_evaluation_is_larger_than_those_of_training(name, folder, tmp_path):
    command, model, data, *more = COMMANDS[name]
    if command == "train-implicit-reward":
        pytest.importorskip("trl", reason="TRL is an extra")
    path = str(Path(folder) / f"{data}.jsonl")
    found = largest_tensors(
        [
            *(command, "--model", str(folder / model), "--output", str(tmp_path / "run")),
            *("--data", path, "--evaluation.data", path, *more, "--max_length", "96"),
            *("--training.batch_size", "2", "--training.epochs", "1"),
            *("--device", "cpu", "--progress", "false"),
        ]
    )
    trained, evaluated = found[True], found[False]
    embedded = [kind for kind in trained if kind.startswith("Embedding")]
    assert embedded
    for kind in embedded:  # tokens of a pass, padding included
        assert 0 < evaluated[kind] <= trained[kind], kind
    for kind in evaluated.keys() & trained.keys():
        if not kind.endswith(" 1"):  # one number per token is no memory
            assert evaluated[kind] <= trained[kind], kind
