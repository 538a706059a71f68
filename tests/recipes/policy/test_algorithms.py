"""Every algorithm trains; its advantages are those of its function; groups stay whole."""

import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_policy import by_command, tiny_config, write_models

from tokencredit.aggregation.transforms import RunningMoments
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.masking import masked_sum
from tokencredit.policy import dense_estimators, estimators
from tokencredit.policy.methods import ALGORITHMS, Algorithm
from tokencredit.recipes.policy.experience import experience_of
from tokencredit.recipes.policy.models import loaded_models
from tokencredit.recipes.policy.prompts import seeded, tokenized_prompts
from tokencredit.recipes.policy.refusals import require_shared_evenly
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl

CRITIC_FREE = sorted(name for name, row in ALGORITHMS.items() if row.needs != "critic")
OF_VALUES = {"value_loss", "explained_variance"}
FUNCTIONS = {
    "reinforce": lambda r, m, g: estimators.reinforce_advantages(r, m),
    "reinforce++": lambda r, m, g: estimators.reinforce_plus_plus_advantages(r, m),
    "rloo": estimators.rloo_advantages,
    "grpo": estimators.grpo_advantages,
    "leave-one-out-to-go": dense_estimators.leave_one_out_to_go_advantages,
    "group-mean-to-go": dense_estimators.group_mean_to_go_advantages,
    "index-baseline-to-go": dense_estimators.index_baseline_to_go_advantages,
    "index-centred": dense_estimators.index_centred_advantages,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def by(name: str, samples: int = 2, **changes) -> dict:
    return {"algorithm.name": name, "algorithm.samples_per_prompt": samples, **changes}


def first_rollout(models: Path, output: Path, **settings):
    """The models of a run, its first rollout, and what the updates get of it."""
    config = tiny_config(models, output, **settings)
    parts = loaded_models(config, None, torch.device("cpu"))
    accelerator = Accelerator(cpu=True)
    prompts = tokenized_prompts(config, parts)
    rollout = draw_responses(config, accelerator, parts, prompts, 0, seeded(config.seed, 0, 0))
    experience = experience_of(
        parts, parts.actor_critic, rollout, config, accelerator, kl_coef=0.05, moments={}
    )
    return parts, rollout, experience


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains(models, tmp_path, name):
    policy = train_policy(tiny_config(models, tmp_path, **by(name)))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["gradient_norm"] > 0 for row in rows)
    trained, start = (load_file(p / "model.safetensors") for p in (policy, models / "policy"))
    assert any(not torch.equal(value, start[key]) for key, value in trained.items())


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_no_critic_is_built_trained_stored_or_reported(models, tmp_path, name):
    config = tiny_config(models, tmp_path, steps=1, **by(name))
    parts = loaded_models(config, None, torch.device("cpu"))
    assert {key.split(".")[0] for key in parts.actor_critic.state_dict()} == {"policy"}
    train_policy(config)
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    kept = {path.name for path in checkpoint.iterdir()} - {"target.safetensors"}
    assert kept == {"policy", "optimizer.safetensors", "state.json", "checksums.json"}
    moved = load_file(checkpoint / "optimizer.safetensors")
    assert {key.split(".")[0] for key in moved} == {"policy"}
    assert not OF_VALUES & set(read_jsonl(tmp_path / "metrics.jsonl")[0])


def test_the_critic_of_ppo_is_reported(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1))
    assert set(read_jsonl(tmp_path / "metrics.jsonl")[0]) >= OF_VALUES


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_advantages_are_those_of_the_function(models, tmp_path, name):
    _, rollout, found = first_rollout(models, tmp_path, **by(name))
    mask = found.batch.response_mask
    groups = torch.tensor([0, 0, 1, 1])
    assert rollout.group_ids.tolist() == groups.tolist()
    expected = FUNCTIONS[name](found.token_rewards, mask, groups)
    torch.testing.assert_close(found.advantages, expected)
    assert found.advantages.abs().max() > 0
    assert found.returns is None


@pytest.mark.parametrize("settings", [{}, {"score.normalization": "running"}, {"score.clip": 0.1}])
def test_remax_takes_the_score_of_the_greedy_response_as_its_baseline(models, tmp_path, settings):
    parts, rollout, found = first_rollout(
        models, tmp_path, **by("remax", credit__method="terminal", **settings)
    )
    raw = parts.rewards.sources[0].scorer(rollout.greedy).sequence_scores
    if "score.normalization" in settings:
        seen = RunningMoments().updated(found.sequence_scores)
        raw = (raw - seen.mean) / seen.std
    if "score.clip" in settings:
        raw = raw.clamp(-0.1, 0.1)
    expected = estimators.remax_advantages(
        found.token_rewards, found.batch.response_mask, raw.repeat_interleave(2)
    )
    torch.testing.assert_close(found.advantages, expected)


