import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from named_settings import configured
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_tokenizers import CORPUS, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("trl", reason="TRL is an extra")

from readings import encoded_texts, training_reading

from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
)
from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.recipes.reward_model import train_implicit_reward as recipe
from tokencredit.recipes.reward_model.pair_data import training_pairs
from tokencredit.recipes.reward_model.train_implicit_reward import (
    TrainImplicitRewardConfig,
    train_implicit_reward,
)
from tokencredit.recipes.reward_model.trl_implicit_reward import dpo_batch
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.hf_implicit import (
    implicit_fraction_scores,
    loaded_reference,
    stored_reference,
)
from tokencredit.text.hf_token_rows import EncodedText, response_batch

WORDS = ("good", "bad", "slow", "very good")


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs, and a tiny language model to start from."""
    folder = tmp_path_factory.mktemp("inputs")
    lines(
        folder / "pairs.jsonl",
        [
            {
                "prompt": f"rate film {row}:",
                "chosen": f" a good film and a {WORDS[row % 4]} plot",
                "rejected": f" a bad film {'and a plot ' * (row % 3)}",
            }
            for row in range(12)
        ],
    )
    tokenizer = byte_level_tokenizer(CORPUS, vocab_size=320)
    return save_start(folder / "lm", tokenizer).parent


def save_start(folder: Path, tokenizer, **overrides) -> Path:
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 64} | overrides
    tiny_model("llama", auto_class=AutoModelForCausalLM, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(folder: Path, output: Path, **settings):
    tiny = {
        "model": str(folder / "lm"),
        "batch_size": 4,
        "held_out": 0.2,
        "max_length": 64,
        "learning_rate": 1e-3,
        "progress": False,
        "device": "cpu",
    }
    return configured(
        TrainImplicitRewardConfig,
        data=str(folder / "pairs.jsonl"),
        output=str(output),
        **(tiny | settings),
    )


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return train_implicit_reward(config(folder, tmp_path_factory.mktemp("run") / "dpo"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_folder_is_a_language_model_that_names_its_reference(folder, trained):
    model = AutoModelForCausalLM.from_pretrained(trained)
    AutoTokenizer.from_pretrained(trained)
    assert model.config.dpo_reference == str((folder / "lm").resolve())
    assert (model.config.dpo_beta, model.config.dpo_direction) == (0.1, "chosen")
    assert model.config.reading == {"template": "plain", "append_eos": True}
    assert stored_reference(model.config) == (model.config.dpo_reference, 0.1)
    start = weights(folder / "lm")
    assert any(not torch.equal(value, start[name]) for name, value in weights(trained).items())


def test_reports_stand_beside_the_model(trained):
    rows = json.loads((trained / "prefix_accuracy.json").read_text())
    assert [row["fraction"] for row in rows] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert {row["count"] for row in rows} == {3}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["held_out_accuracy"] == rows[-1]["accuracy"]
    assert (trained / "prefix_accuracy.png").read_bytes().startswith(b"\x89PNG")
    first = read_jsonl(trained / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(torch.tensor(2.0).log())
    assert {"rewards/accuracies", "rewards/margins"} <= set(first)


def test_the_loss_is_that_of_our_own_log_ratios(folder, tmp_path):
    """TRL's loss on its second step, one batch an epoch, from our scores of the model so far."""
    settings = config(folder, tmp_path / "dpo", batch_size=12, held_out=0.0, warmup=0.0)
    train_implicit_reward(settings)
    again = config(
        folder, tmp_path / "again", batch_size=12, held_out=0.0, warmup=0.0,
        model=str(tmp_path / "dpo"), reference=str(folder / "lm"), learning_rate=1e-9,
    )  # fmt: skip
    train_implicit_reward(again)
    loss = read_jsonl(tmp_path / "again" / "metrics.jsonl")[0]["loss"]
    model, tokenizer = recipe._model_to_train(again)
    rows = recipe._encoded_pairs(
        again, training_reading(again, tokenizer), training_pairs(again)[0]
    )
    scores = implicit_fraction_scores(
        model,
        AutoModelForCausalLM.from_pretrained(folder / "lm"),
        [row for side in zip(*rows, strict=True) for row in side],
        dpo_beta=0.1,
        pad_id=tokenizer.pad_token_id,
        batch_size=5,
        context=nullcontext(),
    )
    chosen, rejected = scores[:, -1].chunk(2)
    ours = torch.nn.functional.softplus(rejected - chosen).mean()
    assert abs(float(ours) - 0.6931) > 0.01
    assert loss == pytest.approx(float(ours), rel=1e-4)


