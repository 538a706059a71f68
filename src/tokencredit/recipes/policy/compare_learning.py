"""Which way to pay makes a policy learn fastest: the same grid and seeds for every method.

    tokencredit compare-learning --settings ppo.yaml --output comparison

Every method is tuned on the same grid of learning rates, and of gae_lambda where it has a critic,
and on a grid of its own if it has one, then run with more seeds at its best point. A method is any
setting of train-policy: a credit, an algorithm, a kind of segments. Finished runs leave a small
curve and a few samples and are skipped, so that an interrupted comparison goes on where it stopped;
nothing else of a run is kept.
"""

import json
import multiprocessing
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from tokencredit.errors import ConfigError, DataError, RunFolderError
from tokencredit.ranges import require_at_least
from tokencredit.recipes.policy.learning_report import Curve, Point, write_learning_report
from tokencredit.recipes.policy.setting_groups import AlgorithmSettings, RecordSettings
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.quickstart_report import true_rewards_by_step
from tokencredit.recipes.run.run_folder import open_run_folder, read_jsonl, write_atomically
from tokencredit.recipes.settings import flat_settings, free_settings, setting, settings_from
from tokencredit.recipes.settings_files import require_small_file

_OF_EACH_REWARD = ("score/", "multiplier/")  # curves that runs with several rewards have besides
Judge = Literal["score", "held_out_score", "true_reward"]
REWARD_MODEL_ALONE = {
    "terminal": {"credit.method": "terminal"},
    "terminal+critic": {"credit.method": "terminal", "algorithm.critic": "reward-model"},
    "uniform": {"credit.method": "uniform"},
    "attention": {"credit.method": "attention"},
    "prefix-difference": {"credit.method": "prefix-difference"},
}
_CHOSEN = ("output", "optimizer.learning_rate", "algorithm.gae_lambda", "seed")


