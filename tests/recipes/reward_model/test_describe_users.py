"""Users whom a trained model meets later: described by their pairs, without training."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_reward_training import config, lines, write_inputs

from tokencredit.batch import ResponseBatch
from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.recipes.reward_model.describe_users import DescribeUsersConfig, describe_users
from tokencredit.recipes.reward_model.head_settings import LatentSettings
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses

TASTES = (("good", "bad"), ("bad", "good"))


def pairs_of(user, number, films=range(12)):
    """Who has an even number likes good films, the others bad ones."""
    rows = []
    for film in films:
        chosen, rejected = (f" a {word} film {film}" for word in TASTES[number % 2])
        rows.append({"prompt": "rate it:", "chosen": chosen, "rejected": rejected, "user": user})
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of four users, every second of whom likes what the others dislike."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    rows = [row for number in range(4) for row in pairs_of(f"user {number}", number)]
    data = lines(folder / "users.jsonl", rows)
    settings = {"positions": "last", "held_out": 0.0, "device": "cpu", "user": "user"}
    made = config(
        folder,
        folder / "rm",
        latent=LatentSettings(4, width=16),
        learning_rate=1e-3,
        max_steps=6,
        **settings,
    )
    return train_reward_model(replace(made, data=str(data)))


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "rm")


def described(model, rows=None, **settings):
    """What `users.json` says after some users were described by the pairs of a file."""
    data = None if rows is None else str(lines(model.parent / "context.jsonl", rows))
    file = describe_users(DescribeUsersConfig(str(model), data, **settings))
    return {name: torch.tensor(numbers) for name, numbers in json.loads(file.read_text()).items()}


def test_the_pairs_of_a_user_of_training_give_what_training_wrote(model):
    own = {**json.loads((model / "users.json").read_text())}
    rows = [row | {"user": "anna"} for row in pairs_of("user 1", 1)]
    found = described(model, rows)
    assert list(found) == [*own, "anna"]
    torch.testing.assert_close(found["anna"], torch.tensor(own["user 1"]), rtol=1e-4, atol=1e-5)
    assert (found["anna"] - torch.tensor(own["user 0"])).abs().max() > 1e-3
    for name, numbers in own.items():
        assert found[name].tolist() == numbers  # nobody else has changed


def test_the_order_of_pairs_and_the_other_users_change_nothing(model):
    anna, bob = pairs_of("anna", 1), pairs_of("bob", 0, range(3))
    alone = described(model, anna)["anna"]
    found = described(model, [*bob, *anna[::-1]], replace=True)
    torch.testing.assert_close(found["anna"], alone, rtol=1e-4, atol=1e-5)
    assert (found["bob"] - alone).abs().max() > 1e-3


def test_a_user_without_pairs_is_the_mean_of_the_prior(model):
    found = described(model, users=("zoe",))
    assert found["zoe"].tolist() == [0.0] * 4
    among = described(model, pairs_of("anna", 1), users=("zoe", "anna"), replace=True)
    assert among["zoe"].tolist() == [0.0] * 4
    assert among["anna"].abs().max() > 0


def test_a_new_user_scores_wherever_a_model_is_named(model):
    described(model, pairs_of("anna", 1), users=("anna", "zoe"))
    ids = torch.randint(3, 200, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = ResponseBatch(ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:])
    scores = {
        name: score_responses(load_reward_model(f"{model}#{name}")[0], batch).prefix_scores
        for name in ("anna", "zoe", "user 1")
    }
    torch.testing.assert_close(scores["anna"], scores["user 1"], rtol=1e-3, atol=1e-4)
    assert (scores["anna"] - scores["zoe"]).abs().max() > 1e-5


def test_from_the_command_line(model, tmp_path, capsys):
    data = lines(tmp_path / "pairs.jsonl", pairs_of("anna", 1, range(3)) + pairs_of("bob", 0))
    command = ["describe-users", "--reward_model", str(model), "--data", str(data)]
    assert main([*command, "--users", "[anna]"]) == 0
    assert "anna: described by 3 pairs\n1 users described, 5 known" in capsys.readouterr().out
    assert "bob" not in json.loads((model / "users.json").read_text())


def test_bad_input(model, trained, tmp_path):
    with pytest.raises(ConfigError, match="expected pairs of users, or the names"):
        DescribeUsersConfig(str(model))
    with pytest.raises(ConfigError, match="knows user 1 already; expected other names, or replace"):
        described(model, pairs_of("user 1", 1))
    nameless = [
        {key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pairs_of("", 1)
    ]
    with pytest.raises(DataError, match="user"):
        described(model, nameless)
    with pytest.raises(ModelError, match="knows no users"):
        described(trained.parent / "lm", pairs_of("anna", 1))
    with pytest.raises(ModelError, match="elsewhere"):
        described(model, pairs_of("anna", 1), context_model=str(tmp_path / "elsewhere"))
