"""The page about raters who differ, from what is kept.

    python runs/raters_report.py               the page, from docs/results/raters/
    python runs/raters_report.py output/raters  keeps the numbers of that folder there, and the page

`runs/raters.sh` and `runs/raters_hh.py` make the numbers.
"""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from statistics import mean
from string import Template

from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically

KEPT = Path("docs/results/raters")
PAGE = Path("docs/results/raters.md")
ARMS = {
    "one": "one head",
    "groups": "`--groups.count 2 --groups.rounds 6`",
    "users": "`--latent.size 8`",
    "users-longer": "`--latent.size 8 --training.epochs 12`",
    "router": "`--mixture.heads 2`",
}
COLUMNS = ("users_with_their_like", "one_head", "groups", "known_sources")
CROSSED = ("helpful_head_on_harmless", "harmless_head_on_helpful")


def keep(made: Path) -> None:
    """Put the numbers of a folder of runs among those that are kept."""
    KEPT.mkdir(parents=True, exist_ok=True)
    metrics = {
        name: json.loads((made / name / "metrics.json").read_text(encoding="utf-8"))
        for name in ARMS
    }
    straight, users = users_with_their_like(made)
    arms = {"metrics": metrics, "sorted": straight, "users": users}
    write_atomically(KEPT / "opposite.json", json.dumps(arms, indent=2) + "\n")
    shutil.copy(made / "hh.json", KEPT)


def users_with_their_like(made: Path) -> tuple[int, int]:
    """Users whose group is that of most users of their taste, and all users."""
    tastes = {str(row["user"]): row["taste"] for row in read_jsonl(made / "users.jsonl")}
    said = json.loads((made / "groups" / "groups.json").read_text(encoding="utf-8"))["users"]
    counts = Counter((tastes[user], one["group"]) for user, one in said.items())
    straight = counts["kind", "group-1"] + counts["unkind", "group-2"]
    return max(straight, len(said) - straight), len(said)


def main() -> None:
    for made in sys.argv[1:]:
        keep(Path(made))
    opposite, hh = (json.loads((KEPT / f"{name}.json").read_text()) for name in ("opposite", "hh"))
    arms = []
    for name, shown in ARMS.items():
        found = opposite["metrics"][name]
        accuracy, seconds = found["held_out_accuracy"], found["seconds"]
        arms.append(f"| {shown} | {accuracy:.3f} | {found['train_loss']:.3f} | {seconds:.0f} |")
    rows = []
    for ridge in sorted({one["ridge"] for one in hh["seeds"]}):
        of = [one for one in hh["seeds"] if one["ridge"] == ridge]
        numbers = (f"{mean(one[key] for one in of):.3f}" for key in (*COLUMNS, *CROSSED))
        rows.append(f"| {ridge:g} | {' | '.join(numbers)} |")
    template = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    text = template.substitute(
        arms="\n".join(arms),
        hh="\n".join(rows),
        sorted=opposite["sorted"],
        users=opposite["users"],
    )
    write_atomically(PAGE, text)
    print(PAGE)


if __name__ == "__main__":
    main()
