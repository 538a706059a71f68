"""IMDb as JSON lines for the headline experiment.

    python runs/imdb_data.py output/imdb

Reads `../shared/data/imdb` (or $TOKENCREDIT_DATA/imdb) where it is there, else `stanfordnlp/imdb`
from the Hub. Writes `texts.jsonl` (language model), `labels-first.jsonl` and `labels-second.jsonl`
(two halves of the training reviews, one per reward model), `labels-test.jsonl` and
`prompts.jsonl`. Reviews are cut to their first 800 characters: no response of the experiment is
longer, and half the tokens train twice as fast. Prompts are the first 80, of which a run keeps
the first 2 to 8 tokens.
"""

import hashlib
import json
import lzma
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CHARACTERS = 800
LOCAL = Path(os.environ.get("TOKENCREDIT_DATA", "../shared/data")) / "imdb"


def reviews(split: str) -> Iterator[tuple[str, int]]:
    """Text and label of every distinct review of a split."""
    if LOCAL.exists():
        excluded = set((LOCAL / "exclude_ids.txt").read_text().split())
        with lzma.open(LOCAL / f"{split}.jsonl.xz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        rows = [row for row in rows if str(row["id"]) not in excluded]
    else:
        from datasets import load_dataset

        rows = load_dataset("stanfordnlp/imdb", split=split)
    seen = set()
    for row in rows:
        text = " ".join(row["text"].replace("<br />", " ").split())
        if text not in seen:
            seen.add(text)
            yield _cut(text), int(row["label"])


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS].rsplit(" ", 1)[0]


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train = [{"text": text, "label": label} for text, label in reviews("train")]
    train.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    half = len(train) // 2
    _write(folder / "texts.jsonl", [{"text": row["text"]} for row in train])
    _write(folder / "labels-first.jsonl", train[:half])
    _write(folder / "labels-second.jsonl", train[half:])
    test = [{"text": text, "label": label} for text, label in reviews("test")]
    test.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    _write(folder / "labels-test.jsonl", test[:2000])
    _write(folder / "prompts.jsonl", [{"prompt": row["text"][:80]} for row in train[:5000]])


if __name__ == "__main__":
    main()