@dataclass(frozen=True)
class CompareLearningConfig:
    """Settings of one comparison."""

    settings: str
    """YAML file with the settings of `train-policy` that all runs share."""
    output: str
    """Folder for curves, tables and figures."""
    methods: dict[str, dict[str, Any]] | None = setting(None, free=True)
    """The settings of each method, under a name of your choice, `credit.method: uniform` for
    example; None compares those that need a reward model alone."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Grid of learning rates for every method."""
    gae_lambdas: tuple[float, ...] = (0.8, 0.95)
    """Grid of `gae_lambda` for every method with a critic."""
    grids: dict[str, dict[str, list[Any]]] | None = setting(None, free=True)
    """More settings that are tuned, by the name of the method, each with its values, `{cautious:
    {combine.variance_coef: [0.1, 1]}}` for example."""
    kl_targets: tuple[float, ...] = ()
    """Every method is tuned and run at each of these values of `kl.target`, one row each; empty
    leaves the settings as they are."""
    tuning_seeds: int = setting(2, free=True)
    """Runs per grid point."""
    seeds: int = setting(5, free=True)
    """Runs per method at its best grid point, those of the tuning included."""
    tuned_by: Literal["score", "held_out_score"] = "score"
    """Which curve chooses the point of the grid: `score` of the guiding reward model, or
    `held_out_score` of the second one. The guiding model always prefers more optimisation, so
    coefficients that hold a policy back need the second."""
    judged_by: Judge = "score"
    """Which curve the report compares: `score` of the guiding reward model, `held_out_score` of
    the second one, or `true_reward` of the built-in task."""
    processes: int = setting(1, free=True)
    """Runs at the same time, each with one thread."""
    progress: bool = setting(True, free=True)
    """Print a line per finished run."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "tuning_seeds", "seeds", "processes")
        if not self.learning_rates or not self.gae_lambdas:
            raise ConfigError(
                f"learning_rates is {self.learning_rates} and gae_lambdas {self.gae_lambdas}; "
                "expected at least one of each"
            )
        strangers = set(self.grids or ()) - set(self.methods or REWARD_MODEL_ALONE)
        if strangers:
            raise ConfigError(
                f"grids names {', '.join(sorted(strangers))}; expected names of methods, which are "
                f"{', '.join(self.methods or REWARD_MODEL_ALONE)}"
            )
        empty = [
            f"{m}: {name}" for m, own in (self.grids or {}).items() for name in own if not own[name]
        ]
        if empty:
            raise ConfigError(f"grids has no value for {empty[0]}; expected a list of at least one")
        for name in self.methods or ():
            if Path(name).name != name or "\x00" in name:
                raise ConfigError(
                    f"a method is called {name!r}; expected a name that a file can have, without "
                    "slashes: its curves lie under it in `output`"
                )


@dataclass(frozen=True)
class LearningRun:
    """One policy of a comparison."""

    method: str
    learning_rate: float
    gae_lambda: float | None
    own: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def name(self) -> str:
        """Name of its curve: all that differs between runs."""
        smoothing = "" if self.gae_lambda is None else f"_lam{self.gae_lambda:g}"
        own = "".join(f"_{name}{value}" for name, value in self.own)
        return f"{self.method}_lr{self.learning_rate:g}{smoothing}{own}_seed{self.seed}"


def compare_learning(config: CompareLearningConfig) -> Path:
    """Run what is missing and write the report.

    Returns:
        The report, one HTML file; `learning.json` and `learning.md` beside it hold its table.

    Raises:
        DataError: the settings file is not there.
        ConfigError: it, or a method, names a setting that there is not.
        RunFolderError: the folder holds another comparison, or cannot be written.
    """
    methods, _ = _methods_and_grids(config)
    shared = _shared_settings(config)
    tuning = tuning_runs(config)
    curves = _open_folder(config, shared)
    _run_missing(config, tuning, methods, shared, curves)
    best = best_points(tuning, curves, config.tuned_by)
    final = [
        LearningRun(method, *best[method], seed)
        for seed in range(config.seeds)
        for method in methods
    ]
    _run_missing(config, final, methods, shared, curves)
    found = {name: [_read(run, curves) for run in final if run.method == name] for name in methods}
    return write_learning_report(
        Path(config.output),
        found,
        best,
        _tuning_scores(tuning, curves, config.tuned_by),
        config.judged_by,
    )


def tuning_runs(config: CompareLearningConfig) -> list[LearningRun]:
    """Every point of every method's grid, with every seed of the tuning.

    Raises:
        DataError: the settings file is not there.
        ConfigError: it, or a point of a grid, is none of train-policy.
    """
    methods, grids = _methods_and_grids(config)
    shared = _shared_settings(config)
    points: dict[str, list[Point]] = {}
    for method, changes in methods.items():
        own = grids.get(method, {})
        for values in product(*own.values()):
            chosen = {"output": config.output, **dict(zip(own, values, strict=True))}
            asked = _policy_config(shared, changes, method, chosen)
        points[method] = _grid(config, asked.algorithm, own)
    return [
        LearningRun(method, *point, seed)
        for seed in range(config.tuning_seeds)
        for method in methods
        for point in points[method]
    ]


def _methods_and_grids(
    config: CompareLearningConfig,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[Any]]]]:
    """Changes of every row and its own grid; with `kl_targets` each method is a row per target."""
    methods, grids = config.methods or REWARD_MODEL_ALONE, config.grids or {}
    if not config.kl_targets:
        return methods, grids
    rows = {
        f"{name}, KL {target:g}": (name, {**changes, "kl.target": target})
        for name, changes in methods.items()
        for target in config.kl_targets
    }
    return (
        {row: changes for row, (_, changes) in rows.items()},
        {row: grids[name] for row, (name, _) in rows.items() if name in grids},
    )


def _grid(
    config: CompareLearningConfig, algorithm: AlgorithmSettings, own: dict[str, list[Any]]
) -> list[Point]:
    """Every point that a method is tuned over; no gae_lambda without a critic to smooth."""
    lambdas = config.gae_lambdas if algorithm.has_critic else (None,)
    chosen = [tuple(zip(own, values, strict=True)) for values in product(*own.values())]
    return list(product(config.learning_rates, lambdas, chosen))


def best_points(runs: list[LearningRun], curves: Path, tuned_by: str) -> dict[str, Point]:
    """The point of each method with the best mean over tuning of the curve that chooses."""
    return {
        method: max(points, key=points.__getitem__)
        for method, points in _tuning_scores(runs, curves, tuned_by).items()
    }


def _tuning_scores(
    runs: list[LearningRun], curves: Path, tuned_by: str
) -> dict[str, dict[Point, float]]:
    found: dict[str, dict[Point, list[float]]] = {}
    for run in runs:
        point = (run.learning_rate, run.gae_lambda, run.own)
        score = statistics.mean(_read(run, curves)[tuned_by])
        found.setdefault(run.method, {}).setdefault(point, []).append(score)
    return {
        method: {point: statistics.mean(values) for point, values in points.items()}
        for method, points in found.items()
    }


def _shared_settings(config: CompareLearningConfig) -> dict[str, Any]:
    path = Path(config.settings)
    if not path.is_file():
        raise DataError(
            f"there is no file {config.settings!r}; expected YAML with settings of train-policy"
        )
    require_small_file(path)
    shared = flat_settings(TrainPolicyConfig, yaml.safe_load(path.read_text()) or {})
    tuned = set(_CHOSEN) & set(shared)
    if config.tuned_by == "held_out_score" and not shared.get("held_out_reward_model"):
        raise ConfigError(
            f"tuned_by is 'held_out_score' and {config.settings} names no held_out_reward_model; "
            "expected one there"
        )
    if tuned:
        raise ConfigError(
            f"{config.settings} sets {', '.join(sorted(tuned))}, which the comparison chooses; "
            "expected settings that all runs share: remove them there"
        )
    return shared


def _open_folder(config: CompareLearningConfig, shared: dict[str, Any]) -> Path:
    """The folder of curves, after making sure that they are of these settings."""
    folder = open_run_folder(config.output, config, free=free_settings(CompareLearningConfig))
    kept, text = folder / "shared-settings.yaml", yaml.safe_dump(shared)
    if kept.exists() and kept.read_text() != text:
        raise RunFolderError(
            f"{folder} holds a comparison with other settings than {config.settings} has now "
            f"(they are in {kept.name}); expected the same: choose another `output`"
        )
    write_atomically(kept, text)
    (folder / "curves").mkdir(exist_ok=True)
    return folder / "curves"


def _policy_config(
    shared: dict[str, Any], changes: dict[str, Any], name: str, point: dict[str, Any]
) -> TrainPolicyConfig:
    changed = flat_settings(TrainPolicyConfig, changes)
    try:
        return settings_from(TrainPolicyConfig, {**shared, **changed, **point})
    except ConfigError as error:
        raise ConfigError(f"the settings of train-policy for method {name!r}: {error}") from error


def _run_missing(
    config: CompareLearningConfig,
    runs: list[LearningRun],
    methods: dict[str, dict[str, Any]],
    shared: dict[str, Any],
    curves: Path,
) -> None:
    missing = [run for run in runs if not (curves / f"{run.name}.json").exists()]
    console = Console(quiet=not config.progress)
    console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are done")
    for done, (run, score) in enumerate(_trained(config, missing, methods, shared, curves), 1):
        console.print(f"  {done}/{len(missing)} {run.name}: mean score {score:.3f}", soft_wrap=True)


def _trained(
    config: CompareLearningConfig,
    runs: list[LearningRun],
    methods: dict[str, dict[str, Any]],
    shared: dict[str, Any],
    curves: Path,
) -> Iterator[tuple[LearningRun, float]]:
    jobs = [(run, methods[run.method], shared, curves, config.judged_by) for run in runs]
    if config.processes == 1:
        for job in jobs:
            yield job[0], train_one(*job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.processes, mp_context=context) as pool:
        running = {pool.submit(train_one, *job): job[0] for job in jobs}
        for finished in as_completed(running):
            yield running[finished], finished.result()


def train_one(
    run: LearningRun,
    changes: dict[str, Any],
    shared: dict[str, Any],
    curves: Path,
    judged_by: Judge,
) -> float:
    """Train one policy, keep its curve, return its mean score."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="learning-"))
    chosen = zip(_CHOSEN, (str(folder), run.learning_rate, run.gae_lambda, run.seed), strict=True)
    point = {**dict(run.own), **{name: value for name, value in chosen if value is not None}}
    asked = _policy_config(shared, changes, run.method, point)
    last = asked.steps - 1
    record = RecordSettings(
        checkpoint_every=asked.steps, sample_every=max(1, last), progress=False, figure=False
    )
    if judged_by == "true_reward":
        record = replace(record, sample_every=1, sample_count=asked.batch_size)
    try:
        train_policy(replace(asked, record=record))
        rows = read_jsonl(folder / "metrics.jsonl")
        curve: Curve = {
            name: [round(row[name], 4) for row in rows]
            for name in rows[0]
            if name in ("score", "kl", "held_out_score") or name.startswith(_OF_EACH_REWARD)
        }
        if judged_by == "true_reward":
            curve["true_reward"] = [round(value, 4) for value in true_rewards_by_step(folder)]
        samples = [row for row in read_jsonl(folder / "samples.jsonl") if row["step"] in (0, last)]
    finally:
        shutil.rmtree(folder)
    kept = curves.with_name("samples")
    kept.mkdir(exist_ok=True)
    lines = (json.dumps(row) + "\n" for row in samples)
    write_atomically(kept / f"{run.name}.jsonl", "".join(lines))
    write_atomically(curves / f"{run.name}.json", json.dumps(curve) + "\n")
    return statistics.mean(curve["score"])


def _read(run: LearningRun, curves: Path) -> Curve:
    return json.loads((curves / f"{run.name}.json").read_text())
