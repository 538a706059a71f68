"""Every method gets the same grid and seeds; what is done is not done again."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_policy import write_models

from tokencredit.errors import ConfigError, DataError, RunFolderError
from tokencredit.recipes.policy.compare_learning import (
    CompareLearningConfig,
    LearningRun,
    best_points,
    compare_learning,
    tuning_runs,
)
from tokencredit.recipes.policy.learning_report import (
    COLUMNS,
    KL_COLUMNS,
    learning_rows,
    rows_at_equal_kl,
)
from tokencredit.recipes.run.run_folder import read_jsonl

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("compared"))


def settings_file(models: Path, folder: Path, **changes) -> str:
    settings = {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "held_out_reward_model": str(models / "held-out"),
        "prompts": str(models / "prompts.jsonl"),
        "steps": 2,
        "batch_size": 2,
        "algorithm.epochs": 1,
        "sampling.max_new_tokens": 4,
        "machine.device": "cpu",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    path = folder / "ppo.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def comparison(models: Path, folder: Path, **changes) -> CompareLearningConfig:
    settings = {
        "settings": settings_file(models, folder),
        "output": str(folder / "out"),
        "methods": {
            "terminal": {"credit.method": "terminal"},
            "even": {"credit.method": "uniform"},
        },
        "learning_rates": (1e-3,),
        "gae_lambdas": (0.9, 1.0),
        "tuning_seeds": 1,
        "seeds": 2,
        "progress": False,
        **changes,
    }
    return CompareLearningConfig(**settings)


def test_runs_the_grid_then_the_seeds_and_reports_every_method(models, tmp_path):
    report = compare_learning(comparison(models, tmp_path))
    names = {file.stem for file in (tmp_path / "out" / "curves").glob("*.json")}
    assert len(names) == 2 * (2 + 1)
    assert {"terminal_lr0.001_lam0.9_seed0", "even_lr0.001_lam1_seed0"} <= names
    rows = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert [row["method"] for row in rows] == ["terminal", "even"]
    assert all(row["seeds"] == "2" and row["held-out, last 20"] != "-" for row in rows)
    assert report.read_text().count("data:image/png") == 3  # the held-out score too
    assert (tmp_path / "out" / "learning.md").read_text().startswith("| method | seeds |")
    samples = read_jsonl(tmp_path / "out" / "samples" / "even_lr0.001_lam1_seed0.jsonl")
    assert [row["step"] for row in samples] == [0, 0, 1, 1]
    assert all(len(row["tokens"]) == len(row["token_scores"]) for row in samples)


def test_a_second_call_runs_nothing_and_a_new_method_only_itself(models, tmp_path):
    config = comparison(models, tmp_path, gae_lambdas=(0.9,), seeds=1)
    compare_learning(config)
    curves = tmp_path / "out" / "curves"
    marked = curves / "even_lr0.001_lam0.9_seed0.json"
    curve = json.loads(marked.read_text())
    marked.write_text(json.dumps({**curve, "score": [50.0, 50.0]}))
    methods = {**config.methods, "attention": {"credit.method": "attention"}}
    compare_learning(comparison(models, tmp_path, gae_lambdas=(0.9,), seeds=1, methods=methods))
    rows = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert {row["method"]: row["mean"] for row in rows}["even"] == "50.00"
    assert len(list(curves.iterdir())) == 3


def test_true_reward_of_the_built_in_task_is_a_curve(models, tmp_path):
    compare_learning(
        comparison(models, tmp_path, gae_lambdas=(0.9,), seeds=1, judged_by="true_reward")
    )
    curve = json.loads((tmp_path / "out" / "curves" / "even_lr0.001_lam0.9_seed0.json").read_text())
    assert len(curve["true_reward"]) == len(curve["score"]) == 2


def test_algorithms_are_compared_and_those_without_a_critic_have_no_gae_lambda(models, tmp_path):
    methods = {
        "ppo": {"credit.method": "terminal"},
        "rloo": {"algorithm": {"name": "rloo", "samples_per_prompt": 2}},
    }
    compare_learning(comparison(models, tmp_path, methods=methods, seeds=1))
    names = {file.stem for file in (tmp_path / "out" / "curves").glob("*.json")}
    lambdas = {"ppo_lr0.001_lam0.9_seed0", "ppo_lr0.001_lam1_seed0"}
    assert names == {*lambdas, "rloo_lr0.001_seed0"}
    rows = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert [row["gae_lambda"] == "-" for row in rows] == [False, True]


def test_a_method_that_cannot_be_is_named_before_the_first_run(models, tmp_path):
    config = comparison(models, tmp_path, methods={"alone": {"algorithm.name": "rloo"}})
    with pytest.raises(ConfigError, match=r"method 'alone': .*samples_per_prompt 1"):
        compare_learning(config)
    assert not (tmp_path / "out").exists()


def test_the_best_point_is_that_of_the_best_mean_over_tuning_seeds(tmp_path):
    scores = {(0.1, 0.9, 0): 1.0, (0.1, 0.9, 1): 5.0, (0.2, 0.9, 0): 4.0, (0.2, 0.9, 1): 1.0}
    runs = []
    for (rate, lam, seed), score in scores.items():
        run = LearningRun("a", rate, lam, (), seed)
        (tmp_path / f"{run.name}.json").write_text(json.dumps({"score": [score - 1, score + 1]}))
        runs.append(run)
    assert best_points(runs, tmp_path, "score") == {"a": (0.1, 0.9, ())}


def test_rows_say_when_the_best_of_terminal_is_reached():
    def curve(values: list[float]) -> dict[str, list[float]]:
        return {"score": values, "kl": [1.0] * len(values)}

    slow = [curve([0.0] * 10 + [1.0] * 10)]
    fast = [curve([1.0] * 20)]
    never = [curve([0.5] * 20)]
    curves = {"terminal": slow, "fast": fast, "never": never}
    rows = learning_rows(curves, dict.fromkeys(curves, (1e-3, 0.9, ())), "score")
    steps = [dict(zip(COLUMNS, row, strict=True))["terminal's best at step"] for row in rows]
    shares = [row[-1] for row in rows]
    assert steps == ["15", "5", "not reached"]
    assert shares == ["1.00", "0.33", "-"]


def test_a_grid_of_its_own_is_tuned_for_one_method_alone(models, tmp_path):
    grids = {"even": {"sampling.temperature": [0.1, 3.0]}}
    changes = {"gae_lambdas": (0.9,), "seeds": 1, "tuned_by": "held_out_score"}
    compare_learning(comparison(models, tmp_path, grids=grids, **changes))
    curves = tmp_path / "out" / "curves"
    own = {value: f"even_lr0.001_lam0.9_sampling.temperature{value}_seed0" for value in (0.1, 3.0)}
    assert {file.stem for file in curves.iterdir()} == {
        "terminal_lr0.001_lam0.9_seed0",
        *own.values(),
    }
    scores = {}
    for value, name in own.items():
        curve = json.loads((curves / f"{name}.json").read_text())
        scores[value] = sum(curve["held_out_score"])
    assert len(set(scores.values())) == 2
    rows = json.loads((tmp_path / "out" / "at-equal-kl.json").read_text())
    best = max(scores, key=scores.__getitem__)
    assert [row["own settings"] for row in rows] == ["-", f"sampling.temperature {best}"]


def test_a_method_may_have_several_rewards(models, tmp_path):
    rewards = [
        {"model": str(models / "reward"), "name": "first", "score": {"clip": 2.0}},
        {"model": str(models / "held-out"), "name": "second", "credit": {"method": "uniform"}},
    ]
    methods = {"both": {"reward_model": None, "rewards": rewards}}
    compare_learning(comparison(models, tmp_path, methods=methods, gae_lambdas=(0.9,), seeds=1))
    kept = (tmp_path / "out" / "samples" / "both_lr0.001_lam0.9_seed0.jsonl").read_text()
    assert len(kept.splitlines()) == 4
    curve = json.loads((tmp_path / "out" / "curves" / "both_lr0.001_lam0.9_seed0.json").read_text())
    both = zip(curve["score/first"], curve["score/second"], strict=True)
    assert [sum(one) for one in both] == pytest.approx(curve["score"], abs=2e-4)
    wrong = {"both": {"reward_model": None, "rewards": [{"model": "m", "wieght": 2.0}]}}
    with pytest.raises(ConfigError, match=r"method 'both': there is no setting 'wieght'"):
        compare_learning(comparison(models, tmp_path, methods=wrong, output=str(tmp_path / "new")))


@pytest.mark.parametrize(
    "path",
    sorted(path for path in ROOT.glob("runs/*/*.yaml") if not path.name.endswith("ppo.yaml")),
)
def test_comparisons_of_this_project_have_points_that_can_be(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = yaml.safe_load(path.read_text())
    lists = ("learning_rates", "gae_lambdas")
    settings |= {name: tuple(settings[name]) for name in lists if name in settings}
    runs = tuning_runs(CompareLearningConfig(**settings))
    assert len({run.name for run in runs}) == len(runs) > 1


def test_every_method_is_run_at_every_target_of_the_kl(models, tmp_path, monkeypatch):
    targets = {}

    def trained(run, changes, shared, curves, judged_by):
        targets[run.method] = changes["kl.target"]
        (curves / f"{run.name}.json").write_text(json.dumps({"score": [0.0], "kl": [1.0]}))
        return 0.0

    monkeypatch.setattr("tokencredit.recipes.policy.compare_learning.train_one", trained)
    compare_learning(comparison(models, tmp_path, kl_targets=(2.0, 8.0), seeds=1))
    names = {"terminal, KL 2": 2.0, "terminal, KL 8": 8.0, "even, KL 2": 2.0, "even, KL 8": 8.0}
    assert targets == names
    rows = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert [row["method"] for row in rows] == list(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grids": {"none": {"kl.coef": [1.0]}}}, "grids names none; expected names of methods"),
        ({"grids": {"even": {"kl.coef": []}}}, "no value for even: kl.coef"),
        ({"grids": {"even": {"kl.price": [1.0]}}}, "method 'even': there is no setting 'kl.price'"),
    ],
)
def test_grids_that_cannot_be_are_named_before_the_first_run(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        compare_learning(comparison(models, tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_tuning_by_a_held_out_model_needs_one(models, tmp_path):
    settings = settings_file(models, tmp_path, held_out_reward_model=None)
    (tmp_path / "other").mkdir()
    config = comparison(models, tmp_path / "other", settings=settings, tuned_by="held_out_score")
    with pytest.raises(ConfigError, match="names no held_out_reward_model"):
        compare_learning(config)


def test_rows_at_equal_kl_say_how_many_seeds_got_there():
    kl = [0.0] * 5 + [20.0] * 10
    seeds = [
        {"true_reward": [0.0] * 5 + [8.0] * 5 + [2.0] * 5, "kl": kl},
        {"true_reward": [0.0] * 15, "kl": [1.0] * 15},
    ]
    points = {"a": (1e-3, 0.9, (("kl.coef", 0.1),))}
    [row] = rows_at_equal_kl({"a": seeds}, points, "true_reward")
    cells = dict(zip(KL_COLUMNS, row, strict=True))
    # Means of five neighbours: after one step at 20 the KL is 4, after two 8.
    assert cells["at KL 5"] == "2.00 (1 of 2)"
    assert cells["at KL 40"] == "-"
    assert cells["highest"] == "4.00 ± 5.66"
    assert cells["fall after it"] == "3.00 ± 4.24"
    assert cells["own settings"] == "kl.coef 0.1"


def test_curves_of_other_settings_are_not_mixed_in(models, tmp_path):
    config = comparison(models, tmp_path, gae_lambdas=(0.9,), seeds=1)
    compare_learning(config)
    settings_file(models, tmp_path, sampling__max_new_tokens=3)
    with pytest.raises(RunFolderError, match="other settings"):
        compare_learning(config)


def test_a_missing_settings_file_is_named(tmp_path):
    config = CompareLearningConfig(settings=str(tmp_path / "no.yaml"), output=str(tmp_path / "o"))
    with pytest.raises(DataError, match=r"no\.yaml"):
        compare_learning(config)
    assert not (tmp_path / "o").exists()


def test_a_misspelt_setting_of_a_method_is_named(models, tmp_path):
    config = comparison(models, tmp_path, methods={"a": {"credits.method": "uniform"}})
    with pytest.raises(
        ConfigError,
        match=r"method 'a': there is no setting 'credits\.method'.*Did you mean 'credit\.method'",
    ):
        compare_learning(config)


def test_settings_that_the_comparison_chooses_may_not_be_set(models, tmp_path):
    config = comparison(models, tmp_path)
    settings_file(models, tmp_path, seed=3, optimizer__learning_rate=1e-3)
    with pytest.raises(ConfigError, match=r"sets optimizer\.learning_rate, seed"):
        compare_learning(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seeds": 0}, "seeds is 0"), ({"learning_rates": ()}, "at least one of each")],
)
def test_sizes_are_positive(changes, message):
    with pytest.raises(ConfigError, match=message):
        CompareLearningConfig(settings="s", output="o", **changes)


@pytest.mark.parametrize("name", ["../away", "/away", "a/b", "a\x00"])
def test_names_of_methods_do_not_lead_out_of_the_folder(name):
    with pytest.raises(ConfigError, match="without slashes"):
        CompareLearningConfig("settings.yaml", output="out", methods={name: {}})
