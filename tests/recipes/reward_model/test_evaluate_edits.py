"""Edits of single attributes, scored by the command line."""

import json

import pytest
from saved_models import save_reward_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tokencredit.cli import main
from tokencredit.errors import DataError
from tokencredit.recipes.reward_model.evaluate_edits import EvaluateEditsConfig, evaluate_edits
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from

EDITS = [
    {"prompt": "Q:", "original": " aaaa", "edited": " aa", "attribute": "length", "other": " bbb"},
    {"prompt": "Q:", "original": " aaa", "edited": " aaaa", "attribute": "length"},
    {"prompt": "Q:", "original": " abc", "edited": " xyz", "attribute": "tone", "other": " b"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EDITS))
    (tmp_path / "edit_scores.py").write_text("def length(p, r): return [len(one) for one in r]")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def command(folder, model):
    files = ["--data", str(folder / "edits.jsonl"), "--output", str(folder / "effects")]
    return ["evaluate-edits", "--reward_model", model, *files]


def test_effects_of_each_attribute(folder, capsys):
    assert main(command(folder, "edit_scores:length")) == 0
    length, tone = json.loads((folder / "effects" / "effects.json").read_text())["attributes"]
    assert (length["attribute"], length["change"], length["edits"]) == ("length", -0.5, 2)
    assert (length["compared"], length["flips"]) == (1, 1.0)
    assert (tone["change"], tone["falls"], tone["flips"]) == (0.0, 0.5, 0.0)
    assert "effects of 3 edits" in capsys.readouterr().out


def test_scores_are_those_of_the_model(folder):
    tokenizer = byte_level(bos=True)
    save_reward_model(folder / "rm", tokenizer)
    assert main(command(folder, str(folder / "rm"))) == 0
    model = AutoModelForSequenceClassification.from_pretrained(folder / "rm")
    tokenizer = AutoTokenizer.from_pretrained(folder / "rm")
    for row, edit in zip(read_jsonl(folder / "effects" / "edits.jsonl"), EDITS, strict=True):
        for name in ("original", "edited", "other"):
            if name in edit:
                ids = tokenizer(edit["prompt"] + edit[name], return_tensors="pt")
                expected = model(**ids).logits[0, 0].item()
                assert row[name] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_missing_column_is_named(folder):
    settings = {"reward_model": "edit_scores:length", "data": str(folder / "edits.jsonl")}
    settings |= {"output": str(folder / "out"), "columns.attribute": "kind"}
    with pytest.raises(DataError, match="has no column 'kind'"):
        evaluate_edits(settings_from(EvaluateEditsConfig, settings))
