"""Several rewards with advantages of their own, constraints, judges and preferences in a run."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from several_processes import CERTAIN, assert_same_training, finished
from tiny_policy import tiny_config, write_models

from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.cli import main
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, NumericError
from tokencredit.masking import masked_sum
from tokencredit.policy.bounds import pessimism
from tokencredit.policy.objectives import OBJECTIVE_MIXES
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.experience import experience_of
from tokencredit.recipes.policy.objective_groups import PreferenceSettings
from tokencredit.recipes.policy.preferences import preference_vector, told
from tokencredit.recipes.policy.refusals import require_shared_evenly
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.source_settings import RewardSource

TERMINAL = {"credit.method": "terminal"}
GROUPS = {"algorithm.name": "rloo", "algorithm.samples_per_prompt": 2}
PAMA = {**GROUPS, "objectives.mix": "pama"}
LAGRANGIAN = {"constraints.method": "lagrangian", "constraints.thresholds": {"cost": 1.0}}
PESSIMISTIC = {"constraints.method": "pessimistic", "constraints.thresholds": {"cost": 1.0}}
BOTH = {"reward": 0.5, "cost": 3.0}
MU = {**GROUPS, "constraints.method": "at-least", "constraints.thresholds": BOTH}
XI = {**MU, "constraints.method": "equal"}
PREFERENCE = {"preference.names": ("reward", "cost"), **GROUPS}
JUDGED = {"judges.functions": ("judged_texts:even",), "judges.max_kl": 5.0, "kl.coef": 0.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), max_position_embeddings=128)


@pytest.fixture(autouse=True)
def functions(tmp_path_factory, monkeypatch):
    """Rewards and judges in Python, as a user has them in the working folder."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "judged_texts.py").write_text(
        "def length(prompts, responses):\n"
        "    return [float(len(one.split())) for one in responses]\n"
        "def even(prompts, responses):\n"
        "    return [len(one) % 2 == 0 for one in responses]\n"
        "def yes(prompts, responses):\n    return [True] * len(responses)\n"
        "def no(prompts, responses):\n    return [False] * len(responses)\n"
        "def silent(prompts, responses):\n    return []\n"
        "def unsure(prompts, responses):\n    return [0.5] * len(responses)\n"
        "def broken(prompts, responses):\n    return [float('nan')] * len(responses)\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "judged_texts", raising=False)


def two(models, cost="judged_texts:length", **of_cost):
    """A reward model and a cost that counts words."""
    return {
        "reward_model": None,
        "rewards": (
            RewardSource(str(models / "reward"), name="reward"),
            RewardSource(cost, name="cost", **of_cost),
        ),
    }


def config_of(models, output, **settings):
    known = {**two(models), **TERMINAL, "record.sample_every": 1, **settings}
    return tiny_config(models, output, **known)


def rows(folder):
    return read_jsonl(folder / "metrics.jsonl")


def weights(folder):
    return load_file(folder / "policy" / "model.safetensors")


def same_weights(first, second):
    return all(torch.equal(one, weights(second)[key]) for key, one in weights(first).items())


def experienced(models, output, raw=None, **settings):
    config = config_of(models, output, **settings)
    run, state = recipe.open_run(config, Accelerator(cpu=True), None)
    rollout = draw_responses(
        config, run.accelerator, run.models, run.prompts, 0, recipe.seeded(0, 0, 0)
    )
    found = experience_of(
        run.models,
        run.model,
        rollout,
        config,
        run.accelerator,
        kl_coef=state.kl_coef,
        moments={},
        references=recipe._references(run, rollout, 0),
        multipliers=raw or {},
    )
    return config, rollout, found


def test_a_multiplier_of_zero_is_plain_ppo_bit_for_bit(models, tmp_path):
    still = {**LAGRANGIAN, "constraints.rate": 0.0}
    train_policy(config_of(models, tmp_path / "constrained", **still))
    train_policy(tiny_config(models, tmp_path / "plain", **TERMINAL))
    assert same_weights(tmp_path / "constrained", tmp_path / "plain")
    for one, other in zip(rows(tmp_path / "constrained"), rows(tmp_path / "plain"), strict=True):
        assert one["score"] == other["score"]
        assert one["multiplier/cost"] == 0.0


