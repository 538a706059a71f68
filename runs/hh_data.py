"""Dialogues of Anthropic's HH as JSON lines, for guided decoding and the comparison of learning.

    python runs/hh_data.py output/hh

Reads the helpful sets of `../shared/data/hh_rlhf` (or $TOKENCREDIT_DATA/hh_rlhf) where they are
there, else the test splits of `Anthropic/hh-rlhf` from the Hub. Writes `texts.jsonl` (language
model), `pairs-first.jsonl` and `pairs-second.jsonl` (two halves of the training pairs, one per
reward model), `pairs-test.jsonl`, `prompts.jsonl` and `short-prompts.jsonl` (at most 160 letters,
for PPO in less time). Of a dialogue stay as many of the last turns as 400 characters hold, since
the models are small and read 256 tokens. Dialogues are split by a hash of what stays of the prompt;
pairs that are identical or have an empty last turn are dropped.
"""

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled")
QUESTION, ANSWER = "\n\nHuman:", "\n\nAssistant:"
PROMPT_CHARACTERS = 400
SHORT_PROMPT_CHARACTERS = 160
LOCAL = Path(os.environ.get("TOKENCREDIT_DATA", "../shared/data")) / "hh_rlhf"


def dialogues() -> Iterator[dict[str, str]]:
    """Rows of `chosen` and `rejected`, whole dialogues each."""
    for name in SETS:
        if LOCAL.exists():
            with gzip.open(LOCAL / f"{name}.test.jsonl.gz", "rt", encoding="utf-8") as file:
                yield from map(json.loads, file)
        else:
            from datasets import load_dataset

            yield from load_dataset("Anthropic/hh-rlhf", data_dir=name, split="test")


def pairs() -> list[dict[str, str]]:
    """Prompt and two answers, in the order of the prompts' hashes."""
    found = []
    for row in dialogues():
        prompt, chosen = row["chosen"].rsplit(ANSWER, 1)
        other, rejected = row["rejected"].rsplit(ANSWER, 1)
        usable = prompt == other and chosen.strip() and rejected.strip() and chosen != rejected
        kept = last_turns(prompt)
        if usable and kept:
            found.append({"prompt": kept + ANSWER, "chosen": chosen, "rejected": rejected})
    return sorted(found, key=lambda row: hashlib.sha256(row["prompt"].encode()).hexdigest())


def last_turns(prompt: str) -> str:
    """The longest end of a dialogue that starts with a question and is short enough."""
    start = len(prompt)
    while (earlier := prompt.rfind(QUESTION, 0, start)) >= len(prompt) - PROMPT_CHARACTERS:
        if earlier < 0:
            break
        start = earlier
    return prompt[start:]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    every = pairs()
    # A hash decides, so that a prompt with several pairs falls into one part.
    part = [int(hashlib.sha256(row["prompt"].encode()).hexdigest(), 16) % 100 for row in every]
    first = [row for row, at in zip(every, part, strict=True) if at < 42]
    second = [row for row, at in zip(every, part, strict=True) if 42 <= at < 84]
    test = [row for row, at in zip(every, part, strict=True) if at >= 84]
    texts = [
        {"text": row["prompt"] + row[side]}
        for row in first + second
        for side in ("chosen", "rejected")
    ]
    _write(folder / "texts.jsonl", texts)
    _write(folder / "pairs-first.jsonl", first)
    _write(folder / "pairs-second.jsonl", second)
    _write(folder / "pairs-test.jsonl", test)
    prompts = list(dict.fromkeys(row["prompt"] for row in test))
    short = [prompt for prompt in prompts if len(prompt) <= SHORT_PROMPT_CHARACTERS]
    _write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    _write(folder / "short-prompts.jsonl", [{"prompt": prompt} for prompt in short])


if __name__ == "__main__":
    main()
