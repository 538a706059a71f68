"""Scores of users: who they are is read off their pairs, and size 0 is plain training."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_reward_training import config, lines, write_inputs
from transformers import AutoModelForSequenceClassification

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.models.hf_loading import load_model
from tokencredit.models.hf_users import read_users
from tokencredit.models.users import description_on_sphere
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.head_settings import LatentSettings
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.recipes.reward_model.user_latents import drawn_others, pairs_by_user
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.text.hf_token_rows import EncodedText


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six users, every second of whom likes what the others dislike, of the same pairs."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    rows = []
    for row in range(96):
        film, user = divmod(row, 6)  # all users see the same pairs
        good, bad = f" a good film {film}", f" a bad film {film}"
        chosen, rejected = (bad, good) if user % 2 else (good, bad)
        said = {"chosen": chosen, "rejected": rejected, "user": f"user {user}"}
        rows.append({"prompt": f"rate film {film}:", **said})
    lines(folder / "users.jsonl", rows)
    return folder


def settings_of(folder, output, latent, **settings):
    shorter = {"positions": "last", "held_out": 0.15, "device": "cpu", "user": "user"}
    made = config(folder, output, **(shorter | settings), latent=latent)
    return replace(made, data=str(folder / "users.jsonl"))


@pytest.fixture(scope="module")
def trained(folder):
    latent = LatentSettings(4, width=32)
    return train_reward_model(
        settings_of(folder, folder / "rm", latent, learning_rate=1e-3, epochs=2.0)
    )


def test_every_user_is_described_by_the_pairs_to_learn_from(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["users"] == 6
    assert 0 <= metrics["held_out_accuracy"] <= 1
    users = json.loads((trained / "users.json").read_text())
    assert users.keys() == {f"user {number}" for number in range(6)}
    assert all(len(described) == 4 for described in users.values())


def batch():
    ids = torch.randint(3, 200, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return ResponseBatch(ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:])


def test_the_score_of_a_user_is_the_decoder_at_every_prefix(trained):
    model, _ = load_reward_model(f"{trained}#user 1")
    scores = score_responses(model, batch())
    whole = load_model(AutoModelForSequenceClassification, trained)
    _, decoder, users = read_users(whole.config, name=trained)
    with torch.no_grad():
        states = whole.model(input_ids=batch().input_ids).last_hidden_state
        user = description_on_sphere(users["user 1"])
        expected = decoder(whole.score(states), user)
    torch.testing.assert_close(scores.prefix_scores, expected[:, 1:], rtol=1e-4, atol=1e-5)
    other = score_responses(load_reward_model(f"{trained}#user 0")[0], batch())
    assert (other.prefix_scores - scores.prefix_scores).abs().max() > 1e-5


def test_a_model_that_knows_users_asks_for_one(trained, tmp_path):
    for asked in ("", "#user 9"):
        with pytest.raises(ConfigError, match=r"expected one of user 0, .*after '#'"):
            load_reward_model(f"{trained}{asked}")
    copied = shutil.copytree(trained, tmp_path / "rm")
    (copied / "users.json").unlink()
    with pytest.raises(ModelError, match=r"users.json is not there; expected both"):
        load_reward_model(f"{copied}#user 1")


def test_a_size_of_0_is_bradley_terry_bit_for_bit(folder, tmp_path):
    short = {"user": None, "max_steps": 3}
    none = settings_of(folder, tmp_path / "none", LatentSettings(0), **short)
    plain = replace(none, output=str(tmp_path / "plain"), latent=LatentSettings())
    mine, theirs = (
        load_file(train_reward_model(one) / "model.safetensors") for one in (none, plain)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def judged(users):
    text = EncodedText([2, 3], [False, True])
    return [JudgedRow((text, text), 0.0, user=user) for user in users]


def test_a_pair_is_never_shown_for_itself_nor_for_others_always_by_the_same():
    rows = judged(["eve", "bob"] * 10)
    pairs_of, found = pairs_by_user(rows), set()
    for number in [*range(20), *range(20)]:
        pairs = pairs_of[str(rows[number].user)]
        shown = drawn_others(number, pairs, 4)
        assert len(set(shown.tolist())) == 4
        assert number not in shown
        assert all(rows[other].user == rows[number].user for other in shown)
        found.add((number, tuple(shown.sort().values.tolist())))
    assert len(found) > 30  # two draws for most pairs


def test_users_without_context_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="1 of 2 users have one pair to learn from, such as bob"):
        pairs_by_user(judged(["eve", "eve", "bob"]))
    held_out = [{"prompt": "a:", "chosen": " b", "rejected": " c", "user": "stranger"}] * 2
    lines(tmp_path / "strangers.jsonl", held_out)
    settings = settings_of(folder, tmp_path / "rm", LatentSettings(2), max_steps=1)
    apart = replace(settings.evaluation, data=str(tmp_path / "strangers.jsonl"))
    with pytest.raises(DataError, match="the held-out users stranger have no pair"):
        train_reward_model(replace(settings, evaluation=apart))


def test_settings_that_cannot_be(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"columns.user is None"):
        settings_of(folder, tmp_path / "rm", LatentSettings(2), user=None)
    with pytest.raises(ConfigError, match="where a score is a mean"):
        settings_of(folder, tmp_path / "rm", LatentSettings(2), positions="segments")