def test_the_greedy_response_is_the_likeliest_token_after_token(models, tmp_path):
    parts, rollout, _ = first_rollout(models, tmp_path, **by("remax"))
    greedy = rollout.greedy
    assert len(greedy) == 2
    assert torch.equal(greedy.prompt_ids, rollout.batch.prompt_ids[::2])
    logits = parts.actor_critic(
        greedy.input_ids, greedy.attention_mask, greedy.response_ids.shape[1]
    ).logits[:, :-1]
    mask = greedy.response_mask
    assert torch.equal(logits.argmax(-1)[mask], greedy.response_ids[mask])


def test_a_truncated_greedy_response_pays_the_penalty_in_the_place_of_its_score(models, tmp_path):
    settings = by("remax", credit__method="attention", sampling__min_new_tokens=5, kl__coef=0.0)
    replaced = {"sampling.truncated": "replace", "sampling.truncation_penalty": 3.0}
    _, _, found = first_rollout(models, tmp_path, **settings, **replaced)
    assert found.token_rewards[:, -1].tolist() == [-3.0] * 4
    assert not found.token_rewards[:, :-1].any()
    assert not found.advantages.any()  # as all of them, and the greedy one, pay the same


def test_a_truncated_greedy_response_pays_the_penalty_as_others_do(models, tmp_path):
    settings = by("remax", credit__method="terminal", sampling__min_new_tokens=5)
    _, plain_rollout, plain = first_rollout(models, tmp_path, **settings)
    assert bool(plain_rollout.truncated.all() & plain_rollout.greedy_truncated.all())
    fine = {"sampling.truncated": "penalty", "sampling.truncation_penalty": 3.0}
    _, _, fined = first_rollout(models, tmp_path, **settings, **fine)
    torch.testing.assert_close(fined.advantages, plain.advantages)


@pytest.mark.parametrize("kind", ["ngram", "perplexity", "entropy"])
def test_remax_with_segments(models, tmp_path, kind):
    settings = {"credit.method": "segment", "segments.kind": kind, "segments.entropy": 0.5}
    train_policy(tiny_config(models, tmp_path, steps=1, **by("remax", **settings)))
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_responses_to_a_prompt_stand_together_and_see_as_much_of_it(models, tmp_path):
    _, rollout, _ = first_rollout(models, tmp_path, **by("rloo", data__tokens=[1, 4]))
    prompts = [ids[mask].tolist() for ids, mask in zip(
        rollout.batch.prompt_ids, rollout.batch.prompt_mask, strict=True)]  # fmt: skip
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert not torch.equal(rollout.batch.response_ids[0], rollout.batch.response_ids[1])


def test_each_prompt_comes_once_in_a_pass_over_the_data(models, tmp_path):
    samples = {"record.sample_every": 1, "record.sample_count": 12}
    train_policy(tiny_config(models, tmp_path, steps=1, batch_size=12, **by("rloo"), **samples))
    prompts = [row["prompt"] for row in read_jsonl(tmp_path / "samples.jsonl")]
    assert sorted(map(prompts.count, set(prompts))) == [2] * 6


