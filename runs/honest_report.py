"""Keep what the experiments against overoptimisation found, and write their page.

    python runs/honest_report.py ensembles transforms

Reads `output/honest/<experiment>` and writes `docs/results/honest/<experiment>.json`, the figure
beside it, and `docs/results/honest.md` from all experiments that are there.
"""

import json
import sys
from pathlib import Path
from shutil import copyfile

from learning_report import finished, markdown, version

from tokencredit.recipes.run_folder import write_atomically

DOCS = Path("docs/results/honest")
EXPERIMENTS = {
    "ensembles": "Five reward models, combined before prefix differences",
    "ensembles-terminal": "Five reward models, combined and paid at the end",
    "transforms": "Scores bounded before they are spread",
    "divergences": "Four prices of leaving the reference",
    "selection": "Which of four responses the policy learns from",
}


def keep(experiment: str) -> None:
    source = Path("output/honest") / experiment
    DOCS.mkdir(parents=True, exist_ok=True)
    table = json.loads((source / "at-equal-kl.json").read_text())
    found = {"commit": version(), "table": table, "curves": finished(source)}
    write_atomically(DOCS / f"{experiment}.json", json.dumps(found) + "\n")
    copyfile(source / "frontier.png", DOCS / f"{experiment}.png")


def section(experiment: str, title: str) -> list[str]:
    found = json.loads((DOCS / f"{experiment}.json").read_text())
    return [
        f"## {title}",
        "",
        f"    runs/honest.sh {experiment}",
        "",
        f"{len(found['curves'])} finished runs, kept at commit {found['commit']}; settings in "
        f"`runs/honest/{experiment}.yaml` and `runs/honest/ppo.yaml`.",
        "",
        *markdown(found["table"]),
        "",
        f"![True reward over KL](honest/{experiment}.png)",
        "",
    ]


def main() -> None:
    for experiment in sys.argv[1:]:
        keep(experiment)
    page = [(Path(__file__).parent / "honest_report.md").read_text()]
    for experiment, title in EXPERIMENTS.items():
        if (DOCS / f"{experiment}.json").exists():
            page += section(experiment, title)
    write_atomically(DOCS.parent / "honest.md", "\n".join(page).rstrip() + "\n")
    print(DOCS.parent / "honest.md")


if __name__ == "__main__":
    main()