def test_costs_are_taken_off_by_their_multiplier(models, tmp_path):
    _, _, found = experienced(models, tmp_path, raw={"cost": [0.25, 0.0]}, **LAGRANGIAN)
    expected = found.source_scores["reward"] - 0.25 * found.source_scores["cost"]
    sums = masked_sum(found.token_scores, found.batch.response_mask)
    torch.testing.assert_close(sums, expected)
    assert torch.equal(found.sequence_scores, found.source_scores["reward"])


def test_a_multiplier_follows_the_mean_of_responses(models, tmp_path):
    """λ ← max(0, λ + η (mean - θ)): of responses, and not of their tokens."""
    train_policy(config_of(models, tmp_path, steps=3, **LAGRANGIAN, constraints__rate=0.5))
    expected = 0.0
    for row in rows(tmp_path):
        assert row["multiplier/cost"] == pytest.approx(expected)
        assert row["excess/cost"] == pytest.approx(row["score/cost"] - 1.0)
        expected = max(0.0, expected + 0.5 * row["excess/cost"])
    assert expected > 0


def test_a_pessimistic_cost_is_the_published_one(models, tmp_path):
    _, _, found = experienced(models, tmp_path, **PESSIMISTIC)
    costs = found.source_scores["cost"]
    k = pessimism(0.05, [(1.0, 4), (1.0, 1000)])
    mean, deviation = costs.mean(), costs.std()
    changed = costs + k * (costs.square() - 2 * costs * mean) / (2 * deviation)
    sums = masked_sum(found.token_scores, found.batch.response_mask)
    torch.testing.assert_close(sums, found.source_scores["reward"] - changed)


def test_the_bound_drives_a_pessimistic_multiplier(models, tmp_path):
    train_policy(config_of(models, tmp_path, **PESSIMISTIC))
    first, second = rows(tmp_path)
    assert first["multiplier/cost"] == 1.0
    assert first["excess/cost"] > first["score/cost"] - 1.0
    raw = 0.01 * first["excess/cost"]
    assert second["multiplier/cost"] == pytest.approx(math.exp(raw))


@pytest.mark.parametrize("name", OBJECTIVE_MIXES)
def test_every_mix_trains_on_single_rewards(models, tmp_path, name):
    sources = two(models, cost=str(models / "held-out"))
    settings = {**GROUPS, **sources, "objectives.mix": name, "batch_size": 8}
    train_policy(config_of(models, tmp_path, **settings))
    learnt = [row["gradient_norm"] > 0 for row in rows(tmp_path)]
    assert any(learnt) if name == "pama" else all(learnt)  # no token may please both rewards
    assert {"score/reward", "score/cost"} <= set(rows(tmp_path)[0])


def test_pama_of_one_reward_is_the_positive_part(models, tmp_path):
    one = {"rewards": (), "reward_model": str(models / "reward"), **GROUPS}
    _, _, plain = experienced(models, tmp_path / "plain", **one)
    _, _, mixed = experienced(models, tmp_path / "pama", **{**one, **PAMA})
    assert torch.equal(mixed.advantages, plain.advantages.clamp(min=0))
    assert bool((plain.advantages < 0).any())


def test_max_min_of_one_reward_is_the_algorithm_alone(models, tmp_path):
    one = {"rewards": (), "reward_model": str(models / "reward"), **GROUPS}
    train_policy(config_of(models, tmp_path / "plain", **one))
    train_policy(config_of(models, tmp_path / "mixed", **one, objectives__mix="max-min"))
    assert same_weights(tmp_path / "plain", tmp_path / "mixed")


def test_normalised_objectives_pay_kl_by_itself(models, tmp_path):
    settings = {**GROUPS, "objectives.mix": "normalise-then-sum"}
    _, _, free = experienced(models, tmp_path / "free", **settings, kl__coef=0.0)
    _, _, priced = experienced(models, tmp_path / "priced", **settings, kl__coef=0.5)
    _, _, alone = experienced(
        models, tmp_path / "alone", **{**settings, "objectives.mix": "none"}, kl__coef=0.0
    )
    assert torch.equal(free.kl, priced.kl)
    torch.testing.assert_close(free.advantages, priced.advantages)  # KL is 0 before an update
    assert not torch.allclose(free.advantages, alone.advantages)


