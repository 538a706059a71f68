"""Questions from pairs and rollouts, and a policy that learns to answer them by GRPO."""

import json
import sys
from pathlib import Path

import pytest
from tiny_policy import write_models

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.judge_correctness import correctness_reward

PAIRS = [
    {"prompt": "Q", "chosen": "aa", "rejected": "b", "strength": 3},
    {"prompt": "R", "chosen": "cc", "rejected": "d", "strength": 1},
]
ROLLOUTS = [
    {"prompt": "1+1?", "responses": ["2", "3"], "scores": [1, 0]},
    {"prompt": "2+2?", "responses": ["4", "four"], "scores": [1, 1]},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, rows in (("pairs", PAIRS), ("rollouts", ROLLOUTS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("judge_lessons_of", None)


def built(data, *settings):
    command = ["build-judge-prompts", "--data", data, "--output", "questions.jsonl", *settings]
    assert main(command) == 0
    return read_jsonl(Path("questions.jsonl"))


def test_pairs_in_both_orders_with_their_strength(folder):
    rows = built("pairs.jsonl", "--judge.setup", "think-rm", "--strength", "strength")
    assert [row["correct"] for row in rows] == [3, -3, 1, -1]
    reward = correctness_reward("questions.jsonl", "strength")
    prompts = [row["prompt"] for row in rows]
    said = ["<answer>3</answer>", "<answer>-1</answer>", "<answer>-1</answer>", "?"]
    assert reward(prompts, said) == [2.0, 1.5, 1.0, 0.0]
    with pytest.raises(DataError, match="are not in questions"):
        reward(["other"], ["x"])
    with pytest.raises(ConfigError, match="did you mean 'choice'"):
        correctness_reward("questions.jsonl", "choices")


def test_rollouts_become_questions_about_one_or_two(folder):
    settings = ["--judge.setup", "rm-r1", "--single.setup", "rlbff", "--single.principle", "true"]
    rows = built("rollouts.jsonl", *settings, "--single_share", "0")
    assert [row["setup"] for row in rows] == ["rm-r1", "rlbff"]
    assert rows[1]["correct"] == 1.0
    reward = correctness_reward("questions.jsonl")
    right = "[[A]]" if rows[0]["correct"] > 0 else "[[B]]"
    prompts = [row["prompt"] for row in rows]
    assert reward(prompts, [right, "Yes."]) == [1.0, 1.0]
    assert reward(prompts, ["", "No."]) == [-1.0, -1.0]


def test_a_policy_trains_on_them_by_grpo(folder):
    models = write_models(folder, max_position_embeddings=512)
    built("pairs.jsonl", "--judge.setup", "rm-r1")
    (folder / "judge_lessons_of.py").write_text(
        "from tokencredit.scorers.judge_correctness import correctness_reward\n"
        'reward = correctness_reward("questions.jsonl")\n'
    )
    command = ["train-policy", "--policy", str(models / "policy"), "--prompts", "questions.jsonl"]
    command += ["--reward_model", "judge_lessons_of:reward", "--output", "judge", "--steps", "1"]
    command += ["--algorithm.name", "grpo", "--batch_size", "4", "--credit.method", "terminal"]
    command += ["--sampling.max_new_tokens", "4", "--machine.device", "cpu"]
    command += ["--algorithm.samples_per_prompt", "2", "--record.progress", "false"]
    assert main(command) == 0
    (row,) = read_jsonl(Path("judge/metrics.jsonl"))
    assert row["score"] == -1.0  # nothing that it writes can be read


def test_what_does_not_fit_is_refused(folder, capsys):
    base = ["build-judge-prompts", "--data", "pairs.jsonl", "--output", "questions.jsonl"]
    for settings, said in (
        ([], "judge.setup is empty"),
        (["--judge.setup", "rewardanything", "--judge.principle", "x"], "rates all responses"),
        (["--judge.setup", "rm-r1", "--single.setup", "rlbff"], "asks for a principle"),
    ):
        assert main([*base, *settings]) == 1
        assert said in capsys.readouterr().err.replace("\n", " ")
