"""Scores seen from responses of the reference: drawn once, kept in the run folder, read again."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from several_processes import CERTAIN, assert_same_training, finished
from tiny_policy import by_command, tiny_config, write_models

from tokencredit.aggregation.references import (
    log_win_probabilities,
    reference_quantiles,
    win_probabilities,
)
from tokencredit.aggregation.transforms import RunningMoments
from tokencredit.errors import ConfigError, DataError, TokenCreditWarning
from tokencredit.recipes.policy import opened_run
from tokencredit.recipes.policy import references as module
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.references import Reference, _drawn, _drawn_at_once
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.evidence import Responses

CHEAP = {"kl.coef": 0.001, "record.sample_every": 1}
PAR = {"score.transform": "par", **CHEAP}
LSC = {"score.transform": "lsc", **CHEAP}
TIMES = ("seconds_rollout", "seconds_score", "seconds_update", "tokens_per_second")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def references(folder) -> list[dict]:
    return read_jsonl(folder / "references.jsonl")


def transformed(name: str, score: float, others: list[float]) -> float:
    scores, known = torch.tensor([score]), torch.tensor([others])
    if name == "par":
        return float(win_probabilities(scores, known))
    return float(log_win_probabilities(scores, reference_quantiles(known)))


@pytest.mark.parametrize("name", ["par", "lsc"])
def test_tokens_are_paid_for_the_transformed_score(models, tmp_path, name):
    settings = {**CHEAP, "score.transform": name, "credit.method": "terminal"}
    train_policy(tiny_config(models, tmp_path, steps=1, record__sample_count=4, **settings))
    samples, known = read_jsonl(tmp_path / "samples.jsonl"), references(tmp_path)
    assert len(samples) == len(known) == 4
    for sample, row in zip(samples, known, strict=True):
        expected = transformed(name, sample["score"], row["scores"]["reward"])
        assert sum(sample["token_scores"]) == pytest.approx(expected, abs=1e-4)
        assert len(row["lengths"]) == 4
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["score"] == pytest.approx(sum(one["score"] for one in samples) / 4, abs=1e-5)


def test_dense_par_sums_to_the_probability_less_that_of_the_prompt(models, tmp_path):
    config = tiny_config(models, tmp_path, steps=1, **PAR)
    run, _ = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    rollout = draw_responses(
        config, run.accelerator, run.models, run.prompts, 0, recipe.seeded(0, 0, 0)
    )
    batch, known = rollout.batch, recipe._references(run, rollout, 0)
    paid = run.models.rewards.paid(Responses(batch), references=known)
    prefix_scores = run.models.rewards.sources[0].scorer(batch).prefix_scores
    wins = win_probabilities(prefix_scores, known["reward"].scores)
    ends = wins.gather(1, batch.lengths[:, None]).squeeze(1)
    torch.testing.assert_close(paid.token_scores.sum(-1), ends - wins[:, 0])
    assert paid.token_scores.abs().sum(-1).min() > 0


def test_the_references_own_response_is_paid_one_half(models, tmp_path):
    """The likeliest response is that of the policy and, before the first update, the reference."""
    settings = {**CERTAIN, **PAR, "credit.method": "terminal", "references.per_prompt": 1}
    train_policy(tiny_config(models, tmp_path, steps=1, **settings))
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["token_score_sum"] == pytest.approx(0.5, abs=1e-5)


def assert_same_run(first, second):
    weights = [load_file(run / "policy" / "model.safetensors") for run in (first, second)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    for file in ("samples.jsonl", "references.jsonl"):
        assert read_jsonl(first / file) == read_jsonl(second / file)
    pairs = (read_jsonl(run / "metrics.jsonl") for run in (first, second))
    for one, other in zip(*pairs, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {
            k: v for k, v in other.items() if k not in TIMES
        }


RESUMED = {
    "par": PAR,
    "lsc of cut prompts": {**LSC, "data.tokens": [1, 3]},
    "par on the scale of the reference": {
        **PAR,
        "score.normalization": "reference",
        "references.prompts": 2,
    },
    "scale": {"score.normalization": "scale"},
    "par with adapters": {**PAR, "lora.rank": 2},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted(models, tmp_path, name):
    settings, whole, halves = RESUMED[name], tmp_path / "whole", tmp_path / "halves"
    train_policy(tiny_config(models, whole, steps=4, **settings))
    train_policy(tiny_config(models, halves, steps=2, **settings))
    # As if it had been killed after its third rollout: what that one drew is drawn again.
    left = {"step": 2, "prompt": "another", "lengths": [1] * 4, "scores": {"reward": [0.0] * 4}}
    if (halves / "references.jsonl").exists():
        with (halves / "references.jsonl").open("a") as file:
            file.write(json.dumps(left) + "\n")
    train_policy(tiny_config(models, halves, steps=4, **settings))
    if "lora.rank" not in settings:
        assert_same_run(whole, halves)
    assert read_jsonl(whole / "samples.jsonl") == read_jsonl(halves / "samples.jsonl")
    assert references(whole) == references(halves)


def test_each_prompt_is_answered_once(models, tmp_path, monkeypatch):
    drawn = []

    def counted(config, accelerator, models, prompts, rng):
        drawn.append(len(prompts))
        return _drawn_at_once(config, accelerator, models, prompts, rng)

    monkeypatch.setattr(module, "_drawn_at_once", counted)
    train_policy(tiny_config(models, tmp_path, steps=6, **PAR))  # six prompts, four a step
    assert sum(drawn) == 6 * 4
    assert max(drawn) <= 4  # as many at a time as a rollout has
    assert len({row["prompt"] for row in references(tmp_path)}) == 6


def test_what_is_drawn_of_the_reference_leaves_the_policys_draws_alone(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "par", steps=1, **PAR))
    train_policy(tiny_config(models, tmp_path / "plain", steps=1, **CHEAP))
    with_par, plain = (read_jsonl(tmp_path / n / "samples.jsonl") for n in ("par", "plain"))
    assert [row["response"] for row in with_par] == [row["response"] for row in plain]
    assert not (tmp_path / "plain" / "references.jsonl").exists()


def test_the_scale_of_the_reference_is_that_of_its_first_prompts_and_stays(models, tmp_path):
    settings = {**CHEAP, "score.normalization": "reference", "credit.method": "terminal"}
    settings |= {"score.length_price": 0.1, "score.ceiling": 0.5, "references.prompts": 3}
    train_policy(tiny_config(models, tmp_path, steps=2, record__sample_count=4, **settings))
    rows = references(tmp_path)
    assert len(rows) == 3
    counted = [
        min(score, 0.5) - 0.1 * length
        for row in rows
        for score, length in zip(row["scores"]["reward"], row["lengths"], strict=True)
    ]
    moments = RunningMoments().updated(torch.tensor(counted))
    for sample in read_jsonl(tmp_path / "samples.jsonl"):
        own = min(sample["score"], 0.5) - 0.1 * len(sample["tokens"])
        expected = (own - moments.mean) / moments.std
        assert sum(sample["token_scores"]) == pytest.approx(expected, abs=1e-4)
    for step in (1, 2):
        state = json.loads((tmp_path / f"checkpoints/step-00000{step}/state.json").read_text())
        assert state["moments"]["reward"] == pytest.approx(vars(moments), rel=1e-4)


def test_sources_are_compared_each_with_its_own(models, tmp_path):
    names, lsc = ("reward", "held-out"), {"transform": "lsc"}
    rewards = [{"model": str(models / name), "score": lsc} for name in names]
    arguments = {
        "reward_model": None,
        "rewards": json.dumps(rewards),
        "credit.method": "terminal",
        "sampling.max_new_tokens": 5,
    }
    by_command(models, tmp_path / "run", **arguments)
    samples, known = read_jsonl(tmp_path / "run/samples.jsonl"), references(tmp_path / "run")
    for sample, row in zip(samples, known, strict=True):
        expected = sum(
            transformed("lsc", sample["scores"][name], row["scores"][name]) for name in names
        )
        assert sum(sample["token_scores"]) == pytest.approx(expected, abs=1e-4)
        assert sum(sample["token_scores"]) < 0


@pytest.mark.parametrize("name", ["remax", "rloo", "grpo"])
def test_greedy_responses_and_groups_are_compared_with_the_same(models, tmp_path, name):
    settings = {"algorithm.name": name, "algorithm.samples_per_prompt": 2, **CERTAIN, **PAR}
    settings |= {"credit.method": "terminal", "kl.coef": 0.0}
    train_policy(tiny_config(models, tmp_path, steps=1, **settings))
    assert len(references(tmp_path)) == 2
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["policy_loss"] == pytest.approx(0.0, abs=1e-6)  # every response is the greedy one


def test_a_prompt_without_a_scored_reference_is_left_out(models, tmp_path, monkeypatch):
    def first_unscored(*args, **options):
        first, *others = _drawn(*args, **options)
        return [Reference(first.lengths, {"reward": [None] * 4}), *others]

    monkeypatch.setattr(module, "_drawn", first_unscored)
    with pytest.warns(TokenCreditWarning, match="no response of the reference to its prompt"):
        train_policy(tiny_config(models, tmp_path, steps=1, **PAR))
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["unscored_share"] == 0.25
    assert read_jsonl(tmp_path / "samples.jsonl")[0]["score"] is None
    assert all(math.isfinite(value) for value in row.values())


def test_two_processes_compare_as_one_does(models, tmp_path):
    settings = {**CERTAIN, **PAR, "score.normalization": "reference"}
    train_policy(tiny_config(models, tmp_path / "one", steps=2, **settings))
    job = {"models": str(models), "environment": {}, "steps": 2, **settings}
    finished(tmp_path, [{**job, "output": str(tmp_path / "two")}])
    assert_same_training(tmp_path / "one", tmp_path / "two", 2)
    one, two = (
        {row["prompt"]: row for row in references(tmp_path / name)} for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert two[key]["scores"]["reward"] == pytest.approx(row["scores"]["reward"], abs=1e-5)


def test_prices_of_raw_scores_warn(models, tmp_path):
    with pytest.warns(TokenCreditWarning, match=r"kl\.coef is 0\.05 .* prices for raw scores"):
        tiny_config(models, tmp_path, score__transform="par")
    tiny_config(models, tmp_path, score__transform="par", kl__coef=0.01)
    tiny_config(models, tmp_path, score__transform="par", kl__target=5.0)
    tiny_config(models, tmp_path, score__transform="lsc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score.transform": "lsc", "references.per_prompt": 1}, r"per_prompt is 1 .*at least 2"),
        ({"references.per_prompt": 0}, r"references\.per_prompt is 0"),
        ({"references.prompts": 0}, r"references\.prompts is 0"),
        ({"score.transform": "sigmoid"}, r"score\.transform is 'sigmoid'; expected one of"),
        ({**PAR, "credit.method": "shapley"}, "expected no transform of the score"),
    ],
)
def test_what_cannot_be_compared_is_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_policy(tiny_config(models, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_reference_that_is_never_scored_has_no_scale(models, tmp_path, monkeypatch):
    def all_unscored(*args, **options):
        drawn = _drawn(*args, **options)
        return [Reference(one.lengths, {"reward": [None] * 4}) for one in drawn]

    monkeypatch.setattr(module, "_drawn", all_unscored)
    with pytest.raises(DataError, match="can score no response of the reference to the first 6"):
        train_policy(tiny_config(models, tmp_path, score__normalization="reference"))
