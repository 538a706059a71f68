"""How long until a policy scores what TRL's PPO scores at best: ours against TRL 1.11, one thread.

    tokencredit quickstart                    # the models of the built-in task
    make .venv-trl-ppo/.installed
    python benchmarks/time_to_score.py --quickstart output/quickstart

    runs/imdb_headline.sh                     # its models are enough
    python benchmarks/time_to_score.py --output output/time-to-score-imdb \
      --policy output/imdb/language-model --reward-model output/imdb/reward-model \
      --prompts output/imdb/prompts.jsonl --new-tokens 50 --unended

Both sides train one language model against one reward model, with the same prompts, batch, epochs,
coefficient of KL and schedule of the learning rate, in a process of its own each.
Curves are smoothed over five iterations. Each side, and each row of ours, takes the one of the same
learning rates at which it first scores, with the first seed, the highest that TRL's curves reach at
any rate (or, where none does, the rate with the highest mean of the last fifth); then the other
seeds run at that rate. Reported for each seed is when a side first scores the best of TRL's curve
with that seed, and when 95 % of the way from that curve's beginning to its best, since at the end
both stand on a plateau: in iterations and in processor time since the first iteration.
TRL collects garbage twice in every iteration, which large models would not notice: the time is
also told without that. Finished runs stand in `runs.jsonl` and are not repeated.

Equal is what stands in `ppo_settings.py`. Different: TRL trains a copy of the reward model as
critic; ours puts a value head on the policy, but for the row that has TRL's critic.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo import measure, require_peer
from ppo_settings import PPOSettings

WINDOW = 5
SHARES = (1.0, 0.95)
SIDES = {
    "TRL, terminal": ("trl", "terminal", "shared"),
    "tokencredit, terminal": ("tokencredit", "terminal", "shared"),
    "tokencredit, attention": ("tokencredit", "attention", "shared"),
    "tokencredit, prefix differences": ("tokencredit", "prefix-difference", "shared"),
    "prefix differences, TRL's critic": ("tokencredit", "prefix-difference", "reward-model"),
}
"""Program, credit and critic of each side; the credit and the critic are for ours alone."""
PEER = "TRL, terminal"


@dataclass(frozen=True)
class Run:
    """One training run, and its curve: a row per iteration, see `ppo_settings.answer`."""

    side: str
    learning_rate: float
    seed: int
    curve: list[dict[str, float]]

    def smoothed(self) -> list[float]:
        """Means over the last `WINDOW` iterations, from the first that has so many."""
        scores = [row["score"] for row in self.curve]
        return [
            statistics.fmean(scores[end - WINDOW : end]) for end in range(WINDOW, len(scores) + 1)
        ]

    def last_fifth(self) -> float:
        scores = [row["score"] for row in self.curve]
        return statistics.fmean(scores[-max(1, len(scores) // 5) :])

    def reached(self, score: float) -> int | None:
        """The iteration, from 1, at which the smoothed curve first is at `score`."""
        found = (place for place, value in enumerate(self.smoothed()) if value >= score)
        place = next(found, None)
        return None if place is None else place + WINDOW

    def seconds(self, iteration: int, *, collections: bool) -> float:
        """Processor time from the end of the first iteration to the end of another.

        The first one holds what happens once: loading, and the first use of every kernel.
        """
        first, last = self.curve[0], self.curve[iteration - 1]
        collected = 0.0 if collections else last["collection"] - first["collection"]
        return last["cpu_seconds"] - first["cpu_seconds"] - collected


def prepared_models(options: argparse.Namespace) -> Path:
    """A folder as `ppo_settings.PPOSettings.models` wants it.

    The quickstart's reward model reads no end of sequence. TRL reads the score there, so that one
    for ended texts is trained, where no other is named.
    """
    quickstart = options.quickstart
    models = options.output / "models"
    models.mkdir(parents=True, exist_ok=True)
    parts = {
        "policy": options.policy or quickstart / "language-model",
        "prompts.jsonl": options.prompts or quickstart / "data" / "prompts.jsonl",
        "reward_model": options.reward_model,
    }
    for name, target in parts.items():
        if target is not None and not (models / name).exists():
            (models / name).symlink_to(target.resolve())
    if options.reward_model is None and not (models / "reward_model" / "config.json").exists():
        command = [str(Path(sys.executable).parent / "tokencredit"), "train-reward-model"]
        options = {
            "data": quickstart / "data" / "pairs.jsonl",
            "model": quickstart / "language-model",
            "output": models / "reward_model",
            "columns.prompt": "prompt",
            "reading.append_eos": "true",
            "max_length": 96,
            "training.epochs": 3,
            "training.batch_size": 16,
            "training.learning_rate": 1e-3,
            "device": "cpu",
            "progress": "false",
        }
        told = (str(part) for name, value in options.items() for part in (f"--{name}", value))
        subprocess.run([*command, *told], check=True)
    return models


def runs_of(options: argparse.Namespace, models: Path) -> Iterator[Run]:
    """All runs, in turn by side: the rates with the first seed, then the other seeds."""
    done = options.output / "runs.jsonl"
    kept = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    known = {(row["side"], row["learning_rate"], row["seed"]): Run(**row) for row in kept}

    def run(side: str, rate: float, seed: int) -> Run:
        if (side, rate, seed) not in known:
            print(f"{side}, learning rate {rate}, seed {seed}", file=sys.stderr)
            program, credit, critic = SIDES[side]
            settings = PPOSettings(
                models=str(models),
                new_tokens=options.new_tokens,
                ended=not options.unended,
                batch_size=options.batch_size,
                learning_rate=rate,
                credit=credit,
                critic=critic,
                steps=options.steps - 1,
                warmup=1,
                threads=1,
                seed=seed,
            )
            found = Run(side, rate, seed, measure(program, settings)["curve"])
            with done.open("a") as file:
                file.write(json.dumps(found.__dict__) + "\n")
            known[side, rate, seed] = found
        return known[side, rate, seed]

    first, *others = range(options.seeds)
    tuned = [run(side, rate, first) for rate in options.learning_rates for side in options.sides]
    yield from tuned
    for seed, side in itertools.product(others, options.sides):
        yield run(side, best_rate(tuned, side), seed)


def best_rate(runs: list[Run], side: str) -> float:
    """The learning rate at which a side first scores the highest of TRL's, with the first seed."""
    first = [run for run in runs if run.seed == 0]
    goal = max(max(run.smoothed()) for run in first if run.side == PEER)
    own = [run for run in first if run.side == side]
    ends = [(end, run.learning_rate) for run in own if (end := run.reached(goal)) is not None]
    return min(ends)[1] if ends else max(own, key=Run.last_fifth).learning_rate


