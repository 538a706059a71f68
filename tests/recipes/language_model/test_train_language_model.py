import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from named_settings import configured
from safetensors.torch import load_file
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.errors import ConfigError, DataError, ModelError, NumericError, RunFolderError
from tokencredit.recipes.language_model import train_language_model as recipe
from tokencredit.recipes.language_model.corpus import (
    IGNORED,
    byte_level_tokenizer,
    causal_batch,
    causal_example,
    token_blocks,
)
from tokencredit.recipes.language_model.train_language_model import (
    TrainLanguageModelConfig,
    train_language_model,
)
from tokencredit.recipes.training import supervised, trainer
from tokencredit.text.hf_reading import Reading

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
TEXTS = [f"the film is {word} and the plot is {word}" for word in ("good", "bad", "slow")] * 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rows = [
        {"text": f"{text} {row}", "prompt": f"Film {row}:", "completion": f" {text}"}
        for row, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(data: Path, output: Path, **settings) -> TrainLanguageModelConfig:
    tiny = {
        "architecture": TINY,
        "vocab_size": 300,
        "max_length": 16,
        "batch_size": 8,
        "held_out": 0.2,
        "progress": False,
    }
    return configured(
        TrainLanguageModelConfig, data=str(data), output=str(output), **(tiny | settings)
    )


def texts_of(settings):
    load = partial(recipe._load, settings)
    return supervised.train_and_held_out(settings, load, text=lambda row: row.response)[:2]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train_language_model(config(data, tmp_path_factory.mktemp("run") / "lm"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_folder_is_a_hugging_face_model(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    ids = tokenizer("the film")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the film"
    assert {file.name for file in trained.iterdir()} == {
        "config.json", "config.yaml", "generation_config.json", "metrics.json", "metrics.jsonl",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json", "versions.json",
    }  # fmt: skip


def test_perplexity_is_that_of_the_saved_model_on_held_out_tokens(data, trained):
    """Counted anew from the logits of the saved model, one block at a time."""
    metrics = json.loads((trained / "metrics.json").read_text())
    _, held_out = texts_of(config(data, trained))
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForCausalLM.from_pretrained(trained)
    nats = []
    for row in recipe._causal_examples(config(data, trained), Reading(tokenizer), held_out):
        logprobs = model(row["input_ids"][None]).logits[0].log_softmax(-1)
        nats += [-logprobs[t, token].item() for t, token in enumerate(row["input_ids"][1:])]
    assert metrics["held_out_tokens"] == len(nats)
    assert metrics["held_out_perplexity"] == pytest.approx(
        math.exp(sum(nats) / len(nats)), rel=1e-4
    )


def test_training_lowers_the_loss(data, tmp_path):
    folder = train_language_model(
        config(data, tmp_path / "lm", epochs=12.0, learning_rate=1e-2, batch_size=4)
    )
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data, trained, tmp_path):
    again = train_language_model(config(data, tmp_path / "again"))
    other = train_language_model(config(data, tmp_path / "other", seed=1))
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(trained).items())
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights(trained)[name], weights(other)[name])


def test_accumulated_passes_equal_one_batch(data, tmp_path):
    settings = {"limit": 12, "held_out": 0.0, "warmup": 0.0}
    whole = train_language_model(config(data, tmp_path / "whole", batch_size=8, **settings))
    parts = train_language_model(
        config(data, tmp_path / "parts", batch_size=2, gradient_accumulation=4, **settings)
    )
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-4)


def test_a_finished_run_is_left_alone(data, trained, capsys):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert train_language_model(config(data, trained, progress=True)) == trained
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out


def test_a_folder_with_another_run_is_not_overwritten(data, trained):
    with pytest.raises(RunFolderError, match="holds another run"):
        train_language_model(config(data, trained, seed=5))