@pytest.mark.parametrize("raw", [-30.0, 0.0])
def test_multipliers_mix_advantages(models, tmp_path, raw):
    """With both at 0 it is N A_KL, which before the first update is nothing."""
    _, _, found = experienced(
        models, tmp_path, raw={"reward": [raw, 0.0], "cost": [raw, 0.0]}, **MU
    )
    if raw < 0:
        assert float(found.advantages.abs().max()) < 1e-6
    else:
        assert float(found.advantages.abs().max()) > 0.1


SETTINGS = {
    "lagrangian": {**LAGRANGIAN, "constraints.momentum": 0.5},
    "pessimistic": PESSIMISTIC,
    "mu": MU,
    "xi": XI,
    "pama": PAMA,
    "preference": PREFERENCE,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_equals_uninterrupted(models, tmp_path, name):
    settings = SETTINGS[name]
    train_policy(config_of(models, tmp_path / "whole", steps=3, **settings))
    train_policy(config_of(models, tmp_path / "parts", steps=1, **settings))
    train_policy(config_of(models, tmp_path / "parts", steps=3, **settings))
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert {key: value for key, value in one.items() if "second" not in key} == {
            key: value for key, value in other.items() if "second" not in key
        }


JUDGES = {"crpg": {"algorithm.epochs": 1}, "crraft": {}, "codpo": {}}


@pytest.mark.parametrize("name", JUDGES)
def test_every_update_of_judged_responses_trains_and_resumes(models, tmp_path, name):
    settings = {
        "reward_model": str(models / "reward"),
        "rewards": (),
        "algorithm.name": name,
        "algorithm.samples_per_prompt": 4,
        "batch_size": 8,
        "algorithm.minibatch_size": 4,
        "score.transform": "par",
        "references.per_prompt": 1,
        **JUDGED,
        **JUDGES[name],
    }
    train_policy(config_of(models, tmp_path / "whole", steps=2, **settings))
    train_policy(config_of(models, tmp_path / "parts", steps=1, **settings))
    train_policy(config_of(models, tmp_path / "parts", steps=2, **settings))
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert all(0 < row["passed_share"] < 1 for row in rows(tmp_path / "whole"))
    assert any(row["gradient_norm"] > 0 for row in rows(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["crraft", "codpo"])
def test_the_loss_of_chosen_responses_is_that_of_the_paper(models, tmp_path, name):
    """Before an update all log-ratios are 0, so that a pair costs log 2 and its likelihood."""
    settings = {
        "reward_model": str(models / "reward"),
        "rewards": (),
        "algorithm.name": name,
        "algorithm.samples_per_prompt": 4,
        "algorithm.epochs": 1,
        "batch_size": 12,
        "score.transform": "par",
        "references.per_prompt": 1,
        **JUDGED,
    }
    _, _, found = experienced(models, tmp_path / "seen", **settings)
    train_policy(config_of(models, tmp_path / "run", **settings, steps=1))
    weights_ = found.advantages.amax(-1).clamp(min=0)
    mask, chosen = found.batch.response_mask, weights_ > 0
    assert 0 < int(chosen.sum()) < 4
    sums, lengths = masked_sum(found.old.logprobs, mask)[chosen], mask.sum(-1)[chosen]
    if name == "codpo":
        expected = math.log(2) - (sums / lengths).mean()
        assert found.passed[chosen].all()
        assert int((found.advantages < 0).any(-1).sum()) == int(chosen.sum())
    else:
        expected = -(weights_[chosen] * sums).sum() / lengths.sum()
    assert rows(tmp_path / "run")[0]["policy_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["terminal", "prefix-difference"])
def test_a_response_that_fails_earns_nothing(models, tmp_path, method):
    """Dense or not: the sum is the factor times the probability, less that of the prompt."""
    settings = {
        "reward_model": str(models / "reward"),
        "rewards": (),
        "score.transform": "par",
        "references.per_prompt": 1,
        "algorithm.name": "crpg",
        "credit.method": method,
        **JUDGED,
    }
    _, _, free = experienced(models, tmp_path / "free", **settings, judges__functions=())
    _, _, found = experienced(models, tmp_path / "judged", **settings)
    mask = found.batch.response_mask
    whole, sums = (masked_sum(one.token_scores, mask) for one in (free, found))
    assert found.passed.any()
    assert not found.passed.all()
    torch.testing.assert_close(sums[found.passed], whole[found.passed])
    if method == "terminal":
        assert not sums[~found.passed].any()
    else:  # nothing of the response, and back what the prompt had
        assert bool((sums[~found.passed] < 0).all())


def test_judges_that_all_pass_for_any_distance_are_par(models, tmp_path):
    settings = {
        "reward_model": str(models / "reward"),
        "rewards": (),
        "score.transform": "par",
        "references.per_prompt": 1,
        "kl.coef": 0.0,
        "algorithm.name": "crpg",
    }
    train_policy(config_of(models, tmp_path / "par", **settings))
    judges = {"judges.functions": ("judged_texts:yes",)}
    train_policy(config_of(models, tmp_path / "judged", **settings, **judges))
    assert same_weights(tmp_path / "par", tmp_path / "judged")


def test_a_step_in_which_nothing_passes_is_no_update(models, tmp_path):
    settings = {
        "reward_model": str(models / "reward"),
        "rewards": (),
        "algorithm.name": "codpo",
        "algorithm.samples_per_prompt": 2,
        "judges.functions": ("judged_texts:no",),
    }
    train_policy(config_of(models, tmp_path, **settings))
    start = load_file(models / "policy" / "model.safetensors")
    assert all(torch.equal(one, start[key]) for key, one in weights(tmp_path).items())


def test_prompts_tell_the_weights_that_responses_are_paid_by(models, tmp_path):
    _, rollout, found = experienced(models, tmp_path, **PREFERENCE)
    vectors = rollout.preferences
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    expected = sum(vectors[:, index] * found.source_scores[name] for index, name in enumerate(BOTH))
    sums = masked_sum(found.token_scores, found.batch.response_mask)
    torch.testing.assert_close(sums, expected)
    plain = experienced(models, tmp_path / "plain", **GROUPS)[1]
    assert rollout.asked == plain.asked
    assert rollout.batch.prompt_ids.shape[1] > plain.batch.prompt_ids.shape[1]
    # The reward model reads what was asked, without the words.
    asked = replace(
        rollout.batch, prompt_ids=plain.batch.prompt_ids, prompt_mask=plain.batch.prompt_mask
    )
    run, _ = recipe.open_run(config_of(models, tmp_path / "again"), Accelerator(cpu=True), None)
    scores = run.models.rewards.sources[0].scorer(asked).sequence_scores
    torch.testing.assert_close(scores, found.source_scores["reward"])


def test_weights_stand_before_texts_and_chats():
    settings = PreferenceSettings(("help", "short"), text="Mind {vector}.")
    assert told("Why?", [0.866, -0.5], settings) == "Mind help*87 + short*-50.\n\nWhy?"
    chat = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "Why?"}]
    found = told(chat, [1.0, 0.0], settings)
    assert found == [chat[0], {"role": "user", "content": "Mind help*100 + short*0.\n\nWhy?"}]
    assert chat[1]["content"] == "Why?"


def test_vectors_lie_within_the_angle():
    rng = torch.Generator().manual_seed(0)
    found = torch.stack([preference_vector(3, 30.0, rng) for _ in range(200)])
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(200))
    assert float(found[:, 0].min()) >= math.cos(math.radians(30)) - 1e-6
    assert found[:, 1].min() < 0 < found[:, 1].max()


