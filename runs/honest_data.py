"""Pairs of the built-in task that no reward model of a policy sees, for the one that watches.

python runs/honest_data.py output/honest/watch.jsonl
"""

import json
import random
import sys
from pathlib import Path

from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.toy.reviews import sample_pairs

PAIRS, SEED = 4000, 1001  # as many as the quickstart has, and no seed of its own


def main() -> None:
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = sample_pairs(random.Random(SEED), PAIRS)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    print(path)


if __name__ == "__main__":
    main()