def test_a_run_that_was_interrupted_starts_again(data, trained, tmp_path):
    """Everything but the model is there, as after a kill."""
    folder = tmp_path / "lm"
    train_language_model(config(data, folder))
    (folder / "config.json").unlink()
    train_language_model(config(data, folder))
    assert torch.equal(weights(folder)["model.norm.weight"], weights(trained)["model.norm.weight"])


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(data, tmp_path):
    with pytest.raises(NumericError, match=r"the loss is (nan|inf).*lower training.learning_rate"):
        train_language_model(
            config(data, tmp_path / "lm", learning_rate=1e38, max_grad_norm=1e38, epochs=3.0)
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_not_written(data, tmp_path, monkeypatch):
    """The last step of a run has no loss after it that could show the damage."""

    def spoil(self, *arguments, **keywords):
        loss = type(self).__mro__[1].training_step(self, *arguments, **keywords)
        next(self.model.parameters()).data[0, 0] = math.nan
        return loss

    class Spoiling(trainer.SupervisedTrainer):
        training_step = spoil

    monkeypatch.setattr(
        "tokencredit.recipes.language_model.train_language_model.SupervisedTrainer", Spoiling
    )
    settings = {"held_out": 0.0, "limit": 2, "batch_size": 64}
    with pytest.raises(NumericError, match="is NaN or infinite after training"):
        train_language_model(config(data, tmp_path / "lm", **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_checkpoint_that_the_model_is_written_from(
    data, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    settings = config(data, tmp_path / "lm")
    with monkeypatch.context() as patched:
        patched.setattr(
            "transformers.PreTrainedTokenizerFast.save_pretrained", lambda *_, **__: full()
        )
        with pytest.raises(RunFolderError, match=r"No space left.*disk with room"):
            train_language_model(settings)
    assert not (tmp_path / "lm" / "config.json").exists()
    monkeypatch.setattr(trainer.SupervisedTrainer, "training_step", None)  # no step is left to do
    assert (train_language_model(settings) / "config.json").exists()
    assert not (tmp_path / "lm" / "checkpoints").exists()


def test_completions_of_a_given_model_count_alone(data, trained, tmp_path, monkeypatch):
    """Labels stand on the answer and its end, and nowhere else."""
    batches = []

    def seen(rows):
        batches.append(causal_batch(rows))
        return batches[-1]

    monkeypatch.setattr(
        "tokencredit.recipes.language_model.train_language_model.causal_batch", seen
    )
    folder = train_language_model(
        config(data, tmp_path / "sft", objective="completions", model=str(trained), max_length=64)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for ids, labels in ((i, lab) for b in batches for i, lab in zip(*b.values(), strict=True)):
        counted = labels != IGNORED
        assert torch.equal(labels[counted], ids[counted])
        text = tokenizer.decode(ids[counted])
        assert text.startswith(" the film is")
        assert text.endswith("<eos>")


def test_completions_of_chats_learn_the_end_of_the_turn(data, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"rate film {row}"}],
            "completion": [{"role": "assistant", "content": text}],
        }
        for row, text in enumerate(TEXTS)
    ]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
    byte_level(chat_template=template).save_pretrained(tmp_path / "tokenizer")
    settings = config(
        chats,
        tmp_path / "sft",
        objective="completions",
        tokenizer=str(tmp_path / "tokenizer"),
        max_length=128,
    )
    train_language_model(settings)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    row = recipe._causal_examples(settings, Reading(tokenizer, "chat"), texts_of(settings)[0])[0]
    answer = row["labels"][row["labels"] != IGNORED]
    assert tokenizer.decode(answer).startswith("the film is")
    assert answer[-1] == tokenizer.eos_token_id


def test_an_existing_tokenizer_without_padding_gets_a_pad_token_of_its_own(data, tmp_path):
    byte_level(pad_token=None).save_pretrained(tmp_path / "tokenizer")
    folder = train_language_model(
        config(data, tmp_path / "lm", tokenizer=str(tmp_path / "tokenizer"), held_out=0.0)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == "<pad>"
    assert "held_out_perplexity" not in json.loads((folder / "metrics.json").read_text())


def test_separate_held_out_data(data, tmp_path):
    settings = {"eval_data": str(data), "limit": 4}
    folder = train_language_model(config(data, tmp_path / "lm", **settings))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["held_out_tokens"] < metrics["train_tokens"] <= 1.1 * metrics["held_out_tokens"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 200}, "expected at least 259"),
        ({"max_length": 1}, "at least 2 tokens"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"held_out": 1.0}, r"evaluation.share is 1.0; expected a share in \[0, 1\)"),
        ({"architecture": {"hidden_size": 8}}, "expected a model_type"),
    ],
)
def test_contradictory_settings(data, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(data, tmp_path / "lm", **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"architecture": {"model_type": "lama"}}, ConfigError, "one that transformers knows"),
        ({"architecture": TINY | {"hiden_size": 8}}, ConfigError, r"\['hiden_size'\].*hidden_size"),
        ({"max_length": 5000}, ConfigError, "reads at most 2048 tokens"),
        ({"model": "./absent"}, ModelError, "there is no folder"),
        ({"text_column": "review"}, DataError, "no column 'review'"),
        ({"objective": "completions", "max_length": 4}, DataError, "truncation='prompt-start'"),
        ({"limit": 1, "held_out": 0.5}, DataError, "leave none to train on"),
    ],
)
def test_bad_input_leaves_no_folder(data, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train_language_model(config(data, tmp_path / "lm", **settings))
    assert list(tmp_path.iterdir()) == []


def test_blocks_hold_every_token_with_separators():
    tokenizer = byte_level_tokenizer(TEXTS, vocab_size=280)
    blocks = token_blocks(tokenizer, ["good film", "bad"], length=5)
    assert {len(block) for block in blocks[:-1]} == {5}
    assert tokenizer.decode(torch.cat(blocks)) == "<bos>good film<eos><bos>bad<eos>"


def test_one_separator_where_begin_and_end_are_the_same_token():
    tokenizer = byte_level_tokenizer(TEXTS, vocab_size=280)
    tokenizer.bos_token = "<eos>"
    (block,) = token_blocks(tokenizer, ["good", "bad"], length=64)
    assert tokenizer.decode(block) == "good<eos>bad<eos>"


def test_a_block_of_one_token_has_nothing_to_predict():
    tokenizer = byte_level_tokenizer(["a"], vocab_size=259)
    assert [len(block) for block in token_blocks(tokenizer, ["abcde"], length=6)] == [6]
    tokenizer.bos_token = "<eos>"
    with pytest.raises(DataError, match="expected at least 2"):
        token_blocks(tokenizer, [""], length=6)


def test_blocks_need_an_end_of_sequence():
    tokenizer = byte_level_tokenizer(["a"], vocab_size=259)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        token_blocks(tokenizer, ["a"], length=6)


def test_the_learnt_tokenizer_spells_what_it_has_not_seen():
    tokenizer = byte_level_tokenizer(["good"], vocab_size=259)
    for text in ("naïve 日本 🙂", " two  spaces\n", "<b>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_padding_has_no_label_and_changes_no_score():
    short, long = torch.tensor([5, 6]), torch.tensor([5, 6, 7, 8])
    batch = causal_batch([causal_example(short), causal_example(long, start=2)])
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, IGNORED], [IGNORED, IGNORED, 7, 8]]