def test_from_the_command_line(models, tmp_path):
    (tmp_path / "run.yaml").write_text(
        json.dumps(
            {
                "policy": str(models / "policy"),
                "prompts": str(models / "prompts.jsonl"),
                "output": str(tmp_path / "run"),
                "rewards": [
                    {"model": str(models / "reward"), "name": "reward"},
                    {"model": "judged_texts:length", "name": "cost"},
                ],
                "credit": {"method": "terminal"},
                "constraints": {"method": "lagrangian", "thresholds": {"cost": 2.0}},
                "steps": 1,
                "batch_size": 2,
                "sampling": {"max_new_tokens": 4},
                "machine": {"device": "cpu"},
                "record": {"progress": False, "figure": False},
            }
        )
    )
    assert main(["train-policy", "--config", str(tmp_path / "run.yaml")]) == 0
    assert "excess/cost" in rows(tmp_path / "run")[0]


def test_two_processes_see_the_statistics_of_all(models, tmp_path):
    """Thresholds, bounds and deviations are those of the whole step, and so are the weights."""
    jobs, held = [], str(models / "held-out")
    sources = (
        {"model": str(models / "reward"), "name": "reward"},
        {"model": held, "name": "cost"},
    )
    # Of likeliest responses those to one prompt are the same, so that groups would say nothing.
    alone = {"algorithm.name": "reinforce", "algorithm.samples_per_prompt": 1}
    runs = {
        "pessimistic": {**PESSIMISTIC, **CERTAIN},
        "mix": {**CERTAIN, **alone, "objectives.mix": "max-min", "kl.coef": 0.1},
        "xi": {**CERTAIN, **XI, **alone, "constraints.start": 0.5},
    }
    for name, settings in runs.items():
        known = {**settings, **TERMINAL, "reward_model": None, "steps": 2}
        train_policy(tiny_config(models, tmp_path / name / "one", **known, rewards=sources))
        output = str(tmp_path / name / "two")
        job = {"models": str(models), "environment": {}, "output": output, **known}
        jobs.append({**job, "rewards": sources})
    finished(tmp_path, jobs)
    for name in runs:
        assert_same_training(tmp_path / name / "one", tmp_path / name / "two", 2)