@pytest.mark.parametrize("name", ["grpo", "remax", "reinforce++"])
def test_resumed_equals_uninterrupted_without_a_critic(models, tmp_path, name):
    settings = by(name, score__normalization="running", record__sample_every=1)
    train_policy(tiny_config(models, tmp_path / "whole", steps=3, **settings))
    train_policy(tiny_config(models, tmp_path / "parts", steps=1, **settings))
    train_policy(tiny_config(models, tmp_path / "parts", steps=3, **settings))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    weights = [load_file(run / "policy" / "model.safetensors") for run in (whole, parts)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert read_jsonl(whole / "samples.jsonl") == read_jsonl(parts / "samples.jsonl")


def test_whitening_is_that_of_the_algorithm_unless_a_setting_says_otherwise(models, tmp_path):
    def whitens(**changes) -> bool:
        return tiny_config(models, tmp_path, **changes).algorithm.whitens

    assert whitens()
    assert not whitens(**by("rloo"))
    assert whitens(**by("rloo"), algorithm__whiten_advantages=True)
    assert not whitens(algorithm__whiten_advantages=False)


def test_a_row_added_to_the_table_is_used_from_the_command_line(models, tmp_path, monkeypatch):
    seen = []

    def halved(outcome, settings):
        seen.append((outcome.token_rewards.shape, settings.gamma))
        return 0.5 * outcome.token_rewards.masked_fill(~outcome.response_mask, 0.0), None

    monkeypatch.setitem(ALGORITHMS, "halved", Algorithm(halved, "half of each reward"))
    arguments = {
        "batch_size": 2,
        "algorithm.name": "halved",
        "algorithm.gamma": 0.5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenCreditWarning)  # of the discount
        (row,) = by_command(models, tmp_path / "run", **arguments)
    assert [(shape[0], gamma) for shape, gamma in seen] == [(2, 0.5)]
    assert not OF_VALUES & set(row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (by("rlo"), r"algorithm\.name is 'rlo'; expected one of .*did you mean 'rloo'"),
        (by("rloo", 1), r"compares responses to one prompt.*samples_per_prompt 1; expected at lea"),
        (
            by("grpo", 3),
            r"batch_size is 4 and algorithm\.samples_per_prompt 3; expected .*multiple",
        ),
        (by("reinforce", 0), "samples_per_prompt is 0"),
        (
            by("rloo", algorithm__gamma=0.9),
            r"gamma is 0\.9 with algorithm\.name 'rloo', which sums",
        ),
        (by("rloo", algorithm__critic="separate"), r"critic is 'separate' .*'rloo', which has no"),
        (
            by("grpo", segments__kind="ngram", segments__use="macro-actions"),
            r"segments\.use is 'macro-actions' with algorithm\.name 'grpo', which has no critic",
        ),
        (
            by("remax", sampling__truncated="bootstrap"),
            r"sampling\.truncated is 'bootstrap' with algorithm\.name 'remax', which has no critic",
        ),
    ],
)
def test_what_an_algorithm_cannot_do_is_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)
    assert not (tmp_path / "checkpoints").exists()


def test_groups_that_processes_would_cut_are_refused(models, tmp_path):
    config = tiny_config(models, tmp_path, batch_size=12, **by("rloo", 4))
    require_shared_evenly(config, 3)
    with pytest.raises(ConfigError, match=r"whole groups on each process.* a multiple of 8"):
        require_shared_evenly(config, 2)


def biased(caught) -> list[str]:
    return [str(one.message) for one in caught if "gradient is biased" in str(one.message)]


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"credit.method": "attention"}, 1),
        (by("reinforce", credit__method="uniform"), 1),
        (by("rloo", credit__method="attention"), 0),
        ({"credit.method": "prefix-difference"}, 0),
        ({"credit.method": "attention", "credit.terminal_share": 1.0}, 0),
    ],
)
def test_a_credit_that_looks_ahead_warns_once_where_rewards_are_dropped(
    models, tmp_path, changes, count
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_policy(tiny_config(models, tmp_path, **changes))
    assert len(biased(caught)) == count
    assert all("'rloo' or 'grpo'" in text for text in biased(caught))


def test_a_credit_of_the_caller_does_not_warn(models, tmp_path):
    config = tiny_config(models, tmp_path, steps=1, credit__method="attention")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_policy(config, token_scorer=lambda batch: batch.response_mask.float())
    assert not biased(caught)


def test_remax_of_a_credit_of_the_caller(models, tmp_path):
    config = tiny_config(models, tmp_path, steps=1, **by("remax"), record__sample_every=1)
    train_policy(config, token_scorer=lambda batch: batch.response_mask.float())
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["score"] == pytest.approx(row["length"])


def test_sums_of_tokens_are_the_returns_of_greedy_responses(models, tmp_path):
    """With prefix differences a greedy return is the score above that of the prompt."""
    parts, rollout, found = first_rollout(models, tmp_path, **by("remax"))
    token_scores = parts.rewards(rollout.greedy)
    returns = masked_sum(token_scores, rollout.greedy.response_mask).repeat_interleave(2)
    to_go = estimators.reinforce_advantages(found.token_rewards, found.batch.response_mask)
    mask = found.batch.response_mask
    baselines = (to_go - found.advantages)[:, 0]
    torch.testing.assert_close(baselines, returns)
    assert (found.advantages[~mask] == 0).all()
