"""Evaluations whose scores are joined with those of like texts."""

import json

import pytest
import torch
from saved_models import save_reward_model
from tiny_tokenizers import byte_level

from tokencredit.cli import main
from tokencredit.errors import ConfigError
from tokencredit.preference.hf_comparisons import Comparison
from tokencredit.recipes.reward_model.neighbours import NeighbourSettings, fused_comparisons
from tokencredit.recipes.reward_model.pair_evaluation import ScoredComparison
from tokencredit.recipes.run.run_folder import read_jsonl


def scored(prompt, chosen, rejected, *scores):
    first, second = (torch.tensor([[one, 2 * one]]) for one in scores)
    return ScoredComparison(Comparison(prompt, (chosen,), (rejected,)), first, second)


def test_like_answers_are_joined_and_no_answer_with_itself():
    own = [scored("a film", "good plot", "dull", 1.0, -1.0)]
    texts = [
        scored([{"role": "user", "content": "A film"}], "plot good", "another thing", 3.0, 9.0),
        scored("a film", "good plot", "nothing alike at all", 100.0, 9.0),  # the answer itself
    ]
    (found,), told = fused_comparisons(own, texts, NeighbourSettings("texts"))
    torch.testing.assert_close(found.chosen_scores, torch.tensor([[2.0, 4.0]]))
    assert torch.equal(found.rejected_scores, own[0].rejected_scores)
    assert told == {
        "data": "texts",
        "texts": 4,
        "neighbours_of_an_answer": 0.5,
        "answers_with_neighbours": 0.5,
    }


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_joins_them_and_tells_what_was_before(tmp_path):
    save_reward_model(tmp_path / "rm", byte_level(bos=True))
    pair = {"prompt": "film:", "chosen": " a good plot and so on", "rejected": " a bad plot"}
    like = {**pair, "chosen": " so on and a good plot", "rejected": " quite another text"}
    data = written(tmp_path / "pairs.jsonl", [pair])
    told = ["--reward_model", str(tmp_path / "rm"), "--data", data, "--progress", "false"]
    found = {}
    for name, neighbours in (
        ("plain", None),
        ("alone", written(tmp_path / "alone.jsonl", [pair])),  # no answer is its own neighbour
        ("joined", written(tmp_path / "like.jsonl", [like])),
        ("like", None),
    ):
        options = [] if neighbours is None else ["--neighbours.data", neighbours]
        asked = [*told, "--output", str(tmp_path / name), *options]
        if name == "like":
            asked[3] = str(tmp_path / "like.jsonl")
        assert main(["evaluate-reward-model", *asked]) == 0
        (row,) = read_jsonl(tmp_path / name / "pairs.jsonl")
        report = json.loads((tmp_path / name / "evaluation.json").read_text())
        found[name] = (row["chosen_scores"][-1], report)
    assert found["alone"][0] == found["plain"][0]
    mean = (found["plain"][0] + found["like"][0]) / 2
    assert found["joined"][0] == pytest.approx(mean, abs=1e-5)
    told = found["joined"][1]["neighbours"]
    assert told["accuracy_without"] == found["plain"][1]["accuracy"]
    assert (told["answers_with_neighbours"], told["left_out"]) == (0.5, 0)
    assert "neighbours" not in found["plain"][1]


@pytest.mark.parametrize("wrong", [{"least": 0.0}, {"least": 2.0}, {"most": 0}, {"limit": 0}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="neighbours"):
        NeighbourSettings(**wrong)
