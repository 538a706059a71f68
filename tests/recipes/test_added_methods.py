"""A method that is added to a table is in every command, without another edit."""

import json

import pytest
import torch
from saved_models import save_reward_model
from tiny_policy import write_models
from tiny_tokenizers import byte_level

from tokencredit.aggregation.combining import worst_case_scores
from tokencredit.aggregation.methods import AGGREGATIONS, Aggregation
from tokencredit.cli import main
from tokencredit.credit.methods import CREDIT_METHODS, CreditMethod
from tokencredit.recipes.run.run_folder import read_jsonl

MARKED = [
    {"text": "a very good film", "spans": [[7, 11]], "label": 1},
    {"text": "the plot is bad", "spans": [[12, 15]], "label": 0},
]


def on_the_first_token(evidence, settings):
    """`credit.beta` times the score, on the first token of a response."""
    mask = evidence.response_mask
    first = mask & (mask.long().cumsum(-1) == 1)
    return settings.beta * evidence.sequence_scores.float()[:, None] * first


@pytest.fixture
def mine(monkeypatch):
    method = CreditMethod(
        on_the_first_token,
        "the score on the first token",
        needs=("sequence_scores",),
        conserves="no",
        causal=False,
    )
    monkeypatch.setitem(CREDIT_METHODS, "mine", method)


@pytest.fixture
def reward_model(tmp_path):
    save_reward_model(tmp_path / "reward", byte_level(bos=True))
    return str(tmp_path / "reward")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.usefixtures("mine")
def test_score_tokens_pays_by_it(reward_model, tmp_path):
    data = written(tmp_path / "data.jsonl", [{"prompt": "the film", "response": " is good"}])
    output = tmp_path / "scores.jsonl"
    told = ["--data", data, "--output", str(output), "--credit.method", "mine"]
    options = ["--credit.beta", "0.5", "--progress", "false"]
    assert main(["score-tokens", "--reward_model", reward_model, *told, *options]) == 0
    (row,) = read_jsonl(output)
    assert row["token_scores"][0] == pytest.approx(0.5 * row["sequence_score"], rel=1e-3)
    assert not any(row["token_scores"][1:])


@pytest.mark.usefixtures("mine")
def test_explain_has_its_row(reward_model, capsys):
    told = ["--prompt", "the film", "--response", " is good", "--methods", '["mine", "uniform"]']
    assert main(["explain", "--reward_model", reward_model, *told]) == 0
    shown = capsys.readouterr().out
    assert "mine, sum" in shown
    assert "uniform, sum" in shown


@pytest.mark.usefixtures("mine")
def test_compare_credit_has_its_row(reward_model, tmp_path):
    marked, output = written(tmp_path / "marked.jsonl", MARKED), tmp_path / "compared"
    told = ["--marked", marked, "--output", str(output), "--methods", '["mine"]']
    options = ["--faithfulness_documents", "0", "--resamples", "5", "--heatmaps", "0"]
    told += [*options, "--progress", "false"]
    assert main(["compare-credit", "--reward_model", reward_model, *told]) == 0
    rows = json.loads((output / "comparison.json").read_text())["rows"]
    assert {"mine": "credit"}.items() <= {row["method"]: row["kind"] for row in rows}.items()


@pytest.mark.usefixtures("mine")
def test_serve_offers_it(reward_model):
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from tiny_server import posted

    from tokencredit.recipes.serving.serve import ServeConfig, application_of

    body = {"texts": [{"prompt": "the film", "response": " is good"}], "credit": ["mine"]}
    answer = posted(application_of(ServeConfig(reward_model)), "/score", body)
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["scores"]
    first, *others = row["token_scores"]["mine"]
    assert first == pytest.approx(0.8 * row["sequence_score"], rel=1e-3)
    assert not any(others)


@pytest.mark.usefixtures("mine")
def test_methods_lists_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods", "--kind", "credit"]) == 0
    assert "the score on the first token" in capsys.readouterr().out


def policy_arguments(models, output):
    return [
        *("train-policy", "--policy", str(models / "policy")),
        *("--prompts", str(models / "prompts.jsonl"), "--output", str(output)),
        *("--steps", "1", "--batch_size", "4", "--sampling.max_new_tokens", "5"),
        *("--record.sample_every", "1", "--record.progress", "false", "--machine.device", "cpu"),
    ]


@pytest.mark.usefixtures("mine")
def test_train_policy_pays_by_it(tmp_path):
    models = write_models(tmp_path / "models")
    told = ["--reward_model", str(models / "reward"), "--credit.method", "mine"]
    assert main([*policy_arguments(models, tmp_path / "run"), *told]) == 0
    for sample in read_jsonl(tmp_path / "run" / "samples.jsonl"):
        assert sample["token_scores"][0] == pytest.approx(0.8 * sample["score"], abs=1e-5)
        assert not any(sample["token_scores"][1:])


def test_an_aggregation_combines_the_rewards_of_train_policy(tmp_path, monkeypatch):
    best = Aggregation(
        lambda scores, weights, _: -worst_case_scores(-scores * weights),
        acts="elementwise",
        models=2,
        text="the largest weighted score",
    )
    monkeypatch.setitem(AGGREGATIONS, "mine", best)
    models = write_models(tmp_path / "models")
    rewards = [{"model": str(models / name)} for name in ("reward", "held-out")]
    told = ["--rewards", json.dumps(rewards), "--combine.method", "mine"]
    options = ["--credit.method", "terminal"]
    assert main([*policy_arguments(models, tmp_path / "run"), *told, *options]) == 0
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    for sample in samples:
        assert sample["score"] == pytest.approx(max(sample["scores"].values()), rel=1e-3)
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert {"score/reward", "score/held-out"} <= row.keys()
    assert torch.tensor(row["score"]) >= max(row["score/reward"], row["score/held-out"]) - 1e-4


def test_methods_lists_an_aggregation(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    row = Aggregation(lambda scores, *_: scores[..., 0], acts="linear", models=1, text="the first")
    monkeypatch.setitem(AGGREGATIONS, "mine", row)
    assert main(["methods", "--kind", "combination"]) == 0
    assert "the first" in capsys.readouterr().out
