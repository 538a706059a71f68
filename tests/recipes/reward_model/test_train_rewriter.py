import json
from pathlib import Path

import pytest
import torch
from named_settings import configured
from readings import reading_of, training_reading
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_tokenizers import CORPUS, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
)
from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.recipes.reward_model import train_rewriter as recipe
from tokencredit.recipes.reward_model.causal_settings import TrainRewriterConfig
from tokencredit.recipes.reward_model.pair_data import training_pairs
from tokencredit.recipes.reward_model.train_rewriter import train_rewriter
from tokencredit.reward_model.hf_rewriter import INSTRUCTION, TEMPLATE, rewriter_logprobs


def write_pairs(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs whose better side says good, and a tiny language model to start from."""
    folder = tmp_path_factory.mktemp("inputs")
    write_pairs(
        folder / "pairs.jsonl",
        [
            {"prompt": f"film {row}:", "chosen": " a good plot", "rejected": " a bad plot"}
            for row in range(12)
        ],
    )
    return save_start(folder / "lm", byte_level_tokenizer(CORPUS, vocab_size=320)).parent


def save_start(folder: Path, tokenizer) -> Path:
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 96}
    tiny_model("llama", auto_class=AutoModelForCausalLM, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(folder: Path, output: Path, **settings):
    tiny = {
        "model": str(folder / "lm"),
        "batch_size": 8,
        "held_out": 0.2,
        "max_length": 96,
        "learning_rate": 1e-3,
        "progress": False,
        "device": "cpu",
    }
    return configured(
        TrainRewriterConfig,
        data=str(folder / "pairs.jsonl"),
        output=str(output),
        **(tiny | settings),
    )


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A rewriter that has seen enough to know that good is better than bad."""
    output = tmp_path_factory.mktemp("run") / "rewriter"
    return train_rewriter(config(folder, output, epochs=12.0, learning_rate=1e-2))


def test_the_folder_is_a_language_model_that_keeps_its_template(trained):
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.config.rewriter_template == TEMPLATE
    assert model.config.rewriter_instruction == INSTRUCTION
    assert model.config.reading == {"template": "plain", "append_eos": True}
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "metrics.json", "metrics.jsonl", "model.safetensors"} <= names


def test_it_keeps_what_is_good_and_not_what_is_bad(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["held_out_accuracy"] == 1.0
    assert metrics["correction_perplexity"] < 2
    assert metrics["identity_perplexity"] < 2
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    response = " a bad plot"
    said = rewriter_logprobs(model, reading_of(model, tokenizer), ["film 3:"], [response])
    spans = said.encoded.response_spans[0]
    behind = (said.likeliest_logprobs - said.logprobs)[0, : len(spans)].tolist()
    worst = max(range(len(spans)), key=lambda token: behind[token])
    start, end = spans[worst]
    assert 0 < start < end <= len(" a bad")


def test_each_pair_gives_a_correction_and_a_row_to_keep(folder, tmp_path, monkeypatch):
    settings = config(folder, tmp_path / "rewriter")
    kept = []
    monkeypatch.setattr(recipe, "_train", lambda _config, _model, rows, *_: kept.extend(rows) or {})
    train_rewriter(settings)
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    shown = [
        (tokenizer.decode(row.input_ids[: row.start]), tokenizer.decode(row.input_ids[row.start :]))
        for row in kept
    ]
    pairs = training_pairs(settings)[0]
    assert len(shown) == 2 * len(pairs)
    for side, rows in (("rejected", shown[: len(pairs)]), ("chosen", shown[len(pairs) :])):
        for pair, (read, written) in zip(pairs, rows, strict=True):
            assert read == f"<bos>{pair.prompt}{getattr(pair, side)}\n\nBetter answer:\n"
            assert written == f"{pair.chosen}<eos>"


def test_conversations_are_rendered(folder, tmp_path):
    template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
    save_start(tmp_path / "lm", byte_level(chat_template=template))
    chats = [
        {
            "prompt": [{"role": "user", "content": f"rate {row}"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
        for row in range(6)
    ]
    write_pairs(tmp_path / "pairs.jsonl", chats)
    settings = config(tmp_path, tmp_path / "rewriter", instruction="again")
    assert train_rewriter(settings) == tmp_path / "rewriter"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    (row,) = recipe._rewriting_rows(
        settings,
        training_reading(settings, tokenizer),
        training_pairs(settings)[1][:1],
        read="rejected",
        write="chosen",
    )
    text = tokenizer.decode(row.input_ids)
    assert text.endswith("assistant\nbad<eos><bos>user\nagain<eos><bos>assistant\ngood<eos>")


def test_the_same_seed_gives_the_same_weights(folder, tmp_path, capsys):
    runs = [train_rewriter(config(folder, tmp_path / name)) for name in "ab"]
    first, second = (load_file(run / "model.safetensors") for run in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert "those that the loss counts in brackets" in capsys.readouterr().out


def test_a_finished_run_is_left_alone_and_another_is_refused(folder, trained, capsys):
    settings = {"epochs": 12.0, "learning_rate": 1e-2}
    assert train_rewriter(config(folder, trained, **settings)) == trained
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match=r"epochs: 12\.0 -> 1\.0"):
        train_rewriter(config(folder, trained, learning_rate=1e-2))


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(NumericError, match="the loss is nan"):
        train_rewriter(
            config(folder, tmp_path / "x", learning_rate=1e38, max_grad_norm=1e38, epochs=3.0)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "./absent"}, ModelError, "there is no folder"),
        ({"max_length": 97}, ConfigError, "reads at most 96 tokens"),
        ({"rejected_column": "worst"}, DataError, "no column 'worst'"),
        ({"eval_data": "absent.jsonl"}, DataError, "there is no file"),
    ],
)
def test_bad_input_leaves_no_folder(folder, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train_rewriter(config(folder, tmp_path / "rewriter", **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_template_without_its_places(folder, tmp_path):
    with pytest.raises(ConfigError, match="once each"):
        config(folder, tmp_path / "rewriter", template="Better:")


def test_a_tokenizer_without_padding_is_told_so(folder, tmp_path):
    save_start(tmp_path / "lm", byte_level(bos=True, pad_token=None))
    with pytest.raises(ModelError, match="no pad token"):
        train_rewriter(config(folder, tmp_path / "rewriter", model=str(tmp_path / "lm")))
    settings = config(folder, tmp_path / "x", model=str(tmp_path / "lm"), pad_token="<unk>")
    assert recipe._model_to_train(settings)[1].pad_token == "<unk>"