def test_implicit_scores_are_sums_of_log_ratios(folder, trained):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    models = [AutoModelForCausalLM.from_pretrained(name) for name in (trained, folder / "lm")]
    texts = [("rate it:", " a good film"), ("rate film 3:", " a bad and slow plot")]
    rows = encoded_texts(
        tokenizer, [p for p, _ in texts], [r for _, r in texts], append_eos=True, max_length=64
    )
    scores = implicit_fraction_scores(
        *models, rows, dpo_beta=0.3, pad_id=0, batch_size=2, context=nullcontext()
    )
    for row, score in zip(rows, scores, strict=True):
        ids = torch.tensor([row.input_ids])
        total, seen = 0.0, []
        for at in range(row.start, len(row)):
            with torch.no_grad():
                new, old = (
                    model(ids[:, :at]).logits[0, -1].log_softmax(-1)[ids[0, at]] for model in models
                )
            total += 0.3 * float(new - old)
            seen.append(total)
        assert float(score[-1]) == pytest.approx(seen[-1], rel=1e-3, abs=1e-5)
        assert float(score[0]) == pytest.approx(seen[-(-len(seen) // 5) - 1], rel=1e-3, abs=1e-5)


def test_reversed_prefers_what_was_rejected(folder, tmp_path):
    settings = {"epochs": 4.0, "learning_rate": 5e-3}
    output = train_implicit_reward(
        config(folder, tmp_path / "dpo", direction="reversed", **settings)
    )
    assert json.loads((output / "metrics.json").read_text())["held_out_accuracy"] == 1.0
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.config.dpo_direction == "reversed"
    tokenizer = AutoTokenizer.from_pretrained(output)
    rows = encoded_texts(
        tokenizer, ["rate film 3:"] * 2, [" a good film", " a bad film"], append_eos=True
    )
    good, bad = implicit_fraction_scores(
        model,
        AutoModelForCausalLM.from_pretrained(folder / "lm"),
        rows,
        dpo_beta=0.1,
        pad_id=0,
        batch_size=2,
        context=nullcontext(),
    )[:, -1]
    assert float(bad) > float(good)


def test_the_other_direction_holds_out_the_same_prompts(folder, tmp_path):
    held_out = [
        {pair.prompt for pair in recipe._pairs(config(folder, tmp_path, direction=direction))[1]}
        for direction in ("chosen", "reversed")
    ]
    assert held_out[0] == held_out[1]


def test_lora_is_merged_into_a_whole_model(folder, tmp_path, capsys):
    pytest.importorskip("peft", reason="PEFT is an extra")
    output = train_implicit_reward(
        config(folder, tmp_path / "dpo", lora_rank=2, lora_alpha=4, learning_rate=1e-2)
    )
    start, after = weights(folder / "lm"), weights(output)
    assert set(start) == set(after)
    changed = [name for name in start if not torch.equal(start[name], after[name])]
    assert changed
    assert "model.embed_tokens.weight" not in changed
    assert read_jsonl(output / "metrics.jsonl")[0]["loss"] == pytest.approx(torch.tensor(2.0).log())
    assert "those that the loss counts in brackets" in capsys.readouterr().out


def test_rows_are_ours_and_the_end_of_a_turn_counts(folder):
    template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
    tokenizer = byte_level(chat_template=template)
    ask = [{"role": "user", "content": "rate it"}]
    pair = tuple(
        encoded_texts(tokenizer, [ask], [answer], append_eos=True)[0]
        for answer in ("good", "bad and slow plot")
    )
    batch = dpo_batch([pair], pad_id=tokenizer.pad_token_id)
    assert batch["attention_mask"].sum(-1).tolist() == [len(row) for row in pair]
    for ids, counted, answer in zip(
        batch["input_ids"], batch["completion_mask"], ("good", "bad and slow plot"), strict=True
    ):
        assert tokenizer.decode(ids[counted.bool()]) == answer + "<eos>"


def test_batches_keep_prompt_and_response_apart():
    rows = [
        EncodedText([5, 6, 7, 8], [False, True, True, False]),
        EncodedText([9, 4], [False, True]),
    ]
    batch = response_batch(rows, pad_id=3)
    assert batch.prompt_ids.tolist() == [[5], [9]]
    assert batch.response_ids.tolist() == [[6, 7, 8], [4, 3, 3]]
    assert batch.response_mask.tolist() == [[True, True, True], [True, False, False]]


def test_a_finished_run_is_left_alone_and_another_is_refused(folder, trained, capsys):
    assert train_implicit_reward(config(folder, trained)) == trained
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match="direction: 'chosen' -> 'reversed'"):
        train_implicit_reward(config(folder, trained, direction="reversed"))


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(NumericError, match="the loss is nan"):
        train_implicit_reward(
            config(folder, tmp_path / "dpo", learning_rate=1e38, max_grad_norm=1e38, epochs=3.0)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["trl", "peft"])
def test_an_extra_that_is_missing_is_named(folder, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"pip install 'tokencredit\[{missing}\]'"):
        train_implicit_reward(config(folder, tmp_path / "dpo", lora_rank=2))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "./absent"}, ModelError, "there is no folder"),
        ({"max_length": 65}, ConfigError, "reads at most 64 tokens"),
        ({"max_length": 4, "truncation": "response-end"}, DataError, "truncation='prompt-start'"),
        ({"chosen_column": "best"}, DataError, "no column 'best'"),
        ({"eval_data": "absent.jsonl"}, DataError, "there is no file"),
    ],
)
def test_bad_input_leaves_no_folder(folder, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train_implicit_reward(config(folder, tmp_path / "dpo", **settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dpo_beta": 0.0}, "dpo_beta is 0.0"),
        ({"lora_rank": 2, "reference": "lm"}, "without its adapter is the reference"),
    ],
)
def test_settings_that_make_no_sense(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "dpo", **settings)


def test_a_reference_with_another_vocabulary_is_refused(folder, tmp_path):
    other = save_start(tmp_path / "other", byte_level(bos=True))
    with pytest.raises(ModelError, match="has another vocabulary"):
        loaded_reference(str(other), AutoTokenizer.from_pretrained(folder / "lm"))


def test_a_model_that_does_not_name_its_reference(folder):
    found = AutoModelForCausalLM.from_pretrained(folder / "lm").config
    with pytest.raises(ConfigError, match="reference and dpo_beta not given"):
        stored_reference(found)
    assert stored_reference(found, reference="lm", dpo_beta=0.2) == ("lm", 0.2)
