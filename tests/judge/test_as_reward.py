"""A judge as the reward of a training, by the name that settings give it."""

import sys

import pytest
from tiny_policy import tiny_config, write_models

from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl

MODULE = """
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tokencredit import judged_scores, two_way_verdict
from tokencredit.judge.hf_judge import local_judge
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.text.hf_known_readings import written_by

folder = Path(__file__).parent / "policy"
model = load_model(AutoModelForCausalLM, folder)
judge = local_judge(model, written_by(load_tokenizer(folder)))
own = replace(
    JUDGE_SETUPS["rlbff"],
    template="{responses} this film is",
    answers=("good", "bad"),
    read=lambda reply, _count: [two_way_verdict(reply, "good", "bad")],
)


def asked(prompts, responses):
    found = judged_scores(judge, own, prompts, [[text] for text in responses], most_unreadable=0.0)
    return torch.cat(found.scores).tolist()
"""


@pytest.mark.parametrize("credit", ["prefix-difference", "terminal"])
def test_a_judge_pays_a_policy(tmp_path, monkeypatch, credit):
    models = write_models(tmp_path / "models")
    (models / "my_own_judge.py").write_text(MODULE)
    monkeypatch.chdir(models)
    settings = {"reward_model": "my_own_judge:asked", "credit.method": credit}
    shown = {"record.sample_every": 1, "record.sample_count": 4}
    try:
        train_policy(tiny_config(models, tmp_path / "run", steps=1, **settings, **shown))
        asked = sys.modules["my_own_judge"].asked
    finally:
        sys.modules.pop("my_own_judge", None)
    rows = read_jsonl(tmp_path / "run" / "samples.jsonl")
    said = asked([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert len(set(said)) > 1
    assert [row["score"] for row in rows] == pytest.approx(said, abs=1e-4)
    if credit == "terminal":
        paid = [sum(row["token_scores"]) for row in rows]
        assert paid == pytest.approx(said, abs=1e-4)
