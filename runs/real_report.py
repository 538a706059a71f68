"""The results page of the experiments with pretrained models, from whatever is finished.

    python runs/real_report.py output/real docs/results

Keeps the numbers of `output/real/runs` in `docs/results/real/`, small JSON and figures, and writes
`docs/results/real-models.md` from them; what stands there stays where a run is not on this machine.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

from learning_report import in_two

from tokencredit.evaluation.plots import plot_prefix_accuracy
from tokencredit.recipes.credit.explain import ExplainConfig, explain
from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically

REWARD_MODELS = {
    "trl-rm": "TRL's RewardTrainer",
    "ours-every": "`train-reward-model`, every prefix",
    "ours-last": "`train-reward-model`, last token",
}
PARTS = ("0.2", "0.4", "0.6", "0.8", "open", "1")
CLASSIFIERS = {
    "imdb-rm": "reward model of IMDb: SmolLM2, every prefix",
    "imdb-judge": "judge of IMDb: MiniLM, all weights",
    "hh-judge": "judge of HH: MiniLM, all weights, read at the end",
}
TASKS = {"imdb": "Film reviews", "hh": "Answers to people of HH"}
TRAINING_PAIRS = 3000
CREDITS = ("terminal", "attention", "prefix-difference")
Row = dict[str, Any]


def costs(runs: Path) -> dict[str, Row]:
    """Processor seconds, seconds and peak memory of everything that ran, added up by name.

    What was killed by a signal at any time is left out: the time of its own processes is lost.
    """
    found: dict[str, Row] = {}
    rows = list(read_jsonl(runs / "costs.jsonl"))
    killed = {row["name"] for row in rows if row["status"] < 0}
    for row in rows:
        if row["name"] in killed:
            continue
        one = found.setdefault(row["name"], {"cpu_seconds": 0.0, "seconds": 0.0, "peak_gb": 0.0})
        for name in ("cpu_seconds", "seconds"):
            one[name] = round(one[name] + row[name], 1)
        one["peak_gb"] = max(one["peak_gb"], row["peak_gb"])
    return found


def keep(runs: Path, kept: Path) -> None:
    """Copy what is finished into the folder of results."""
    kept.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if (runs / "costs.jsonl").exists():
        spent = {name: {**row, "commit": commit or "unknown"} for name, row in costs(runs).items()}
        add(kept / "costs.json", spent)
    if (runs / "accuracy.json").exists():
        add(kept / "accuracy.json", json.loads((runs / "accuracy.json").read_text()))
    judged = {
        name: json.loads((runs / name / "prefix_accuracy.json").read_text())
        for name in CLASSIFIERS
        if (runs / name / "prefix_accuracy.json").exists()
    }
    if judged:
        add(kept / "classifiers.json", judged)
    for task in TASKS:
        keep_learning(task, runs / f"{task}-learning", kept)


def add(file: Path, found: dict[str, Any]) -> None:
    """Put rows by name into a file, beside those of runs that are not on this machine."""
    before = json.loads(file.read_text()) if file.exists() else {}
    rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in {**before, **found}.items())
    write_atomically(file, "{" + ",\n".join(rows) + "}\n")


def keep_learning(task: str, source: Path, kept: Path) -> None:
    """The curves that are there, the samples, and the table where the comparison is finished."""
    curves = {p.stem: json.loads(p.read_text()) for p in sorted(source.glob("curves/*.json"))}
    if not curves:
        return
    table = source / "learning.json"
    samples = {p.stem: list(read_jsonl(p)) for p in sorted(source.glob("samples/*.jsonl"))}
    found = {
        "table": json.loads(table.read_text()) if table.exists() else None,
        "curves": curves,
        "samples": {name: rows[:1] + rows[-1:] for name, rows in samples.items()},
    }
    write_atomically(kept / f"{task}.json", json.dumps(found) + "\n")
    for figure in ("learning", "frontier"):
        if (source / f"{figure}.png").exists():
            copyfile(source / f"{figure}.png", kept / f"{task}-{figure}.png")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown, numbers on the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def reward_models(kept: Path) -> Iterator[str]:
    """Accuracy by the part of the answer seen, and what training took."""
    if not (kept / "accuracy.json").exists():
        yield "Not run yet: `runs/real_models.sh trl hh_reward_models accuracy`.\n"
        return
    found = json.loads((kept / "accuracy.json").read_text())
    spent = json.loads((kept / "costs.json").read_text())
    rows = []
    for name in found:
        cost = spent[name]
        rows.append(
            [
                REWARD_MODELS[name],
                f"{cost['cpu_seconds']:.0f}",
                f"{cost['cpu_seconds'] / TRAINING_PAIRS:.2f}",
                f"{cost['peak_gb']:.1f}",
            ]
        )
    pairs = next(iter(found.values()))["pairs"]
    head = ["20 %", "40 %", "60 %", "80 %", "100 %, open", "whole answer"]
    yield from table(
        [f"{pairs} held-out pairs", *head],
        [
            [REWARD_MODELS[name], *(f"{row['accuracy'][part]:.3f}" for part in PARTS)]
            for name, row in found.items()
        ],
    )
    yield "What training took:\n"
    yield from table(["model", "CPU s", "CPU s a pair", "peak GB"], rows)
    if "trl-rm" in found:
        yield "More than TRL's on the same pairs, with the standard error of the difference:\n"
        yield from table(
            ["model", *head],
            [
                [REWARD_MODELS[name], *differences(row["lead"], found["trl-rm"]["lead"])]
                for name, row in found.items()
                if name != "trl-rm"
            ],
        )
    figure = {
        REWARD_MODELS[name].replace("`", ""): [
            {"fraction": float(part), "accuracy": row["accuracy"][part], "count": row["pairs"]}
            for part in PARTS
            if part != "open"
        ]
        for name, row in found.items()
    }
    plot_prefix_accuracy(figure, kept / "hh-prefix-accuracy.png", title="Held-out pairs of HH")
    yield "![Accuracy by the part of the answer seen](real/hh-prefix-accuracy.png)\n"


def differences(mine: list[list[float]], theirs: list[list[float]]) -> Iterator[str]:
    """Mean difference in right pairs, and its standard error, for each part."""
    for ours, other in zip(zip(*mine, strict=True), zip(*theirs, strict=True), strict=True):
        gain = [(a > 0) - (b > 0) for a, b in zip(ours, other, strict=True)]
        error = statistics.stdev(gain) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
        yield f"{statistics.mean(gain):+.3f} ± {error:.3f}"


def classifiers(kept: Path) -> Iterator[str]:
    """Accuracy of the other models, by the part of the text seen."""
    if not (kept / "classifiers.json").exists():
        yield "Not trained yet: `runs/real_models.sh imdb_models`.\n"
        return
    found = json.loads((kept / "classifiers.json").read_text())
    spent = json.loads((kept / "costs.json").read_text())
    yield from table(
        ["held-out accuracy", "20 %", "40 %", "60 %", "80 %", "100 %", "rows", "CPU s"],
        [
            [
                CLASSIFIERS[name],
                *(f"{row['accuracy']:.3f}" for row in rows),
                str(rows[-1]["count"]),
                f"{spent[name]['cpu_seconds']:.0f}",
            ]
            for name, rows in found.items()
        ],
    )


def learning(task: str, kept: Path) -> Iterator[str]:
    """The table of a comparison; every finished run alone while it is not complete."""
    if not (kept / f"{task}.json").exists():
        yield f"Not run yet: `runs/real_models.sh {task}_policies`.\n"
        return
    found = json.loads((kept / f"{task}.json").read_text())
    if found["table"] is None:
        yield (
            f"The comparison is not complete; `runs/real_models.sh {task}_policies` goes on with "
            "it. The runs that are finished:\n"
        )
        yield from table(
            ["run", "steps", "score, first 5", "score, last 5", "judge, first 5", "judge, last 5",
             "KL, last 5"],
            [[name, str(len(c["score"])), *ends(c)] for name, c in found["curves"].items()],
        )  # fmt: skip
    else:
        yield from [*in_two(found["table"]), ""]
        yield from leads(found["curves"], {row["method"]: row for row in found["table"]})
        for figure, title in (("learning", "Learning curves"), ("frontier", "Judge over KL")):
            yield f"![{title}](real/{task}-{figure}.png)\n"
    for name, samples in found["samples"].items() if task == "imdb" else ():
        shown = (f"step {s['step']}, {s['score']:+.2f}: {quoted(s)}" for s in samples)
        yield "\n".join([f"- {name}", *(f"    - {line}" for line in shown)])
    yield ""


def leads(curves: dict[str, Row], methods: dict[str, Row]) -> Iterator[str]:
    """How far the judge puts each credit above the terminal reward, seed by seed, along the run."""

    def judged(method: str, seed: int) -> list[float]:
        start = f"{method}_lr{methods[method]['learning rate']}_"
        name = next(n for n in curves if n.startswith(start) and n.endswith(f"_seed{seed}"))
        score = curves[name]["held_out_score"]
        return [statistics.mean(score[at : at + 5]) for at in range(0, len(score), 5)]

    rows = []
    for method in methods:
        for seed in range(int(methods[method]["seeds"])) if method != "terminal" else ():
            both = zip(judged(method, seed), judged("terminal", seed), strict=True)
            rows.append([f"{method}, seed {seed}", *(f"{own - other:+.2f}" for own, other in both)])
    steps = max(len(curve["score"]) for curve in curves.values())
    yield "How much higher the judge's score is than with the terminal reward of the same seed:\n"
    head = [f"steps {at + 1} to {min(at + 5, steps)}" for at in range(0, steps, 5)]
    yield from table(["", *head], rows)


def ends(curve: Row) -> list[str]:
    """Means of the first and of the last five steps."""
    score, judge = curve["score"], curve["held_out_score"]
    parts = (score[:5], score[-5:], judge[:5], judge[-5:], curve["kl"][-5:])
    return [f"{statistics.mean(part):.2f}" for part in parts]


def quoted(sample: Row) -> str:
    """Prompt and response on one line, as code."""
    text = " ".join(f"{sample['prompt']} |{sample['response']}".split())
    return "`" + text.replace("`", "'") + "`"


def heatmap(runs: Path, kept: Path) -> Iterator[str]:
    """One response of a trained policy, by three credits."""
    file = kept / "imdb.json"
    samples = json.loads(file.read_text())["samples"] if file.exists() else {}
    chosen = next((rows[-1] for name, rows in samples.items() if name.startswith("prefix")), None)
    if chosen is not None and (runs / "imdb-rm" / "config.json").exists():
        explain(
            ExplainConfig(
                reward_model=str(runs / "imdb-rm"),
                prompt=chosen["prompt"],
                response=chosen["response"],
                methods=CREDITS,
                output=str(kept / "imdb-heatmap.png"),
            )
        )
    if (kept / "imdb-heatmap.png").exists():
        yield "The same reward model's score of one response, spread by the three credits:\n"
        yield "![Heat map](real/imdb-heatmap.png)\n"


def main() -> None:
    out, docs = map(Path, sys.argv[1:])
    runs, kept = out / "runs", docs / "real"
    keep(runs, kept)
    page = (Path(__file__).parent / "real_report.md").read_text()
    spent = kept / "costs.json"
    rows = json.loads(spent.read_text()).values() if spent.exists() else ()
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    text = page.format(
        commit=f", here at {commits}" if commits else "",
        reward_models="\n".join(reward_models(kept)),
        classifiers="\n".join(classifiers(kept)),
        imdb="\n".join([*learning("imdb", kept), *heatmap(runs, kept)]),
        hh="\n".join(learning("hh", kept)),
    )
    write_atomically(docs / "real-models.md", text.rstrip() + "\n")
    print(docs / "real-models.md")


if __name__ == "__main__":
    main()
