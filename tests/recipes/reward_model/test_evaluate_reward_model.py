import json
import math
from pathlib import Path

import pytest
import torch
from named_settings import configured
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
)
from tokencredit.evaluation.pair_scores import wilson_interval
from tokencredit.preference.hf_comparisons import Comparison
from tokencredit.recipes.reward_model import evaluate_reward_model as recipe
from tokencredit.recipes.reward_model.evaluate_reward_model import (
    EvaluateRewardModelConfig,
    evaluate_reward_model,
)
from tokencredit.recipes.reward_model.evaluation_report import evaluation_tables
from tokencredit.recipes.reward_model.pair_evaluation import ScoredComparison, evaluation
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.text.reading_settings import ReadingSettings

CHAT = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
PAIRS = [
    {"prompt": f"film {row}:", "chosen": " a good plot" + " and" * row, "rejected": " a bad plot"}
    for row in range(5)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs, a classifier, an encoder, and a language model that names its reference."""
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "pairs.jsonl", PAIRS)
    tokenizer = byte_level(bos=True)
    save_reward_model(folder / "rm", tokenizer)
    save_reward_model(folder / "bert", tokenizer, "bert")
    save_reward_model(folder / "chat", byte_level(bos=True, chat_template=CHAT))
    for name, width in (("lm", 32), ("dpo", 32)):
        model = tiny_model(
            "llama",
            auto_class=AutoModelForCausalLM,
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
        )
        if name == "dpo":
            with torch.no_grad():
                model.lm_head.weight.mul_(torch.linspace(0.8, 1.2, width))
            model.config.dpo_reference = str(folder / "lm")
            model.config.dpo_beta = 0.2
            model.config.eos_appended = True
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, output: Path, **settings):
    usual = {"reward_model": str(folder / "rm"), "data": str(folder / "pairs.jsonl")}
    return configured(
        EvaluateRewardModelConfig,
        output=str(output),
        progress=False,
        **(usual | {"batch_size": 3} | settings),
    )


def found_in(output: Path) -> dict:
    return json.loads((output / "evaluation.json").read_text())


def scored(
    *rows: tuple[list[float], list[float]], subset: str = "", texts=("aa", "b")
) -> list[ScoredComparison]:
    return [
        ScoredComparison(
            Comparison("Q", (texts[0],) * len(chosen), (texts[1],) * len(rejected), subset, number),
            torch.tensor(chosen)[:, None].expand(-1, 5),
            torch.tensor(rejected)[:, None].expand(-1, 5),
        )
        for number, (chosen, rejected) in enumerate(rows)
    ]


def test_scores_are_those_of_the_model_itself(folder, tmp_path):
    output = evaluate_reward_model(config(folder, tmp_path / "out"))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "rm")
    tokenizer = AutoTokenizer.from_pretrained(folder / "rm")
    pairs = read_jsonl(output / "pairs.jsonl")
    assert [pair["name"] for pair in pairs] == list(range(5))
    for pair, row in zip(pairs, PAIRS, strict=True):
        for side in ("chosen", "rejected"):
            ids = torch.tensor([tokenizer(row["prompt"] + row[side])["input_ids"]])
            score = model(ids).logits[0, 0].item()
            assert pair[f"{side}_scores"][-1] == pytest.approx(score, rel=1e-4, abs=1e-5)
            assert pair[f"{side}_characters"] == len(row[side])
        margin = pair["chosen_scores"][-1] - pair["rejected_scores"][-1]
        assert (pair["margin"], pair["correct"]) == (pytest.approx(margin), float(margin > 0))
    found = found_in(output)
    right = sum(pair["correct"] for pair in pairs)
    assert found["accuracy"]["accuracy"] == right / 5
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == wilson_interval(right, 5)
    assert found["fractions"][-1]["accuracy"] == right / 5
    assert (found["kind"], found["reference"]) == ("classification", None)
    for figure in ("prefix_accuracy.png", "calibration.png"):
        assert (output / figure).read_bytes().startswith(b"\x89PNG")


def test_an_implicit_reward_is_found_by_what_its_configuration_says(folder, tmp_path):
    output = evaluate_reward_model(
        config(folder, tmp_path / "out", reward_model=str(folder / "dpo"))
    )
    found = found_in(output)
    assert (found["kind"], found["reference"]) == ("implicit", str(folder / "lm"))
    assert found["dpo_beta"] == 0.2
    models = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ("dpo", "lm")]
    tokenizer = AutoTokenizer.from_pretrained(folder / "dpo")
    row, pair = PAIRS[3], read_jsonl(output / "pairs.jsonl")[3]
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = torch.tensor(
        [[*tokenizer(row["prompt"] + row["chosen"])["input_ids"], tokenizer.eos_token_id]]
    )
    new, old = (
        model(ids)
        .logits[0, :-1]
        .log_softmax(-1)
        .gather(-1, ids[0, 1:, None])[len(prompt) - 1 :]
        .sum()
        for model in models
    )
    assert pair["chosen_scores"][-1] == pytest.approx(0.2 * (new - old).item(), rel=1e-3)
    named = {"reference": str(folder / "lm"), "dpo_beta": 0.4}
    twice = evaluate_reward_model(
        config(folder, tmp_path / "twice", reward_model=str(folder / "dpo"), **named)
    )
    again = read_jsonl(twice / "pairs.jsonl")[3]
    assert again["chosen_scores"][-1] == pytest.approx(2 * pair["chosen_scores"][-1], rel=1e-4)


def test_encoders_read_beginnings_anew(folder, tmp_path):
    output = evaluate_reward_model(
        config(folder, tmp_path / "out", reward_model=str(folder / "bert"))
    )
    assert len(found_in(output)["fractions"]) == 5


def test_batches_change_nothing(folder, tmp_path):
    outputs = [
        evaluate_reward_model(config(folder, tmp_path / str(size), batch_size=size))
        for size in (1, 16)
    ]
    first, second = (read_jsonl(output / "pairs.jsonl") for output in outputs)
    for one, other in zip(first, second, strict=True):
        assert one["chosen_scores"] == pytest.approx(other["chosen_scores"], rel=1e-4, abs=1e-5)


def test_templates(folder, tmp_path):
    chat = {"reward_model": str(folder / "chat")}
    outputs = [
        evaluate_reward_model(
            config(folder, tmp_path / name, **chat, reading=ReadingSettings(name))
        )
        for name in ("auto", "chat", "plain")
    ]
    auto, chats, plain = ((output / "pairs.jsonl").read_text() for output in outputs)
    assert auto == chats != plain
    shown = [
        json.loads((output / "rewardbench" / "eval-set-scores" / "chat.json").read_text())
        for output in outputs
    ]
    assert shown[0]["text_chosen"][0] == "<bos>user\nfilm 0:<eos><bos>assistant\n a good plot<eos>"
    assert shown[2]["text_chosen"][0] == "film 0: a good plot"
    assert [one["chat_template"] for one in shown] == ["tokenizer", "tokenizer", "plain"]


def test_answers_that_were_cut_off_are_read_open(folder, tmp_path):
    data = write(
        tmp_path / "cut.jsonl",
        [{**PAIRS[0], "chosen_ended": one, "rejected_ended": two}
         for one in (True, False) for two in (True, False)],
    )  # fmt: skip
    chat = {"reward_model": str(folder / "chat"), "data": str(data)}
    rows = read_jsonl(
        evaluate_reward_model(config(folder, tmp_path / "out", **chat)) / "pairs.jsonl"
    )
    chosen, rejected = (
        [row[f"{side}_scores"][-1] for row in rows] for side in ("chosen", "rejected")
    )
    assert chosen[0] == pytest.approx(chosen[1], abs=1e-5)
    assert abs(chosen[0] - chosen[2]) > 1e-4
    assert rejected[0] == pytest.approx(rejected[2], abs=1e-5)
    assert abs(rejected[0] - rejected[1]) > 1e-4


def test_the_layout_of_rewardbench(folder, tmp_path):
    data = write(
        tmp_path / "p.jsonl", [{**row, "subset": "ab"[n % 2]} for n, row in enumerate(PAIRS)]
    )
    output = evaluate_reward_model(config(folder, tmp_path / "out", data=str(data)))
    bench, pairs = output / "rewardbench", read_jsonl(output / "pairs.jsonl")
    grouped = json.loads((bench / "eval-set" / "rm.json").read_text())
    columns = json.loads((bench / "eval-set-scores" / "rm.json").read_text())
    said = {"model": "rm", "model_type": "Seq. Classifier", "chat_template": "plain"}
    assert {name: grouped[name] for name in said} == said == {name: columns[name] for name in said}
    assert set(grouped) == {"a", "b", *said}
    names = {"text_chosen", "text_rejected", "results", "subset", "id", "scores_chosen"}
    assert set(columns) == {*names, "scores_rejected", *said}
    assert columns["scores_chosen"] == [pair["chosen_scores"][-1] for pair in pairs]
    assert columns["results"] == [int(pair["margin"] > 0) for pair in pairs]
    results = columns["results"][1::2]
    assert (
        grouped["b"] == sum(results) / len(results) == found_in(output)["subsets"]["b"]["accuracy"]
    )


def test_one_best_of_several(folder, tmp_path):
    rows = [{"prompt": "Q", "chosen": ["good"], "rejected": ["bad", "slow", "a film"], "id": "r"}]
    data = write(tmp_path / "p.jsonl", rows)
    output = evaluate_reward_model(config(folder, tmp_path / "out", data=str(data)))
    pairs = read_jsonl(output / "pairs.jsonl")
    won = all(pair["margin"] > 0 for pair in pairs)
    assert len(pairs) == 3
    assert found_in(output)["best_of_n"]["accuracy"] == float(won)
    columns = json.loads((output / "rewardbench" / "eval-set-scores" / "rm.json").read_text())
    assert columns["scores"] == [
        [pairs[0]["chosen_scores"][-1], *(pair["rejected_scores"][-1] for pair in pairs)]
    ]
    assert columns["text"] == [["Qgood", "Qbad", "Qslow", "Qa film"]]
    assert (columns["results"], columns["num_correct"]) == ([float(won)], [1])
    assert (columns["subset"], columns["id"]) == (["all"], ["r"])


def test_a_model_that_counts_characters_is_told_from_one_that_does_not():
    longer, shorter = ("aaaa", "b"), ("a", "bbbb")
    pairs = scored(([4.0], [1.0]), texts=longer) + scored(([1.0], [4.0]), texts=shorter)
    length = evaluation(pairs, confidence=0.95, bins=10)["length"]
    assert length["longer_wins"]["accuracy"] == length["shorter_wins"]["accuracy"] == 0.5
    assert length["picks_the_longer"]["accuracy"] == 1.0
    assert length["accuracy_where_the_longer_is_better"]["accuracy"] == 1.0
    assert length["accuracy_where_the_shorter_is_better"]["accuracy"] == 0.0
    assert length["score_length_spearman"] == length["margin_length_spearman"] == pytest.approx(1.0)


def test_numbers_by_hand():
    pairs = scored(([2.0], [0.0]), ([0.0], [0.0]), subset="x") + scored(([0.0], [2.0]), subset="y")
    found = evaluation(pairs, confidence=0.95, bins=1)
    assert found["accuracy"]["accuracy"] == pytest.approx(0.5)
    assert (found["accuracy"]["count"], found["accuracy"]["ties"]) == (3, 1)
    assert found["subsets"]["x"]["accuracy"] == 0.75
    assert found["subsets"]["y"]["longer_wins"] == 1.0
    nats = (math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(2))) / 3
    assert found["negative_log_likelihood"] == pytest.approx(nats)
    sure = (2 / (1 + math.exp(-2)) + 0.5) / 3
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(sure - 0.5)
    margin = found["scores"]["margin"]
    assert (margin["mean"], margin["min"], margin["50%"], margin["max"]) == (0.0, -2.0, 0.0, 2.0)
    assert margin["standard_deviation"] == pytest.approx(2.0)
    assert "best_of_n" not in found


def test_what_cannot_be_said_is_null_and_shown_as_a_dash():
    found = evaluation(scored(([1.0], [0.0]), texts=("a", "b")), confidence=0.95, bins=10)
    length = found["length"]
    assert length["picks_the_longer"]["accuracy"] is None
    assert length["margin_length_spearman"] is None
    assert found["subsets"] == {}
    json.dumps(found, allow_nan=False)
    tables = evaluation_tables({"reward_model": "rm", **found})
    assert "-" in list(tables[2].columns[1].cells)


def test_labelled_data_of_several_files(folder, tmp_path):
    row = {"input": "Q", "output_1": " bad", "output_2": " good", "label": 2}
    paths = [str(write(tmp_path / f"{name}.jsonl", [row])) for name in ("one", "two")]
    columns = {"prompt_column": "input", "chosen_column": "output_1",
               "rejected_column": "output_2", "label_column": "label"}  # fmt: skip
    output = evaluate_reward_model(config(folder, tmp_path / "out", data=paths, **columns))
    assert list(found_in(output)["subsets"]) == ["one", "two"]
    columns = json.loads((output / "rewardbench" / "eval-set-scores" / "rm.json").read_text())
    assert columns["text_chosen"] == ["Q good"] * 2


def test_long_rows_lose_the_start_of_the_prompt(folder, tmp_path):
    long = [{**PAIRS[0], "prompt": "zq" * 200}]
    data = str(write(tmp_path / "p.jsonl", long))
    output = evaluate_reward_model(config(folder, tmp_path / "out", data=data))
    assert len(read_jsonl(output / "pairs.jsonl")) == 1
    with pytest.raises(DataError, match="leaves none of max_length 128"):
        evaluate_reward_model(
            config(folder, tmp_path / "other", data=data, truncation="response-end")
        )


def test_an_evaluation_is_replaced_by_the_same_and_by_no_other(folder, tmp_path):
    settings = config(folder, tmp_path / "out")
    assert evaluate_reward_model(settings) == evaluate_reward_model(settings)
    with pytest.raises(RunFolderError, match="bins: 10 -> 5"):
        evaluate_reward_model(config(folder, tmp_path / "out", bins=5))


def test_scores_that_are_no_numbers(folder, tmp_path):
    model = save_reward_model(tmp_path / "nan", byte_level(bos=True))
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(NumericError, match="NaN or infinite scores to the responses"):
        evaluate_reward_model(config(folder, tmp_path / "o", reward_model=str(tmp_path / "nan")))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"reward_model": "./absent"}, ModelError, "there is no folder"),
        ({"reward_model": "{folder}/lm"}, ModelError, "trained for sequence classification"),
        (
            {"reward_model": "{folder}/lm", "kind": "implicit"},
            ConfigError,
            "reference and dpo_beta",
        ),
        ({"reward_model": "{folder}/lm", "reference": "{folder}/lm"}, ConfigError, "^dpo_beta not"),
        ({"data": "absent.jsonl"}, DataError, "there is no file"),
        ({"chosen_column": "best"}, DataError, "no column 'best'"),
    ],
)
def test_bad_input_leaves_no_folder(folder, tmp_path, settings, error, message):
    settings = {name: value.format(folder=folder) for name, value in settings.items()}
    with pytest.raises(error, match=message):
        evaluate_reward_model(config(folder, tmp_path / "out", **settings))
    assert list(tmp_path.iterdir()) == []


def test_conversations_need_a_template(folder, tmp_path):
    ask = {"role": "user", "content": "Q"}
    chats = {side: [ask, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    data = str(write(tmp_path / "p.jsonl", [chats]))
    with pytest.raises(DataError, match="conversations, and the model reads texts as 'plain'"):
        evaluate_reward_model(config(folder, tmp_path / "out", data=data))
    settings = config(folder, tmp_path / "chat", data=data, reward_model=str(folder / "chat"))
    assert found_in(evaluate_reward_model(settings))["accuracy"]["count"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"bins": 0}, "bins is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"dpo_beta": -1.0}, "dpo_beta is -1.0"),
        ({"confidence": 95.0}, "a share between 0 and 1"),
        ({"kind": "classification", "dpo_beta": 0.1}, "only an implicit reward"),
    ],
)
def test_settings_that_make_no_sense(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "out", **settings)


def test_the_same_settings_on_the_command_line(folder, tmp_path, capsys):
    from tokencredit.cli import main

    data = json.dumps([str(folder / "pairs.jsonl")])
    arguments = ["--reward_model", str(folder / "rm"), "--data", data, "--progress", "false"]
    assert main(["evaluate-reward-model", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert "baseline: longer wins" in capsys.readouterr().out
    assert recipe.EvaluateRewardModelConfig is EvaluateRewardModelConfig


def test_one_right_answer_against_many():
    rows = scored(([3.0], [2.0, 1.0]), ([2.0], [2.0, 1.0]), ([0.0], [2.0, 1.0, 3.0]))
    found = evaluation(rows, confidence=0.95, bins=2)["one_against_many"]
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert (found["low"], found["high"]) == wilson_interval(1, 3)
    rank = found["mean_reciprocal_rank"]
    assert rank["mean"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert 1 / 4 <= rank["low"] < rank["mean"] < rank["high"] <= 1
    assert "one_against_many" not in evaluation(scored(([1.0], [0.0])), confidence=0.9, bins=2)