def reached(run: Run, peer: Run, goal: float) -> dict[str, float] | None:
    """When a run first scores a goal, at which KL, and in which part of the peer's time."""
    end, peer_end = run.reached(goal), peer.reached(goal)
    assert peer_end is not None
    if end is None:
        return None
    times = {
        name: run.seconds(end, collections=collections)
        / peer.seconds(peer_end, collections=collections)
        for name, collections in (("time", True), ("time without collections", False))
    }
    return {"iteration": end, "kl": run.curve[end - 1]["kl"], **times}


def table(runs: list[Run]) -> list[dict[str, Any]]:
    """For each side and seed at the side's best rate: when it scores what TRL scores at best."""
    rates = {side: best_rate(runs, side) for side in dict.fromkeys(run.side for run in runs)}
    chosen = {(run.side, run.seed): run for run in runs if run.learning_rate == rates[run.side]}
    rows: list[dict[str, Any]] = []
    for (side, seed), run in sorted(chosen.items(), key=lambda item: (item[0][1], item[0][0])):
        peer = chosen[PEER, seed]
        begin, best = peer.smoothed()[0], max(peer.smoothed())
        row: dict[str, Any] = {
            "seed": seed,
            "side": side,
            "learning rate": rates[side],
            "TRL's best": best,
            "own best": max(run.smoothed()),
        }
        for share in SHARES:
            goal = begin + share * (best - begin)
            row[f"{share:.0%}"] = reached(run, peer, goal)
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of all seeds, and the medians over them."""
    said = ("iteration", "KL there", "time / TRL's", "without collections")
    heads = [f"{share:.0%}: {what}" for share in SHARES for what in said]
    lines = [
        "| seed | side | learning rate | TRL's best | own best | " + " | ".join(heads) + " |",
        "|---:|---|---:|---:|---:|" + "---:|" * len(heads),
    ]
    for row in rows:
        cells = [str(row["seed"]), row["side"], f"{row['learning rate']:g}"]
        cells += [f"{row[name]:.2f}" for name in ("TRL's best", "own best")]
        for share in SHARES:
            found = row[f"{share:.0%}"]
            if found is None:
                cells += ["not reached", "", "", ""]
                continue
            cells += [f"{found['iteration']}", f"{found['kl']:.1f}"]
            cells += [f"{found[name]:.3f}" for name in ("time", "time without collections")]
        lines.append("| " + " | ".join(cells) + " |")
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        cells = ["median", side, "", "", ""]
        for share in SHARES:
            found = [row[f"{share:.0%}"] for row in own]
            for name in ("iteration", "kl", "time", "time without collections"):
                missing = any(one is None for one in found)
                shown = "-" if missing else f"{statistics.median(one[name] for one in found):.3g}"
                cells.append(shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(runs: list[Run]) -> str:
    """What an iteration takes each side, as medians over its runs."""
    lines = ["| side | CPU s per iteration | of these garbage collections |", "|---|---:|---:|"]
    for side in dict.fromkeys(run.side for run in runs):
        own = [
            [run.seconds(len(run.curve), collections=some) / (len(run.curve) - 1) for run in runs
             if run.side == side]
            for some in (True, False)
        ]  # fmt: skip
        whole, without = map(statistics.median, own)
        lines.append(f"| {side} | {whole:.2f} | {whole - without:.2f} |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--policy", type=Path, help="a language model in place of the quickstart's")
    parser.add_argument("--reward-model", type=Path, help="with it, in place of the quickstart's")
    parser.add_argument("--prompts", type=Path, help="JSON lines, in place of the quickstart's")
    parser.add_argument("--unended", action="store_true", help="responses without an end")
    parser.add_argument("--output", type=Path, default=Path("output/time-to-score"))
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], metavar="RATE"
    )
    parser.add_argument(
        "--sides", nargs="+", default=list(SIDES), choices=SIDES, metavar="SIDE",
        help=f"some of {', '.join(SIDES)}; the first is always needed",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if PEER not in options.sides:
        sys.exit(f"--sides without {PEER!r}, which the others are compared with")
    require_peer()
    named = [options.policy, options.reward_model, options.prompts]
    if any(named) and not all(named):
        sys.exit("expected --policy, --reward-model and --prompts together, or none of them")
    if not any(named) and not (options.quickstart / "language-model" / "config.json").exists():
        sys.exit(f"no models in {options.quickstart}; make them with `tokencredit quickstart`")
    runs = list(runs_of(options, prepared_models(options)))
    rows = table(runs)
    print(f"{markdown(rows)}\n\n{costs(runs)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
