"""What the policy learns from: the responses that are kept, and these alone."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from several_processes import CERTAIN, assert_same_training, finished
from tiny_policy import by_command, tiny_config, write_models

from tokencredit.errors import ConfigError
from tokencredit.masking import masked_sum
from tokencredit.policy.selection import SELECTIONS, kept_responses, score_reliability
from tokencredit.recipes.policy import experience as recipe
from tokencredit.recipes.policy.experience import experience_of, rows_of
from tokencredit.recipes.policy.models import loaded_models
from tokencredit.recipes.policy.prompts import seeded, tokenized_prompts
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.selection import kept_rows
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl

TIMES = ("seconds_rollout", "seconds_score", "seconds_update", "tokens_per_second")
GROUPS = {"algorithm.samples_per_prompt": 4, "batch_size": 8}
CHOSEN = [name for name in SELECTIONS if name != "all"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def weights(folder):
    return load_file(folder / "policy" / "model.safetensors")


def assert_same_weights(first, second):
    assert all(torch.equal(value, weights(second)[key]) for key, value in weights(first).items())


def rolled_out(models, output, **settings):
    config = tiny_config(models, output, **GROUPS, **settings)
    parts, accelerator = loaded_models(config, None, torch.device("cpu")), Accelerator(cpu=True)
    prompts = tokenized_prompts(config, parts)
    rollout = draw_responses(config, accelerator, parts, prompts, 0, seeded(config.seed, 0, 0))
    experience = experience_of(
        parts, parts.actor_critic, rollout, config, accelerator, kl_coef=0.05, moments={}
    )
    return config, rollout, experience


def test_keep_all_is_ppo_bit_for_bit(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "plain", **GROUPS))
    train_policy(tiny_config(models, tmp_path / "all", **GROUPS, selection__keep="all"))
    assert_same_weights(tmp_path / "plain", tmp_path / "all")


def test_keeping_every_response_of_a_selection_is_ppo_too(models, tmp_path, monkeypatch):
    """The best four of four are all of them: the same rows, the same order, the same bits."""
    # A selection has a pass of its own for the first update, which rounds in another way.
    monkeypatch.setattr(recipe, "_begins_update", lambda *_: False)
    train_policy(tiny_config(models, tmp_path / "plain", **GROUPS))
    best = {"selection.keep": "best", "selection.count": 4}
    train_policy(tiny_config(models, tmp_path / "best", **GROUPS, **best))
    assert_same_weights(tmp_path / "plain", tmp_path / "best")


@pytest.mark.parametrize("keep", CHOSEN)
def test_kept_rows_are_those_of_the_function_on_what_is_paid(models, tmp_path, keep):
    config, rollout, experience = rolled_out(models, tmp_path, selection__keep=keep)
    paid = masked_sum(experience.token_scores, experience.batch.response_mask)
    assert not torch.equal(paid.argsort(), experience.sequence_scores.argsort())
    groups, draws = torch.arange(8) // 4, torch.Generator().manual_seed(3)
    expected = kept_responses(paid, groups, keep=keep, rng=torch.Generator().manual_seed(3))
    assert torch.equal(kept_rows(config, experience, rollout, draws), expected)


def test_a_penalty_counts_in_the_ranking(models, tmp_path):
    """All are cut off and lose the same; with `replace` all are paid alike, and the first stays."""
    settings = {"sampling.min_new_tokens": 5, "selection.keep": "best"}
    replaced = {"sampling.truncated": "replace", "sampling.truncation_penalty": 3.0}
    config, rollout, experience = rolled_out(models, tmp_path, **settings, **replaced)
    rows = kept_rows(config, experience, rollout, torch.Generator())
    assert rows.tolist() == [0, 4]


@pytest.mark.parametrize("name", ["ppo", "grpo", "reinforce", "likelihood"])
@pytest.mark.parametrize("how", ["filter", "resample"])
def test_every_kind_of_algorithm_learns_from_what_is_kept(models, tmp_path, name, how):
    settings = {"algorithm.name": name, "selection.keep": "best-worst", "selection.how": how}
    train_policy(tiny_config(models, tmp_path, **GROUPS, **settings, algorithm__minibatch_size=4))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert all(row["kept_score"] != row["score"] for row in rows) or how == "resample"


@pytest.mark.parametrize("keep", CHOSEN)
def test_resumed_equals_uninterrupted(models, tmp_path, keep):
    settings = {**GROUPS, "selection.keep": keep, "record.sample_every": 1}
    if keep != "best":
        settings["selection.how"] = "resample"
    train_policy(tiny_config(models, tmp_path / "whole", steps=3, **settings))
    train_policy(tiny_config(models, tmp_path / "parts", steps=1, **settings))
    train_policy(tiny_config(models, tmp_path / "parts", steps=3, **settings))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_metrics_say_what_was_kept_and_how_reliable_it_is(models, tmp_path):
    config, rollout, experience = rolled_out(
        models,
        tmp_path,
        selection__keep="best-worst",
        held_out_reward_model=str(models / "held-out"),
    )
    rows = kept_rows(config, experience, rollout, torch.Generator())
    train_policy(config)
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    scores, judged = experience.sequence_scores, experience.held_out_scores
    assert row["kept_score"] == pytest.approx(float(scores[rows].mean()), rel=1e-4)
    expected = float(score_reliability(scores[rows], judged[rows]))
    assert row["kept_reliability"] == pytest.approx(expected, rel=1e-4)
    expected = float(score_reliability(scores, judged))
    assert row["reliability"] == pytest.approx(expected, rel=1e-4)


def test_rejection_sampling_is_supervised_training_on_the_best(models, tmp_path):
    """One update: the gradient of the mean negative log-likelihood of the kept responses."""
    settings = {
        "algorithm.name": "likelihood",
        "selection.keep": "best",
        "algorithm.epochs": 1,
        "optimizer.max_grad_norm": 1e9,
    }
    config, rollout, experience = rolled_out(models, tmp_path / "one", **settings)
    kept = rows_of(experience, kept_rows(config, experience, rollout, torch.Generator()))
    policy = loaded_models(config, None, torch.device("cpu")).actor_critic.policy
    batch = kept.batch
    labels = batch.input_ids.masked_fill(
        ~torch.cat([torch.zeros_like(batch.prompt_mask), batch.response_mask], dim=-1), -100
    )
    loss = policy(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
    ).loss
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    train_policy(config)
    row = read_jsonl(tmp_path / "one" / "metrics.jsonl")[0]
    assert row["policy_loss"] == pytest.approx(loss.item(), rel=1e-3)
    assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert not {"value_loss", "explained_variance"} & set(row)


def test_superhf_without_its_penalty_is_rejection_sampling(models, tmp_path):
    settings = {**GROUPS, "algorithm.name": "likelihood", "selection.keep": "best"}
    train_policy(tiny_config(models, tmp_path / "rft", **settings))
    train_policy(tiny_config(models, tmp_path / "free", **settings, kl__forward_coef=0.0))
    train_policy(tiny_config(models, tmp_path / "priced", **settings, kl__forward_coef=5.0))
    assert_same_weights(tmp_path / "rft", tmp_path / "free")
    free, priced = (read_jsonl(tmp_path / n / "metrics.jsonl")[-1] for n in ("free", "priced"))
    assert abs(priced["kl"]) < abs(free["kl"])
    assert priced["forward_kl"] > 0


def test_from_the_command_line(models, tmp_path):
    arguments = {
        "batch_size": 8,
        "algorithm.name": "likelihood",
        "algorithm.samples_per_prompt": 4,
        "selection.keep": "best",
        "selection.count": 2,
        "kl.forward_coef": 0.35,
    }
    (row,) = by_command(models, tmp_path / "run", **arguments)
    assert row["kept_score"] > row["score"]


def test_two_processes_keep_what_one_does(models, tmp_path):
    settings = {**CERTAIN, "algorithm.samples_per_prompt": 2, "selection.keep": "best-worst"}
    settings["kl.forward_coef"] = 0.1
    train_policy(tiny_config(models, tmp_path / "one", steps=2, **settings))
    job = {"models": str(models), "environment": {}, "steps": 2, **settings}
    finished(tmp_path, [{**job, "output": str(tmp_path / "two")}])
    assert_same_training(tmp_path / "one", tmp_path / "two", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection.keep": "best"}, r"samples_per_prompt 1; expected at least 2 responses"),
        ({**GROUPS, "selection.keep": "best", "selection.count": 5}, "expected at least 5"),
        ({**GROUPS, "selection.count": 2}, r"count is 2 with selection\.keep 'all'"),
        ({**GROUPS, "selection.how": "resample"}, "'resample' with selection.keep 'all'"),
        ({**GROUPS, "selection.keep": "bets"}, "did you mean 'best'"),
        (
            {"algorithm.name": "likelihood", "algorithm.whiten_advantages": True},
            "which weighs every token alike",
        ),
        ({"algorithm.name": "likelihood", "algorithm.advantage_clip": 1.0}, "weighs every token"),
        ({"algorithm.advantage_clip": 0.0}, r"advantage_clip is 0\.0; expected more than 0"),
    ],
)
def test_contradictions_are_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)


def test_the_state_of_a_run_is_not_touched(models, tmp_path):
    """What is kept changes no metric of the rollout that it is kept from."""
    train_policy(tiny_config(models, tmp_path / "all", steps=1, **GROUPS))
    train_policy(tiny_config(models, tmp_path / "best", steps=1, **GROUPS, selection__keep="best"))
    one, other = (read_jsonl(tmp_path / n / "metrics.jsonl")[0] for n in ("all", "best"))
    for name in ("score", "score_std", "kl", "length", "entropy", "token_score_sum"):
        assert one[name] == other[name]
    assert "kept_score" not in one
