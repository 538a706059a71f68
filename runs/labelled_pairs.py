"""Both sides of every pair as texts with a label: 1 for the chosen one, 0 for the other.

python runs/labelled_pairs.py pairs.jsonl labels.jsonl
"""

import json
import sys
from pathlib import Path

from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically


def main() -> None:
    pairs, labels = map(Path, sys.argv[1:])
    rows = [
        {"text": pair["prompt"] + pair[side], "label": label}
        for pair in read_jsonl(pairs)
        for side, label in (("chosen", 1), ("rejected", 0))
    ]
    write_atomically(labels, "".join(json.dumps(row) + "\n" for row in rows))
    print(labels)


if __name__ == "__main__":
    main()
