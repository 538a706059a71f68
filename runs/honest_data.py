"""Few pairs of the built-in task with a share of their labels turned round.

    python runs/honest_data.py output/honest/data

Writes `guide.jsonl`, of which the reward models learn that policies follow, and `watch.jsonl`, of
which the one learns that chooses coefficients: 300 other pairs each. A quarter of the labels is
wrong beside those that the task's own judge mistakes, the noise of Coste et al. 2023,
arXiv 2310.02743.
"""

import json
import random
import sys
from pathlib import Path

from tokencredit.recipes.run_folder import write_atomically
from tokencredit.toy.reviews import sample_pairs

PAIRS, FLIPPED = 300, 0.25
SEEDS = {"guide": 1001, "watch": 1002}  # no seed of the quickstart's


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in SEEDS.items():
        rng = random.Random(seed)
        pairs = sample_pairs(rng, PAIRS)
        for pair in rng.sample(pairs, round(FLIPPED * PAIRS)):
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
        lines = (json.dumps(pair) + "\n" for pair in pairs)
        write_atomically(folder / f"{name}.jsonl", "".join(lines))
        print(folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
