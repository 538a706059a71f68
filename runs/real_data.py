"""Data of the experiments with pretrained models: Anthropic's HH as conversations, and IMDb.

    python runs/real_data.py output/real/data --model output/real/smollm2

Reads the sets as `hh_data.py` and `imdb_data.py` do.

HH, all four sets: `hh-train.jsonl` and `hh-test.jsonl` hold pairs of which both rows have at most
112 tokens as `--model` renders them, `hh-judge.jsonl` the longer ones, for a judge that shares no
prompt with the reward model. Prompts are the last turns that fit 140 characters, as messages.
`hh-prompts.jsonl` are prompts of the test pairs.

IMDb: `imdb-train.jsonl` and `imdb-judge.jsonl` are labelled beginnings of reviews, for the reward
model and for the judge, `imdb-test.jsonl` those of test reviews: the first five words as prompt,
the next ones as text. `imdb-prompts.jsonl` are the first five words of reviews that no model has
seen.
"""

import argparse
import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hh_data
import imdb_data
from transformers import AutoTokenizer

hh_data.SETS = (*hh_data.SETS, "harmless-base")
hh_data.PROMPT_CHARACTERS = 140
HH_TOKENS = 112
HH_TRAIN = 3000
IMDB_TRAIN, IMDB_JUDGE, IMDB_TEST, IMDB_PROMPTS = 2400, 8000, 800, 2000
PROMPT_WORDS, IMDB_WORDS = 5, 32


def conversation(prompt: str) -> list[dict[str, str]]:
    """The messages of a dialogue that ends where the assistant is to answer."""
    messages = []
    for turn in prompt.removesuffix(hh_data.ANSWER).split(hh_data.QUESTION)[1:]:
        asked, *answers = turn.split(hh_data.ANSWER)
        messages.append({"role": "user", "content": asked.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return messages


def hh_pairs(tokens: Callable[[list[dict[str, str]]], int]) -> list[dict[str, Any]]:
    """Pairs of conversations with the tokens of the longer row, in the order of a hash."""
    pairs = []
    for row in hh_data.pairs():
        prompt = conversation(row["prompt"])
        chosen, rejected = (
            [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")
        )
        if chosen != rejected and all(message["content"] for message in prompt):
            length = max(tokens(prompt + chosen), tokens(prompt + rejected))
            pairs.append(
                {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tokens": length}
            )
    return pairs


def hashed(prompt: object) -> int:
    """A number of a prompt that is the same everywhere."""
    return int(hashlib.sha256(json.dumps(prompt).encode()).hexdigest(), 16)


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path = folder / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")


def write_hh(folder: Path, model: str, *, scale: float) -> None:
    """Pairs and prompts of HH."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens(messages: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(messages, return_dict=False))

    pairs = hh_pairs(tokens)
    short = {hashed(row["prompt"]) for row in pairs if row["tokens"] <= HH_TOKENS}
    # A hash of the prompt decides, so that prompts with several pairs fall into one part.
    kept = [row for row in pairs if row["tokens"] <= HH_TOKENS]
    kept.sort(key=lambda row: hashed(row["prompt"]))
    train = kept[: int(HH_TRAIN * scale)]
    seen = {hashed(row["prompt"]) for row in train}
    test = [row for row in kept if hashed(row["prompt"]) not in seen]
    test = test[: math.ceil(len(test) * scale)]
    judge = [row for row in pairs if hashed(row["prompt"]) not in short]
    write(folder, "hh-train", train)
    write(folder, "hh-test", test)
    write(folder, "hh-judge", judge[: int(len(judge) * scale)])
    prompts = {hashed(row["prompt"]): row["prompt"] for row in test}
    write(folder, "hh-prompts", [{"prompt": prompt} for prompt in prompts.values()])


def beginnings(rows: list[tuple[str, int]], *, least: int) -> list[dict[str, Any]]:
    """Labelled beginnings of reviews: the prompt, and `least` to 32 words that go on from it."""
    generator, found = random.Random(least), []
    for text, label in rows:
        words, end = text.split(), generator.randint(least, IMDB_WORDS)
        prompt, response = (" ".join(words[:PROMPT_WORDS]), " ".join(words[PROMPT_WORDS:][:end]))
        if response:
            found.append({"prompt": prompt, "text": " " + response, "label": label})
    return found


def write_imdb(folder: Path, *, scale: float) -> None:
    """Labelled beginnings for two models, and prompts."""
    train = sorted(imdb_data.reviews("train"), key=lambda row: hashed(row[0]))
    test = sorted(imdb_data.reviews("test"), key=lambda row: hashed(row[0]))
    judged, unseen = train[IMDB_TRAIN : IMDB_TRAIN + IMDB_JUDGE], train[-IMDB_PROMPTS:]
    # The reward model reads every beginning of a row, the judge whole rows, so some are short.
    write(folder, "imdb-train", beginnings(train[: int(IMDB_TRAIN * scale)], least=IMDB_WORDS))
    write(folder, "imdb-judge", beginnings(judged[: int(IMDB_JUDGE * scale)], least=12))
    write(folder, "imdb-test", beginnings(test[: int(IMDB_TEST * scale)], least=12))
    prompts = dict.fromkeys(" ".join(text.split()[:PROMPT_WORDS]) for text, _ in unseen)
    write(folder, "imdb-prompts", [{"prompt": prompt} for prompt in prompts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True, help="whose tokenizer counts the tokens of HH")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the rows that is written"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_hh(arguments.folder, arguments.model, scale=arguments.scale)
    write_imdb(arguments.folder, scale=arguments.scale)


if __name__ == "__main__":
    main()
