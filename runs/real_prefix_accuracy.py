"""Accuracy of reward models on pairs of conversations by the part of the answers that is seen.

    python runs/real_prefix_accuracy.py pairs.jsonl accuracy.json NAME=FOLDER ...

The same few lines read every model, whoever trained it: one pass per answer as the chat template of
the model writes it, and the head at the token where the part ends. A part of an answer is open:
nothing stands after it. The whole answer is closed by the template, and is read at the last token
of the row, as it was in training; `open` is the whole answer without the closing. Each model adds
its row to the file, and is skipped where it has one. `lead` keeps by how much the chosen answer of
each pair leads, so that two models can be compared pair by pair.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically

PARTS = (0.2, 0.4, 0.6, 0.8)


def read_at(tokenizer: Any, prompt: list[Any], answer: str) -> tuple[list[int], list[int]]:
    """A closed conversation as ids, and where its parts, its open and its closed whole end."""
    head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": answer}], tokenize=False
    )
    assert text.startswith(head + answer), "the template rewrites the answer"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    stop = len(head + answer)
    inside = [
        at for at, (a, b) in enumerate(encoded["offset_mapping"]) if len(head) < b and a < stop
    ]
    ends = [inside[math.ceil(part * len(inside) - 1e-9) - 1] for part in PARTS]
    return encoded["input_ids"], [*ends, inside[-1], len(encoded["input_ids"]) - 1]


@torch.no_grad()
def scores(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Of each row at each of its ends."""
    found = torch.empty(len(rows), len(PARTS) + 2)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
    for some in (order[at : at + 16] for at in range(0, len(order), 16)):
        longest = max(len(rows[row][0]) for row in some)
        ids = torch.zeros(len(some), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(some):
            ids[at, : len(rows[row][0])] = torch.tensor(rows[row][0])
            mask[at, : len(rows[row][0])] = 1
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.base_model(ids, attention_mask=mask).last_hidden_state
        every = model.score(hidden.float()).squeeze(-1)
        for at, row in enumerate(some):
            found[row] = every[at, rows[row][1]]
    return found


def accuracy(folder: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of one model."""
    start = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    chosen, rejected = (
        scores(model, [read_at(tokenizer, p["prompt"], p[side][0]["content"]) for p in pairs])
        for side in ("chosen", "rejected")
    )
    lead = chosen - rejected
    right = ((lead > 0).double() + 0.5 * (lead == 0).double()).mean(0).tolist()
    names = [*(f"{part:g}" for part in PARTS), "open", "1"]
    return {
        "pairs": len(pairs),
        "accuracy": {name: round(value, 4) for name, value in zip(names, right, strict=True)},
        "cpu_seconds": round(time.process_time() - start, 1),
        "lead": [[round(value, 3) for value in row] for row in lead.tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs")
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    found = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    pairs = list(read_jsonl(Path(arguments.pairs)))
    for name, folder in (model.split("=", 1) for model in arguments.models):
        if name not in found:
            found[name] = accuracy(folder, pairs)
            write_atomically(arguments.output, json.dumps(found) + "\n")
        print(name, found[name]["accuracy"])


if __name__ == "__main__":
    main()
