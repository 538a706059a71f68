import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from tiny_reward_training import config, write_inputs

from tokencredit.aggregation.combining import mean_less_deviation_scores, worst_case_scores
from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError
from tokencredit.recipes.reward_model.ensembles import (
    BOOTSTRAP,
    bootstrap_weights,
    loss_of_heads,
)
from tokencredit.recipes.reward_model.examples import judgements_of
from tokencredit.recipes.reward_model.head_settings import EnsembleSettings
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.reward_model.objectives import LossSettings, objective_row
from tokencredit.scorers.ensemble import combination_named
from tokencredit.scorers.texts import loaded_reward_model

BRADLEY_TERRY = partial(
    objective_row("bradley-terry", "every", LossSettings()).loss, settings=LossSettings()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(folder):
    settings = EnsembleSettings(3, bootstrap=True)
    return train_reward_model(config(folder, folder / "rm", "bradley-terry", ensemble=settings))


def drawn(heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, 5, heads, generator=generator, requires_grad=True)
    counted = torch.ones(4, 5, dtype=torch.bool)
    counted[1, 3:] = False
    inputs = {
        "counted": counted,
        "targets": torch.tensor([0.0, 0.5]),
        "strengths": torch.tensor([1.0, 2.0]),
        "preferred": torch.ones(2),
    }
    return scores, inputs


def test_an_ensemble_of_one_is_bradley_terry(folder, tmp_path):
    """Bit for bit, and with the plain head that every library loads."""
    one = config(folder, tmp_path / "one", "bradley-terry", ensemble=EnsembleSettings(1))
    plain = config(folder, tmp_path / "plain", "bradley-terry")
    mine, theirs = (
        load_file(train_reward_model(settings) / "model.safetensors") for settings in (one, plain)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    scores, inputs = drawn(1)
    alone = BRADLEY_TERRY(judged(scores[..., 0], inputs))
    assert torch.equal(loss_of_heads(BRADLEY_TERRY, scores, inputs), alone)


def judged(scores, inputs):
    return judgements_of(scores, inputs)


def test_equal_heads_move_the_trunk_as_one_does():
    scores, inputs = drawn(1)
    (alone,) = torch.autograd.grad(loss_of_heads(BRADLEY_TERRY, scores, inputs), scores)
    equal = scores.expand(-1, -1, 3)
    loss = loss_of_heads(BRADLEY_TERRY, equal, inputs)
    (together,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(together, alone)


def test_a_pair_that_a_head_has_not_drawn_does_not_move_it():
    scores, inputs = drawn(2)
    inputs[BOOTSTRAP] = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    loss = loss_of_heads(BRADLEY_TERRY, scores, inputs)
    (slopes,) = torch.autograd.grad(loss, scores)
    moved = slopes.abs().sum(1) > 0  # texts, heads: chosen of both pairs, then rejected
    assert moved.tolist() == [[True, False], [False, True]] * 2
    thrice, counted = drawn(2)
    counted["strengths"] = torch.tensor([0.0, 6.0])
    own = BRADLEY_TERRY(judged(thrice[..., 1], counted))
    counted["strengths"] = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(loss, (own + BRADLEY_TERRY(judged(thrice[..., 0], counted))) / 2)


def test_a_bootstrap_draws_as_many_pairs_as_there_are():
    found = bootstrap_weights(4000, EnsembleSettings(3, bootstrap=True), seed=1)
    assert found.shape == (4000, 3)
    torch.testing.assert_close(found.mean(0), torch.ones(3), atol=0.06, rtol=0)
    assert (found == 0).float().mean().item() == pytest.approx(0.368, abs=0.02)  # 1 / e
    assert not torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found, bootstrap_weights(4000, EnsembleSettings(3, True), seed=1))


def test_heads_of_one_folder_differ_and_their_mean_is_the_score(trained):
    model, _ = load_reward_model(trained)
    assert model.score.names == ("head-1", "head-2", "head-3")
    rows = model.score.rows.weight
    assert rows.shape[0] == 3
    assert not torch.allclose(rows[0], rows[1])
    scores = score_responses(model, batch())
    each = torch.stack([one.scores.prefix_scores for one in scores.objectives.values()], dim=-1)
    torch.testing.assert_close(scores.prefix_scores, each.mean(-1))
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0 <= metrics["held_out_accuracy"] <= 1


@pytest.mark.parametrize(
    ("asked", "combined"),
    [
        ("worst-case", worst_case_scores),
        ("mean-less-deviation=0.5", partial(mean_less_deviation_scores, deviation_coef=0.5)),
    ],
)
def test_heads_are_combined_prefix_by_prefix(trained, asked, combined):
    apart = score_responses(load_reward_model(trained)[0], batch()).objectives
    model, _ = loaded_reward_model(f"{trained}#{asked}")
    scores = score_responses(model, batch())
    for kind in ("sequence_scores", "prefix_scores"):
        each = torch.stack([getattr(one.scores, kind) for one in apart.values()], dim=-1)
        torch.testing.assert_close(getattr(scores, kind), combined(each))
    assert all(one.weights is None for one in scores.objectives.values())


def test_one_head_can_be_asked_for(trained):
    model, _ = load_reward_model(f"{trained}#head-2")
    one = score_responses(model, batch())
    every = score_responses(load_reward_model(trained)[0], batch()).objectives["head-2"]
    torch.testing.assert_close(one.prefix_scores, every.scores.prefix_scores)


@pytest.mark.parametrize("asked", ["worst-case=0.5", "mean-less-deviation=much"])
def test_combinations_that_cannot_be(asked):
    with pytest.raises(ConfigError, match="expected the name of a combination method"):
        combination_named(asked)


def test_settings_that_cannot_be(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"ensemble.bootstrap is true with one head"):
        EnsembleSettings(bootstrap=True)
    with pytest.raises(ConfigError, match=r"ensemble.heads is 2 with objective 'regression'"):
        config(folder, tmp_path / "rm", "regression", ensemble=EnsembleSettings(2))


def batch():
    ids = torch.randint(3, 200, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return ResponseBatch(ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:])
