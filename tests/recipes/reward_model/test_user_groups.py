"""Groups of users: found while heads learn, named as objectives; one group is plain training."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_reward_training import config, lines, write_inputs

from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.head_settings import GroupSettings
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.recipes.reward_model.user_groups import ROW, UserGroups
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.losses.pairs import bradley_terry_losses
from tokencredit.text.hf_token_rows import EncodedText


def pair_losses(judged):
    chosen, rejected = judged.scores[:, 0].chunk(2)
    return bradley_terry_losses(chosen, rejected)


def judged(users):
    text = EncodedText([2, 3], [False, True])
    return [JudgedRow((text, text), 0.0, user=user) for user in users]


def batch(scores, rows):
    pairs = len(rows)
    return scores, {
        "counted": torch.ones(2 * pairs, 1, dtype=torch.bool),
        "targets": torch.zeros(pairs),
        "strengths": torch.ones(pairs),
        "preferred": torch.ones(pairs),
        ROW: torch.tensor(rows),
    }


def test_users_begin_by_their_numbers_and_pairs_by_theirs():
    rows = judged(["eve", "bob", "eve", "kim"])
    by_user = UserGroups(GroupSettings(2), rows, pair_losses)
    assert by_user.numbers == {"eve": 0, "bob": 1, "kim": 2}
    assert by_user.memberships.argmax(-1).tolist() == [0, 1, 0]
    by_pair = UserGroups(GroupSettings(3, of="pairs"), rows, pair_losses)
    assert by_pair.memberships.argmax(-1).tolist() == [0, 1, 2, 0]


def test_a_pair_moves_the_head_of_its_user_alone():
    groups = UserGroups(GroupSettings(2), judged(["eve", "bob", "eve"]), pair_losses)
    scores = torch.randn(6, 1, 2, requires_grad=True)
    loss = groups.loss(*batch(scores, [0, 1, 2]))
    (slopes,) = torch.autograd.grad(loss, scores)
    moved = slopes[:3, 0].abs() > 0
    assert moved.tolist() == [[True, False], [False, True], [True, False]]
    each = [pair_losses_of(scores, pair, head) for pair, head in ((0, 0), (1, 1), (2, 0))]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def pair_losses_of(scores, pair, head):
    return bradley_terry_losses(scores[pair, :, head], scores[3 + pair, :, head])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six users, every third of whom likes what the others dislike."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    rows = []
    for row in range(72):
        film, user = divmod(row, 6)  # all users see the same pairs
        good, bad = f" a good film {film}", f" a bad film {film}"
        chosen, rejected = (bad, good) if user in (2, 5) else (good, bad)
        said = {"chosen": chosen, "rejected": rejected, "user": user}
        rows.append({"prompt": f"rate film {film}:", **said})
    lines(folder / "users.jsonl", rows)
    return folder


def configured_data(settings, path):
    return replace(settings, data=str(path))


@pytest.fixture(scope="module")
def trained(folder):
    settings = config(
        folder, folder / "rm", positions="last", held_out=0.15, learning_rate=3e-3, epochs=8.0,
        user="user", groups=GroupSettings(2, rounds=4),
    )  # fmt: skip
    return train_reward_model(configured_data(settings, folder / "users.jsonl"))


def test_users_of_opposite_tastes_are_told_apart(trained):
    said = json.loads((trained / "groups.json").read_text())
    groups = {user: one["group"] for user, one in said["users"].items()}
    assert len({groups[user] for user in "0134"}) == 1
    assert len({groups[user] for user in "25"}) == 1
    assert groups["0"] != groups["2"]
    assert sum(one["pairs"] for one in said["users"].values()) <= 72
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["held_out_accuracy"] == 1.0  # of each user by the head of the user's group
    assert sorted(said["shares"].values()) == pytest.approx([1 / 3, 2 / 3])
    assert metrics["group_share/group-1"] == said["shares"]["group-1"]


def test_groups_are_objectives_with_names(trained):
    with pytest.raises(ModelError, match="a score for each of group-1, group-2"):
        load_reward_model(trained)
    rows = [load_reward_model(f"{trained}#group-{n}")[0].score.weight for n in (1, 2)]
    assert torch.cosine_similarity(*rows).item() < 0.5


def test_one_group_is_bradley_terry_bit_for_bit(folder, tmp_path):
    one = config(folder, tmp_path / "one", groups=GroupSettings(1))
    plain = config(folder, tmp_path / "plain")
    mine, theirs = (
        load_file(train_reward_model(settings) / "model.safetensors") for settings in (one, plain)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    groups = UserGroups(GroupSettings(1), judged(["eve", "bob"]), pair_losses)
    scores = torch.randn(4, 1, 1)
    plain_loss = bradley_terry_losses(scores[:2, 0, 0], scores[2:, 0, 0]).mean()
    assert torch.equal(groups.loss(*batch(scores, [0, 1])), plain_loss)


@pytest.mark.parametrize("positions", ["every", "segments", "pairs"])
def test_pairs_can_be_sorted_one_by_one(folder, tmp_path, positions):
    groups = GroupSettings(2, of="pairs", membership="soft", rounds=1)
    settings = config(
        folder, tmp_path / "rm", positions=positions, groups=groups, max_steps=2, device="cpu"
    )
    output = train_reward_model(settings)
    said = json.loads((output / "groups.json").read_text())
    assert said.keys() == {"shares"}
    assert sum(said["shares"].values()) == pytest.approx(1.0, rel=1e-5)


def test_what_cannot_be(folder, tmp_path):
    for settings, message in (
        ({"groups": GroupSettings(2)}, "columns.user is None"),
        ({"user": "user"}, "columns.user is 'user'"),
        ({"groups": GroupSettings(2), "objective": "regression"}, "expected bradley-terry"),
        (
            {"groups": GroupSettings(2, of="pairs"), "centering": 0.1},
            "loss.centering is 0.1 with several heads",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            config(folder, tmp_path / "rm", **settings)
    wrong = config(
        folder, tmp_path / "rm", user="strength", groups=GroupSettings(2), bad_rows="error"
    )
    lines(
        folder / "nobody.jsonl",
        [{"prompt": "a:", "chosen": " b", "rejected": " c", "strength": 1.5}],
    )
    with pytest.raises(DataError, match="expected the name or the number of a user"):
        train_reward_model(configured_data(wrong, folder / "nobody.jsonl"))
