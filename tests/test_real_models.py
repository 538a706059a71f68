"""What `runs/real_models.sh` measures by: parts of answers, their accuracy, and the data of HH."""

import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_models import tiny_model

from tokencredit.toy.hf_tokenizer import toy_tokenizer

RUNS = Path(__file__).parents[1] / "runs"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RUNS))
    spec = importlib.util.spec_from_file_location(name, RUNS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for beside in ("hh_data", "imdb_data"):
        sys.modules.pop(beside, None)
    return module


@pytest.fixture
def tokenizer():
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %} {{ message['content'] }}"
        "{% if message['role'] == 'assistant' %} <eos> the{% else %} plot{% endif %}"
        "{% endfor %}{% if add_generation_prompt %} {% endif %}"
    )
    return tokenizer


def test_parts_of_an_answer_are_open_and_the_whole_is_closed(tokenizer, monkeypatch):
    measure = script("real_prefix_accuracy", monkeypatch)
    answer = "good bad good bad good"
    ids, ends = measure.read_at(tokenizer, [{"role": "user", "content": "the"}], answer)
    words = tokenizer.convert_ids_to_tokens(ids)
    first = len(words) - 2 - 5
    assert words[first : first + 5] == answer.split()
    assert ends == [first, first + 1, first + 2, first + 3, first + 4, len(words) - 1]


def test_scores_are_those_of_the_open_beginning_read_alone(tokenizer, monkeypatch):
    measure = script("real_prefix_accuracy", monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())
    model = tiny_model("llama", vocab_size=len(tokenizer))
    rows = [
        measure.read_at(tokenizer, [{"role": "user", "content": "the"}], answer)
        for answer in ("good bad good", "bad good good bad good good")
    ]
    found = measure.scores(model, rows)
    for (ids, ends), row in zip(rows, found, strict=True):
        for end, score in zip(ends, row, strict=True):
            with torch.no_grad():
                alone = model(torch.tensor([ids[: end + 1]])).logits.squeeze()
            torch.testing.assert_close(score, alone, rtol=1e-4, atol=1e-5)
    assert len({round(value, 3) for value in found[1].tolist()}) > 3


def test_a_dialogue_becomes_messages_without_losing_a_turn(monkeypatch):
    data = script("real_data", monkeypatch)
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    assert data.conversation(prompt) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]


def test_a_difference_of_two_models_has_the_error_of_its_pairs(monkeypatch):
    report = script("real_report", monkeypatch)
    mine, theirs = [[1.0], [1.0], [-1.0], [1.0]], [[1.0], [-1.0], [-1.0], [1.0]]
    assert list(report.differences(mine, theirs)) == ["+0.250 ± 0.250"]


def test_rows_of_runs_on_other_machines_stay(monkeypatch, tmp_path):
    report = script("real_report", monkeypatch)
    kept = tmp_path / "costs.json"
    report.add(kept, {"first": {"cpu_seconds": 1.0}, "second": {"cpu_seconds": 2.0}})
    report.add(kept, {"second": {"cpu_seconds": 3.0}})
    rows = json.loads(kept.read_text())
    assert rows == {"first": {"cpu_seconds": 1.0}, "second": {"cpu_seconds": 3.0}}
