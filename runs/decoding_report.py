"""The results page of guided decoding, from the finished runs.

    python runs/decoding_report.py

Keeps the figures of `output/decoding/<task>/*` in `docs/results/decoding/<task>.json`, without any
text, and writes `docs/results/decoding.md` with a table and a frontier for each task that is there.
A response wins against the unguided one to the same prompt if the reward model that guided neither
scores it higher.
"""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from tokencredit.evaluation.plots import plot_frontier, plot_prefix_accuracy
from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically

DOCS = Path("docs/results")
RUNS = Path("output/decoding")
# Before this script makes the tree dirty itself.
COMMIT = subprocess.run(
    ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
).stdout.strip()
TASKS = {
    "imdb": "IMDb: 48 tokens after the first 8 of a review, no end of sequence",
    "hh": "HH: answers of at most 64 tokens to 200 held-out prompts",
}
REWARD_MODELS = ("reward-model", "reward-model-last", "held-out-reward-model")
PPO = "PPO, prefix differences"
Row = dict[str, Any]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def place(name: str) -> tuple[bool, str, float]:
    """Where a run stands in the table: unguided first, each method by its number."""
    family = name.rstrip("0123456789.")
    return name != "unguided", family, float(name[len(family) :] or 0)


def rows_of(task: str) -> list[Row]:
    """One row per finished run, unguided first."""
    unguided = read_jsonl(RUNS / task / "unguided" / "responses.jsonl")
    folders = sorted(folder.parent for folder in (RUNS / task).glob("*/metrics.json"))
    rows = []
    for folder in sorted(folders, key=lambda folder: place(folder.name)):
        responses = read_jsonl(folder / "responses.jsonl")
        wins = [
            (mine["held_out_score"] > plain["held_out_score"])
            + (mine["held_out_score"] == plain["held_out_score"]) / 2
            for mine, plain in zip(responses, unguided, strict=True)
        ]
        row = {"name": folder.name, **json.loads((folder / "metrics.json").read_text())}
        row["held_out_error"] = mean_and_error([r["held_out_score"] for r in responses])[1]
        row["win_rate"], row["win_rate_error"] = mean_and_error(wins)
        rows.append(row)
    return rows


def with_ppo_price(task: str, rows: list[Row]) -> list[Row]:
    """PPO is generated without a guide: its KL is that of its last steps of training."""
    metrics = Path("output") / task / "ppo" / "metrics.jsonl"
    for row in rows:
        if row["name"] == PPO:
            row["kl"] = statistics.mean(line["kl"] for line in read_jsonl(metrics)[-10:])
    return rows


def kept(task: str) -> Row:
    """What the page shows of a task; from the last finished runs, or as it was kept."""
    file = DOCS / "decoding" / f"{task}.json"
    if not (RUNS / task / "unguided" / "metrics.json").exists():
        return json.loads(file.read_text())
    found = {
        "commit": COMMIT,
        "prefix_accuracy": {
            name: json.loads((Path("output") / task / name / "prefix_accuracy.json").read_text())
            for name in REWARD_MODELS
        },
        "rows": with_ppo_price(task, rows_of(task)),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(found) + "\n")
    return found


def price(row: Row) -> float | None:
    """KL in nats per response; of best-of-n its bound."""
    return row.get("kl", row.get("kl_at_most"))


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value:{form}}"


def table(rows: list[Row]) -> list[str]:
    """Two narrow tables: what was reached at which KL, and what the responses are and cost."""
    reached = [
        "| method | held-out score | wins against unguided | guiding score | KL |",
        "|---|---:|---:|---:|---:|",
    ]
    cost = [
        "| method | diversity | repetition | length | tokens/s | LM / RM positions per token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        positions = [
            number(row.get(f"{model}_positions_per_token"), ".1f") for model in ("lm", "reward")
        ]
        one = [
            f"{row['held_out_score']:.2f} ± {row['held_out_error']:.2f}",
            f"{row['win_rate']:.2f} ± {row['win_rate_error']:.2f}",
            number(row.get("score")),
            ("≤ " if "kl_at_most" in row else "") + number(price(row), ".1f"),
        ]
        other = [
            number(row["diversity"]),
            number(row["repetition_of_4"]),
            number(row["length"], ".1f"),
            number(row["tokens_per_second"], ".0f"),
            " / ".join(positions),
        ]
        reached.append("| " + " | ".join([row["name"], *one]) + " |")
        cost.append("| " + " | ".join([row["name"], *other]) + " |")
    return [*reached, "", "What the responses are like, and what they cost:", "", *cost]


def frontier(task: str, rows: list[Row]) -> str:
    """A figure: a line through the points of each method."""
    families: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        paid = price(row)
        if paid is not None:
            name = row["name"].rstrip("0123456789.").strip()
            families.setdefault(name, []).append((paid, row["held_out_score"]))
    paths = {name: tuple(zip(*sorted(points), strict=True)) for name, points in families.items()}
    plot_frontier(
        paths,
        DOCS / "decoding" / f"{task}-frontier.png",
        xlabel="KL to the unguided policy (nats per response)",
        ylabel="score by the held-out model (nats)",
        title=TASKS[task].split(":")[0],
    )
    return f"![Held-out score against KL](decoding/{task}-frontier.png)"


def accuracies(task: str, found: Row) -> list[str]:
    curves = found["prefix_accuracy"]
    fractions = [f"{point['fraction']:.0%}" for point in next(iter(curves.values()))]
    plot_prefix_accuracy(curves, DOCS / "decoding" / f"{task}-prefix-accuracy.png")
    return [
        "| reward model | " + " | ".join(fractions) + " |",
        "|---|" + "---:|" * len(fractions),
        *(
            f"| {name} | " + " | ".join(f"{point['accuracy']:.3f}" for point in points) + " |"
            for name, points in curves.items()
        ),
    ]


def section(task: str) -> list[str]:
    found = kept(task)
    return [
        f"## {TASKS[task]}",
        "",
        f"    runs/decoding_results.sh {task}",
        "",
        f"Kept at commit {found['commit']}. Held-out accuracy of the reward models by the part of "
        "the response that they see:",
        "",
        *accuracies(task, found),
        "",
        *table(found["rows"]),
        "",
        frontier(task, found["rows"]),
        "",
    ]


def main() -> None:
    lines = [(Path(__file__).parent / "decoding_report.md").read_text()]
    for task in TASKS:
        kept_before = (DOCS / "decoding" / f"{task}.json").exists()
        if kept_before or (RUNS / task / "unguided" / "metrics.json").exists():
            lines += section(task)
    write_atomically(DOCS / "decoding.md", "\n".join(lines).rstrip() + "\n")
    print(DOCS / "decoding.md")


if __name__ == "__main__":
    main()
