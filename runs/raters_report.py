"""The page about raters who differ, from the numbers of `runs/raters.sh` and `runs/raters_hh.py`.

python runs/raters_report.py output/raters docs/results/raters.md
"""

import json
import sys
from collections import Counter
from pathlib import Path
from statistics import mean
from string import Template

from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically

ARMS = {
    "one": "one head",
    "groups": "`--groups.count 2 --groups.rounds 6`",
    "users": "`--latent.size 8`",
    "users-longer": "`--latent.size 8 --training.epochs 12`",
    "router": "`--mixture.heads 2`",
}
COLUMNS = ("users_with_their_like", "one_head", "groups", "known_sources")
CROSSED = ("helpful_head_on_harmless", "harmless_head_on_helpful")


def main() -> None:
    folder, page = map(Path, sys.argv[1:])
    arms = []
    for name, shown in ARMS.items():
        found = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
        accuracy, seconds = found["held_out_accuracy"], found["seconds"]
        arms.append(f"| {shown} | {accuracy:.3f} | {found['train_loss']:.3f} | {seconds:.0f} |")
    hh = json.loads((folder / "hh.json").read_text(encoding="utf-8"))
    rows = []
    for ridge in sorted({one["ridge"] for one in hh["seeds"]}):
        of = [one for one in hh["seeds"] if one["ridge"] == ridge]
        numbers = (f"{mean(one[key] for one in of):.3f}" for key in (*COLUMNS, *CROSSED))
        rows.append(f"| {ridge:g} | {' | '.join(numbers)} |")
    template = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    sorted_users, users = users_with_their_like(folder)
    text = template.substitute(
        arms="\n".join(arms), hh="\n".join(rows), sorted=sorted_users, users=users
    )
    write_atomically(page, text)
    print(page)


def users_with_their_like(folder: Path) -> tuple[int, int]:
    """Users whose group is that of most users of their taste, and all users."""
    tastes = {str(row["user"]): row["taste"] for row in read_jsonl(folder / "users.jsonl")}
    said = json.loads((folder / "groups" / "groups.json").read_text(encoding="utf-8"))["users"]
    counts = Counter((tastes[user], one["group"]) for user, one in said.items())
    straight = counts["kind", "group-1"] + counts["unkind", "group-2"]
    return max(straight, len(said) - straight), len(said)


if __name__ == "__main__":
    main()