PAR = ScoreSettings(transform="par")
REFUSED = [
    ({"constraints.method": "lagrangian"}, "expected both a method and thresholds"),
    ({"constraints.thresholds": {"cost": 1.0}}, "expected both a method and thresholds"),
    ({**LAGRANGIAN, "constraints.thresholds": {"kost": 1.0}}, "a threshold needs its reward"),
    ({**LAGRANGIAN, "constraints.thresholds": BOTH}, "all of them are costs"),
    ({**LAGRANGIAN, "constraints.thresholds": {"cost": math.nan}}, "threshold of 'cost' is nan"),
    ({**MU, "constraints.thresholds": {"cost": 1.0}}, "'reward' has no threshold"),
    ({**MU, "algorithm.name": "ppo"}, "one value head says the value of one reward"),
    ({**MU, "kl.target": 5.0}, "where multipliers weigh KL"),
    ({**PESSIMISTIC, "constraints.failure_probability": 1.0}, "failure_probability is 1.0"),
    ({**PESSIMISTIC, "constraints.failure_probability": 0.0}, "failure_probability is 0.0"),
    ({**PESSIMISTIC, "batch_size": 1}, "whose costs have a deviation"),
    ({**PESSIMISTIC, "constraints.start": 0.0}, "expected more than 0"),
    ({**LAGRANGIAN, "constraints.method": "lagranian"}, "did you mean 'lagrangian'"),
    ({**LAGRANGIAN, "constraints.momentum": 1.0}, r"constraints.momentum is 1\.0"),
    ({**LAGRANGIAN, "constraints.rate": -1.0}, r"constraints.rate is -1\.0"),
    ({**LAGRANGIAN, "combine.method": "worst-case"}, "keeps rewards apart"),
    ({**LAGRANGIAN, "algorithm.name": "remax"}, "the greedy response would be paid"),
    ({**LAGRANGIAN, **PAMA}, "both say what single rewards are worth"),
    ({"objectives.mix": "pama"}, "one value head says the value of one reward"),
    ({**PAMA, "algorithm.name": "likelihood"}, "it has no advantages to mix"),
    ({**PAMA, "algorithm.whiten_advantages": True}, "whitening would push tokens down"),
    ({**PAMA, "sampling.truncated": "penalty"}, "a penalty belongs to no single reward"),
    ({**PAMA, "objectives.mix": "pame"}, "did you mean 'pama'"),
    (
        {"algorithm.name": "reinforce", "objectives.mix": "normalise-then-sum"},
        "within the responses to a prompt",
    ),
    (
        {**GROUPS, "algorithm.name": "grpo", "objectives.mix": "sum-then-normalise"},
        "does so before",
    ),
    ({"preference.names": ("reward",)}, "expected the names of all rewards"),
    ({**PREFERENCE, "preference.degrees": 0.0}, "expected an angle above 0"),
    ({**PREFERENCE, "preference.text": "so"}, "expected {vector} in it"),
    ({**PREFERENCE, "data.tokens": [1, 2]}, "expected whole prompts"),
    ({**JUDGED, "algorithm.name": "crpg"}, "failing pays; expected 'par'"),
    ({**JUDGED, **LAGRANGIAN}, "failing pays; expected judges without"),
    ({"judges.functions": ("judge",)}, "expected `module:function` of each judge"),
    ({"judges.max_kl": 0.0}, r"judges.max_kl is 0\.0; expected more than 0"),
    ({"algorithm.name": "codpo"}, "compares responses to one prompt"),
    ({**GROUPS, "algorithm.name": "codpo", "selection.keep": "best"}, "chooses a pair itself"),
    ({**GROUPS, "algorithm.name": "codpo", "algorithm.micro_batch_size": 1}, "an even number"),
    (
        {**GROUPS, "algorithm.name": "crraft", "sampling.truncated": "penalty"},
        "goes by scores of whole responses",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_contradictions_are_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(models, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_pair_is_not_shared_by_processes(models, tmp_path):
    settings = {**GROUPS, "algorithm.name": "codpo", "algorithm.minibatch_size": 2}
    config = config_of(models, tmp_path, **settings)
    require_shared_evenly(config, 1)
    with pytest.raises(ConfigError, match="expected whole pairs on each process: a multiple of 4"):
        require_shared_evenly(config, 2)


def test_environments_reward_utterances_and_nothing_else(models, tmp_path):
    talking = {"reward_model": None, "rewards": (), "dialogue.environment": "my:environment"}
    with pytest.raises(ConfigError, match="with judges; expected single responses"):
        config_of(models, tmp_path, **talking, **JUDGED)
    settings = {"algorithm.name": "reinforce", "objectives.mix": "max-min"}
    with pytest.raises(ConfigError, match=r"with objectives\.mix; expected single responses"):
        config_of(models, tmp_path, **talking, **settings)


def test_a_weight_of_a_cost_and_a_transform_with_preferences_are_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="its multiplier is its weight"):
        config_of(models, tmp_path, **LAGRANGIAN, **two(models, weight=2.0))
    score = ScoreSettings(normalization="running")
    with pytest.raises(ConfigError, match="whose bound is one of costs as they are"):
        config_of(models, tmp_path, **PESSIMISTIC, **two(models, score=score))
    with pytest.raises(ConfigError, match="drawn for every vector"):
        config_of(models, tmp_path, **PREFERENCE, kl__coef=0.0, **two(models, score=PAR))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("silent", "the judge judged_texts:silent gives 0 scores for 1 responses"),
        ("unsure", r"the judge judged_texts:unsure gives 0\.5; expected True or False"),
    ],
)
def test_a_judge_that_does_not_answer(models, tmp_path, name, message):
    settings = {**GROUPS, "algorithm.name": "codpo", "judges.functions": (f"judged_texts:{name}",)}
    with pytest.raises(DataError, match=message):
        train_policy(config_of(models, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "policy").exists()


def test_a_broken_reward_is_named(models, tmp_path):
    with pytest.raises((DataError, NumericError), match="judged_texts:broken"):
        train_policy(config_of(models, tmp_path, **PAMA, **two(models, cost="judged_texts:broken")))


def test_single_rewards_cannot_be_weighed_where_a_caller_pays_the_tokens(models, tmp_path):
    with pytest.raises(ConfigError, match="a token scorer of the caller pays all rewards"):
        train_policy(
            config_of(models, tmp_path, **PAMA),
            token_scorer=lambda batch: batch.response_mask.float(),
        )


def test_prompts_need_room_for_their_weights(models, tmp_path):
    with pytest.raises(DataError, match="reads at most 128"):
        train_policy(
            config_of(models, tmp_path, **PREFERENCE, preference__text="long " * 200 + "{vector}")
        )


def test_a_credit_of_its_own_stays(models, tmp_path):
    sources = two(models)["rewards"]
    own = RewardSource(str(models / "reward"), name="reward", credit=CreditSettings("uniform"))
    config = config_of(models, tmp_path, **PAMA, rewards=(own, sources[1]))
    assert [one.credit.method for one in config.sources] == ["uniform", "terminal"]
