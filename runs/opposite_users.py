"""Pairs of the built-in task as users see them of whom every second one likes what others dislike.

python runs/opposite_users.py OUTPUT.jsonl --users 40 --pairs 3000 --seed 0
"""

import argparse
import json
import random
from pathlib import Path

from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.toy.reviews import sample_pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--error", type=float, default=0.0, help="share of mistaken preferences")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    # Tastes are drawn and not alternating: groups begin by the numbers of users.
    tastes = [number < given.users // 2 for number in range(given.users)]
    rng.shuffle(tastes)
    rows = []
    for pair in sample_pairs(rng, given.pairs):
        user = rng.randrange(given.users)
        if tastes[user] == (rng.random() < given.error):
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
        rows.append({**pair, "user": user, "taste": "kind" if tastes[user] else "unkind"})
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output, "".join(json.dumps(row) + "\n" for row in rows))
    print(given.output)


if __name__ == "__main__":
    main()
