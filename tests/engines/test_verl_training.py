"""verl's own trainer with the configuration under examples/verl, on two processes of the CPU."""

import itertools
import statistics

import pytest

pytest.importorskip("verl", reason="verl is installed by make test-engines alone")

from reference.estimators import leave_one_out_to_go, reinforce
from safetensors.torch import load_file
from tiny_policy import write_models
from verl_trainings import STEPS, VALIDATION, merged, trained

MINUTES = 60
pytestmark = pytest.mark.timeout(50 * MINUTES)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Two steps: groups of two, a reference model, its KL in the loss, a checkpoint."""
    folder = tmp_path_factory.mktemp("verl-training")
    return trained(write_models(folder / "models"), folder / "run")


def rows_of(training, step):
    return [one.token_scores for one in training.rollouts[step]]


def masks_of(rows):
    return [[True] * len(row) for row in rows]


def test_scores_are_the_rewards_of_texts_less_those_of_their_prompts(training):
    for step in STEPS:
        drawn = training.rollouts[step]
        assert len(drawn) == 8
        assert len({one.prompt for one in drawn}) == 4
        expected = sorted(sum(one.token_scores) for one in drawn)
        assert sorted(training.logged_scores(step)) == pytest.approx(expected, abs=1e-6)


def test_every_token_is_paid_by_itself(training):
    """The estimator of the configuration, from rewards of single tokens."""
    for step in STEPS:
        rows = rows_of(training, step)
        prompts = [one.prompt for one in training.rollouts[step]]
        groups = [prompts.index(prompt) for prompt in prompts]
        per_row = leave_one_out_to_go(rows, masks_of(rows), groups, 1.0)
        assert any(len(set(row)) > 1 for row in per_row)
        advantages = list(itertools.chain(*per_row))
        logged = training.metrics[step]
        for name, of in (("max", max), ("min", min), ("mean", statistics.fmean)):
            assert logged[f"critic/advantages/{name}"] == pytest.approx(of(advantages), abs=1e-5)


def test_the_last_weights_draw_the_responses(training):
    for step in STEPS:
        assert training.metrics[step]["training/rollout_probs_diff_max"] < 1e-6
    first, second = (training.metrics[step]["actor/kl_loss"] for step in STEPS)
    assert abs(first) < 1e-6
    assert second > 1e-3


def test_validation_says_how_the_credit_lies(training):
    rows = training.rollouts[VALIDATION]
    logged = training.metrics[2]
    sums = [sum(one.token_scores) for one in training.rollouts[VALIDATION]]
    assert len(rows) == 8
    named = [name for name in logged if "token_credit_sum" in name and "mean" in name]
    assert [logged[name] for name in named] == [pytest.approx(statistics.fmean(sums), abs=1e-5)]


def test_the_checkpoint_is_a_trained_policy(training):
    before = load_file(training.models / "policy" / "model.safetensors")
    after = merged(training.folder / "checkpoints" / "global_step_2" / "actor")
    assert after.keys() == before.keys()
    moved = [name for name in before if not (before[name] == after[name].to(before[name])).all()]
    assert len(moved) == len(before)


def test_gae_with_a_critic_learns_from_every_token(tmp_path):
    """With gamma and lambda of one, what a critic should say of a token is its reward to go."""
    models = write_models(tmp_path / "models")
    training = trained(models, tmp_path / "run", "algorithm.adv_estimator=gae")
    for step in STEPS:
        rows = rows_of(training, step)
        logged = training.metrics[step]
        expected = sorted(sum(row) for row in rows)
        assert sorted(training.logged_scores(step)) == pytest.approx(expected, abs=1e-6)
        to_go = list(itertools.chain(*reinforce(rows, masks_of(rows), 1.0)))
        for name, of in (("max", max), ("min", min), ("mean", statistics.fmean)):
            assert logged[f"critic/returns/{name}"] == pytest.approx(of(to_go), abs=1e-5)
        assert logged["critic/vf_loss"] > 0
        assert logged["training/rollout_probs_diff_max"] < 1e-6
    assert training.metrics[2]["critic/values/mean"] != training.metrics[1]["critic/values/mean"]
    assert list((tmp_path / "run" / "checkpoints" / "global_step_2" / "critic").glob("*.pt"))
