"""Likeness to references as a source of reward of the commands."""

import json

import pytest
import torch
from tiny_policy import PROMPTS, tiny_config, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.reward_model.similarity import best_match_similarity
from tokencredit.scorers.hf_similarity import SimilarityReward
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.scorers.references import prompt_key
from tokencredit.scorers.source_settings import RewardSource, SimilaritySettings

REFERENCE = " a good plot and a slow scene"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("models"))
    rows = [{"prompt": prompt, "response": REFERENCE} for prompt in PROMPTS]
    (folder / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def source(models):
    settings = {"references": str(models / "references.jsonl")}
    return {"model": str(models / "policy"), "name": "like", "similarity": settings}


def reward(models):
    model = AutoModelForCausalLM.from_pretrained(models / "policy")
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    references = {prompt_key(prompt): REFERENCE for prompt in PROMPTS}
    return SimilarityReward(model, tokenizer, references, "file")


def similarity(one, first, second):
    table = one.model.get_input_embeddings().weight.detach()
    rows = [one.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second)]
    own, other = (table[torch.tensor(ids)][None] for ids in rows)
    masks = (torch.ones(part.shape[:2], dtype=torch.bool) for part in (own, other))
    return best_match_similarity(own, other, *masks).item()


def test_scores_are_those_of_the_embeddings(models):
    one, texts = reward(models), [" a good film", REFERENCE, ""]
    found = one([PROMPTS[0]] * 3, texts)
    assert found == pytest.approx([similarity(one, texts[0], REFERENCE), 1.0, 0.0], abs=1e-5)
    chat = [{"role": "user", "content": PROMPTS[0]}]
    assert one([chat], texts[:1]) == pytest.approx(found[:1], abs=1e-5)
    with pytest.raises(DataError, match=r"1 prompts have no reference in file, .* 'another'"):
        one(["another"], ["x"])


def test_tokens_are_scored_by_what_each_adds(models, tmp_path):
    rows = [{"prompt": PROMPTS[0], "response": text} for text in (" a good film", REFERENCE)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ["--data", str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    told += ["--rewards", json.dumps([source(models)]), "--progress", "false"]
    assert main(["score-tokens", *told, "--credit.method", "prefix-difference"]) == 0
    first, second = read_jsonl(tmp_path / "scores.jsonl")
    assert second["sequence_score"] == pytest.approx(1.0, abs=1e-5)
    assert first["sequence_score"] < 1.0
    for row in (first, second):
        assert sum(row["token_scores"]) == pytest.approx(row["sequence_score"], abs=1e-5)


def test_a_policy_learns_from_it(models, tmp_path):
    shown = {"record.sample_every": 1, "record.sample_count": 2}
    settings = {"reward_model": None, "rewards": [source(models)], "credit.method": "terminal"}
    train_policy(tiny_config(models, tmp_path / "run", steps=1, **settings, **shown))
    one = reward(models)
    for row in read_jsonl(tmp_path / "run" / "samples.jsonl"):
        assert row["score"] == pytest.approx(
            one([row["prompt"].strip()], [row["response"]])[0], abs=1e-4
        )


@pytest.mark.parametrize(
    ("model", "others"),
    [
        ("http://host:80", {}),
        ("my.module:function", {}),
        ("my/model", {"judge": JudgingSettings(setup="rlbff", principle="x")}),
    ],
)
def test_sources_that_compare_nothing(model, others):
    with pytest.raises(ConfigError, match="expected one of the two, and a causal language model"):
        RewardSource(model, similarity=SimilaritySettings("file"), **others)
