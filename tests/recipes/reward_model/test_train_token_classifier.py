import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from named_settings import configured
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_tokenizers import CORPUS, byte_level, word_level
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from tokencredit import discriminator_credit
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
    TokenCreditWarning,
)
from tokencredit.recipes.language_model.corpus import IGNORED, byte_level_tokenizer
from tokencredit.recipes.reward_model import train_token_classifier as recipe
from tokencredit.recipes.reward_model.token_labels import (
    LabelledText,
    class_report,
    label_targets,
    labelled_logits,
    labelled_text,
    labelled_texts,
    token_batch,
)
from tokencredit.recipes.reward_model.train_token_classifier import (
    TrainTokenClassifierConfig,
    train_token_classifier,
)
from tokencredit.recipes.training.models import classifier_to_train
from tokencredit.recipes.training.supervised import train_and_held_out
from tokencredit.reward_model.hf_token_classifier import (
    load_token_classifier,
    token_classifier_logits,
)
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_token_rows import EncodedText
from tokencredit.text.reading_settings import ReadingSettings

SOURCES = ("edits", "spans", "steps")

OPEN = ReadingSettings(append_eos=False)


def rows_of(source: str) -> list[dict]:
    if source == "edits":
        return [
            {
                "prompt": f"rate film {row}:",
                "rejected": f" a bad film and a {'slow ' * (row % 3)}plot",
                "edited": f" a good film and a {'slow ' * (row % 3)}plot",
            }
            for row in range(20)
        ]
    if source == "spans":
        texts = [f"the film is {'very ' * (row % 3)}bad and slow {row}" for row in range(20)]
        return [
            {
                "text": text,
                "spans": [
                    {"start": text.index(word), "end": text.index(word) + len(word), "label": label}
                    for word, label in (("bad", "major"), ("slow", "minor"))
                ],
            }
            for text in texts
        ]
    return [
        {
            "prompt": f"rate film {row}:",
            "completions": ["a good film", "a bad plot", "very good"][: 2 + row % 2],
            "labels": [True, False, True][: 2 + row % 2],
        }
        for row in range(20)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled data of every kind, and a tiny language model to start from."""
    folder = tmp_path_factory.mktemp("inputs")
    for source in SOURCES:
        lines = (json.dumps(row) + "\n" for row in rows_of(source))
        (folder / f"{source}.jsonl").write_text("".join(lines))
    save_start(folder / "lm", byte_level_tokenizer(CORPUS, vocab_size=320))
    return folder


def save_start(folder: Path, tokenizer, architecture: str = "llama", **overrides) -> Path:
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 64} | overrides
    tiny_model(architecture, auto_class=AutoModelForCausalLM, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(folder: Path, output: Path, labels: str = "edits", **settings):
    tiny = {
        "batch_size": 8,
        "held_out": 0.2,
        "max_length": 64,
        "learning_rate": 1e-3,
        "progress": False,
        "severities": ("minor", "major") if labels == "spans" else (),
    }
    return configured(
        TrainTokenClassifierConfig,
        data=str(folder / f"{labels}.jsonl"),
        output=str(output),
        labels=labels,
        **({"model": str(folder / "lm")} | tiny | settings),
    )


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "judge"
    return train_token_classifier(config(folder, run, epochs=8.0, learning_rate=1e-2))


def rows_of_data(settings):
    return train_and_held_out(settings, partial(recipe._load, settings), text=labelled_text)[:2]


def labelled(settings):
    model, tokenizer = classifier_to_train(
        AutoModelForTokenClassification,
        settings.model,
        settings.loading,
        max_length=settings.max_length,
        id2label=dict(enumerate(settings.classes)),
    )
    data, _ = rows_of_data(settings)
    return (
        model,
        tokenizer,
        labelled_texts(
            settings, reading_of(model, tokenizer, settings.reading, training=True), data
        ),
    )


def shown(tokenizer, row: LabelledText) -> list[tuple[str, int]]:
    """Text and label of each token that has one."""
    pairs = zip(row.text.input_ids, row.labels, strict=True)
    return [(tokenizer.decode([token]), label) for token, label in pairs if label != IGNORED]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_folder_is_a_hugging_face_classifier(trained):
    model = AutoModelForTokenClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.reading == {"template": "plain", "append_eos": True}
    ours, _ = load_token_classifier(trained)
    encoded = encode_responses(tokenizer, ["rate film 3:"], [" a good film"])
    logits = token_classifier_logits(ours, encoded.batch)
    start = encoded.batch.prompt_ids.shape[1]
    expected = model(encoded.batch.input_ids).logits[:, start:].detach()
    torch.testing.assert_close(logits, expected)


def test_what_was_put_in_is_paid_and_what_was_taken_out_charged(trained):
    model, tokenizer = load_token_classifier(trained)
    encoded = encode_responses(tokenizer, ["rate film 3:"] * 2, [" a good film", " a bad film"])
    batch = encoded.batch
    scores = discriminator_credit(token_classifier_logits(model, batch), batch.response_mask)
    said = [
        {tokenizer.decode(token): score.item() for token, score in zip(ids, row, strict=True)}
        for ids, row in zip(batch.response_ids, scores, strict=True)
    ]
    assert said[0][" good"] > 0.8
    assert said[1][" bad"] < -0.8
    assert abs(said[0][" a"]) < 0.3


@pytest.mark.parametrize("source", SOURCES)
def test_a_few_epochs_tell_the_classes_apart(folder, trained, tmp_path, source):
    run = trained
    if source != "edits":
        settings = {"epochs": 8.0, "learning_rate": 1e-2}
        run = train_token_classifier(config(folder, tmp_path / "judge", source, **settings))
    report = json.loads((run / "token_report.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert report["accuracy"] > 0.95 > report["majority"]
    assert metrics["held_out_accuracy"] == report["accuracy"]
    assert all(one["auroc"] > 0.95 and one["f1"] > 0.9 for one in report["classes"].values())
    names = {"edits": {"negative", "positive"}, "spans": {"correct", "minor", "major"}}
    assert set(report["classes"]) == names.get(source, {"bad", "good"})


def test_labels_of_edits(folder, tmp_path):
    _, tokenizer, rows = labelled(config(folder, tmp_path, held_out=0.0))
    assert len(rows) == 40
    before, after = (dict(shown(tokenizer, row)) for row in rows[:2])
    kept = {" a": 2, " film": 2, "nd": 2, " plot": 2, "<eos>": 2}
    assert before == kept | {" bad": 0}
    assert after == kept | {" good": 1}
    targets = label_targets("edits", 2)
    assert targets.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert label_targets("spans", 3).tolist() == torch.eye(3).tolist()


def test_errors_that_xcomet_found_are_labels(folder, tmp_path):
    """The file of comet-score trains the same classifier as rows of spans."""
    own = [json.loads(line) for line in (folder / "spans.jsonl").read_text().splitlines()]
    rows = [
        {
            "src": "a review:",
            "mt": row["text"],
            "errors": [
                {"start": at["start"], "end": at["end"], "severity": at["label"], "confidence": 0.6}
                for at in row["spans"]
            ],
        }
        for row in own
    ]
    (tmp_path / "errors.json").write_text(json.dumps({"mt.txt": rows}, indent=4))
    (tmp_path / "same.jsonl").write_text(
        "".join(json.dumps({"prompt": "a review:", **row}) + "\n" for row in own)
    )
    rows_config = replace(config(folder, tmp_path, "spans"), data=str(tmp_path / "same.jsonl"))
    xcomet = replace(rows_config, data=str(tmp_path / "errors.json"), span_layout="xcomet")
    assert labelled(xcomet)[2] == labelled(rows_config)[2]
    none = labelled(replace(xcomet, least_confidence=0.7))[2]
    assert {label for row in none for label in row.labels} == {0, IGNORED}
    run = train_token_classifier(replace(xcomet, output=str(tmp_path / "run")))
    report = json.loads((run / "token_report.json").read_text())
    assert set(report["classes"]) == {"correct", "minor", "major"}


def test_labels_of_spans(folder, tmp_path):
    _, tokenizer, rows = labelled(config(folder, tmp_path, "spans", reading=OPEN))
    said = shown(tokenizer, rows[0])
    texts = ["".join(token for token, label in said if label == number) for number in range(3)]
    assert texts[1:] == [" slow", " bad"]
    assert texts[0].startswith("the film is and")


def test_labels_of_steps_stand_at_their_ends(folder, tmp_path):
    _, tokenizer, rows = labelled(config(folder, tmp_path, "steps", held_out=0.0, reading=OPEN))
    assert [label for _, label in shown(tokenizer, rows[0])] == [1, 0]
    assert [token for token, _ in shown(tokenizer, rows[0])] == ["\n", "\n"]
    _, tokenizer, ended = labelled(config(folder, tmp_path, "steps", held_out=0.0))
    assert shown(tokenizer, ended[1])[-1] == ("<eos>", 1)


def test_long_rows_lose_the_start_of_the_prompt_first(folder, tmp_path):
    settings = config(folder, tmp_path, held_out=0.0)
    _, _, (whole, *_) = labelled(settings)
    ids, start = whole.text.input_ids, whole.text.start
    for length in (len(whole) - 2, len(whole) - start + 1, 3):
        _, _, (cut, *_) = labelled(config(folder, tmp_path, held_out=0.0, max_length=length))
        first = min(len(whole) - length, start - 1)
        assert cut.text.input_ids == ids[first : first + length]
        assert cut.labels == whole.labels[first : first + length]
        assert [label != IGNORED for label in cut.labels] == cut.text.response_mask


def test_a_row_without_a_label_is_an_error(folder, tmp_path):
    with pytest.raises(DataError, match=r"has no label in the first .* expected the end of a step"):
        labelled(config(folder, tmp_path, "steps", max_length=3))


def test_both_sides_of_an_edit_stay_together(folder, tmp_path):
    train, held_out = rows_of_data(config(folder, tmp_path))
    assert (len(train), len(held_out)) == (16, 4)
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}


def test_accumulated_passes_equal_one_batch(folder, tmp_path):
    whole = train_token_classifier(config(folder, tmp_path / "whole", batch_size=8))
    parts = train_token_classifier(
        config(folder, tmp_path / "parts", batch_size=2, gradient_accumulation=4)
    )
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_class_weights_others(folder, tmp_path):
    one, same, other = (
        train_token_classifier(config(folder, tmp_path / str(name), class_weights=given))
        for name, given in enumerate([(), (), (1.0, 5.0)])
    )
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(one).items())
    assert not all(torch.equal(v, weights(other)[name]) for name, v in weights(one).items())


def test_a_finished_run_is_left_alone_and_another_is_refused(folder, trained, capsys):
    settings = {"epochs": 8.0, "learning_rate": 1e-2}
    assert train_token_classifier(config(folder, trained, **settings)) == trained
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match="epochs"):
        train_token_classifier(config(folder, trained))


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(NumericError, match="the loss is nan"):
        train_token_classifier(
            config(folder, tmp_path / "judge", learning_rate=1e38, max_grad_norm=1e38, epochs=3.0)
        )
    assert list(tmp_path.iterdir()) == []


def test_lora_is_merged_into_a_whole_model(folder, tmp_path):
    pytest.importorskip("peft", reason="PEFT is an extra")
    run = train_token_classifier(
        config(folder, tmp_path / "judge", lora_rank=2, lora_alpha=4, learning_rate=1e-2)
    )
    after, start = weights(run), weights(folder / "lm")
    assert not [name for name in after if "lora" in name]
    changed = [n for n in start if n in after and not torch.equal(start[n], after[n])]
    assert changed
    assert "model.embed_tokens.weight" not in changed
    load_token_classifier(run)


def test_an_encoder_learns_too(folder, tmp_path):
    tokenizer = word_level(bos=True)
    tiny_model("bert", vocab_size=64).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.warns(TokenCreditWarning, match="another size"):  # the head is drawn anew
        run = train_token_classifier(
            config(folder, tmp_path / "judge", model=str(tmp_path / "bert"), epochs=3.0)
        )
    assert load_token_classifier(run)[0].config.num_labels == 2


def test_a_chat_is_rendered(folder, tmp_path):
    template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
    start = save_start(tmp_path / "lm", byte_level(chat_template=template))
    ask = [{"role": "user", "content": "rate it"}]
    rows = [
        {"prompt": ask, "rejected": f"bad plot {row}", "edited": f"good plot {row}"}
        for row in range(5)
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(tmp_path, tmp_path / "judge", model=str(start))
    _, tokenizer, examples = labelled(settings)
    text = "".join(token for token, _ in shown(tokenizer, examples[0]))
    assert text.startswith("bad plot")
    assert dict(shown(tokenizer, examples[0]))["bad"] == 0


def test_a_pad_token_is_asked_for_and_added(folder, tmp_path):
    start = save_start(tmp_path / "lm", byte_level(bos=True, pad_token=None))
    with pytest.raises(ModelError, match="no pad token"):
        train_token_classifier(config(folder, tmp_path / "judge", model=str(start)))
    run = train_token_classifier(
        config(folder, tmp_path / "judge", model=str(start), pad_token="<filler>")
    )
    model, tokenizer = load_token_classifier(run)
    assert tokenizer.pad_token == "<filler>"
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ("edits", {"severities": ("minor",)}, "for spans alone"),
        ("spans", {"severities": ()}, "expected the labels of the spans"),
        ("spans", {"severities": ("minor", "minor")}, "expected each label once"),
        ("edits", {"span_layout": "xcomet"}, "expected labels 'spans' and no name of a column"),
        ("spans", {"span_layout": "xcomet", "text": "t"}, "no name of a column but that"),
        ("spans", {"least_confidence": 0.5}, "whose spans have none; expected span_layout"),
        (
            "spans",
            {"span_layout": "xcomet", "least_confidence": 1.5},
            r"least_confidence is 1\.5; expected a probability",
        ),
        ("edits", {"class_weights": (1.0, 1.0, 1.0)}, "expected one weight for each of"),
        ("edits", {"max_length": 1}, "expected at least 2"),
        ("edits", {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_contradict_each_other(folder, tmp_path, labels, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "judge", labels, **settings)


@pytest.mark.parametrize(
    ("labels", "settings", "error", "message"),
    [
        ("edits", {"model": "./absent"}, ModelError, "there is no folder"),
        ("edits", {"max_length": 65}, ConfigError, "reads at most 64 tokens"),
        ("edits", {"edited_column": "best"}, DataError, "no column 'best'"),
        ("edits", {"eval_data": "absent.jsonl"}, DataError, "there is no file"),
        ("spans", {"severities": ("minor",)}, DataError, r"example 0: .*'major'; expected one of"),
    ],
)
def test_bad_input_leaves_no_folder(folder, tmp_path, labels, settings, error, message):
    with pytest.raises(error, match=message):
        train_token_classifier(config(folder, tmp_path / "judge", labels, **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_has_no_such_head_is_an_error(folder, tmp_path):
    start = save_start(tmp_path / "lm", byte_level(bos=True), "opt")
    with pytest.raises(ModelError, match="cannot load a model"):
        train_token_classifier(config(folder, tmp_path / "judge", model=str(start)))


def test_batches_are_padded_on_the_right_with_labels_that_do_not_count():
    rows = [
        LabelledText(EncodedText([5, 6, 7], [False, True, True]), [IGNORED, 1, 0]),
        LabelledText(EncodedText([8, 9], [False, True]), [IGNORED, 2]),
    ]
    batch = token_batch(rows, pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["token_labels"].tolist() == [[-100, 1, 0], [-100, 2, -100]]


def test_held_out_logits_do_not_depend_on_batches(folder, tmp_path):
    model, tokenizer, rows = labelled(config(folder, tmp_path))
    several = {"pad_id": tokenizer.pad_token_id, "context": nullcontext()}
    alone = labelled_logits(model, rows, batch_size=1, **several)
    together = labelled_logits(model, rows, batch_size=64, **several)
    torch.testing.assert_close(alone, together)
    assert len(alone[1]) == sum(label != IGNORED for row in rows for label in row.labels)


def test_the_report_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    report = class_report(logits, labels, ["negative", "positive"])
    assert (report["tokens"], report["accuracy"], report["majority"]) == (4, 0.5, 0.5)
    # Of the four pairs (negative, positive), three are in order: 2 > 1, 2 > -3, -1 > -3.
    expected = {"tokens": 2, "f1": 0.5, "auroc": 0.75}
    assert report["classes"] == {"negative": expected, "positive": expected}


def test_what_the_report_cannot_say_is_none():
    report = class_report(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0]), ["a", "b", "c"])
    assert report["classes"]["b"] == {"tokens": 0, "f1": None, "auroc": None}
    assert report["classes"]["a"] == {"tokens": 1, "f1": 1.0, "auroc": None}
    nothing = class_report(torch.zeros(0, 2), torch.zeros(0).long(), ["a", "b"])
    assert (nothing["accuracy"], nothing["majority"]) == (None, None)
