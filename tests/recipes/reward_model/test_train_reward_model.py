import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from readings import encoded_texts, training_reading
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_reward_training import config, lines, loss_of, save_start, write_inputs
from tiny_tokenizers import byte_level, word_level
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tokencredit.cli import main
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
    TokenCreditWarning,
)
from tokencredit.recipes.reward_model import train_reward_model as recipe
from tokencredit.recipes.reward_model.evaluate_reward_model import (
    EvaluateRewardModelConfig,
    evaluate_reward_model,
)
from tokencredit.recipes.reward_model.examples import (
    JudgedRow,
    judgement_text,
    reward_batch,
    score_reading,
)
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.recipes.training.supervised import held_out_rows, train_and_held_out
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.reward_model.objectives import OBJECTIVES, Objective
from tokencredit.scorers.hf_fractions import counted_scores, fraction_scores
from tokencredit.scorers.hf_trained_reading import trained_segment_ends
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.hf_token_rows import (
    EncodedText,
    read_every_token,
    read_last_token,
    right_padded,
    scored_rows,
    sequence_start,
)
from tokencredit.text.reading_settings import ReadingSettings

BOTH = [("bradley-terry", "last"), ("bradley-terry", "every"), ("classification", "last"),
        ("classification", "every")]  # fmt: skip
OTHERS = [("bradley-terry", {"positions": "pairs", "prefix_step": 8}),
          ("bradley-terry", {"positions": "segments", "segment_length": 3}),
          ("classification", {"positions": "bootstrapped", "bootstrap_lambda": 0.5}),
          ("regression", {"positions": "last"})]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return train_reward_model(config(folder, tmp_path_factory.mktemp("run") / "rm"))


def rows_of_data(settings):
    return train_and_held_out(settings, partial(recipe._load, settings), text=judgement_text)[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_folder_is_a_hugging_face_classifier(trained):
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.reading == {"template": "plain", "append_eos": True}
    assert tokenizer.padding_side == "right"
    ours, _ = load_reward_model(trained)
    encoded = encode_responses(tokenizer, ["rate film 3:"], [" a good film"])
    ids = encoded.batch.input_ids
    score = model(ids, attention_mask=encoded.attention_mask).logits[0, 0]
    torch.testing.assert_close(score_responses(ours, encoded.batch).sequence_scores[0], score)


def test_reports_stand_beside_the_model(trained, capsys):
    rows = json.loads((trained / "prefix_accuracy.json").read_text())
    assert [row["fraction"] for row in rows] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert {row["count"] for row in rows} == {4}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["held_out_accuracy"] == rows[-1]["accuracy"]
    calibration = json.loads((trained / "calibration.json").read_text())
    assert [row["fraction"] for row in calibration] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert {sum(part["count"] for part in row["curve"]) for row in calibration} == {4}
    error = calibration[-1]["expected_calibration_error"]
    assert metrics["expected_calibration_error"] == error
    for name in ("prefix_accuracy", "calibration"):
        assert (trained / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("objective", "positions"), BOTH)
def test_a_few_epochs_tell_good_from_bad(folder, tmp_path, objective, positions):
    settings = {"epochs": 8.0, "learning_rate": 1e-2, "positions": positions}
    output = train_reward_model(config(folder, tmp_path / "rm", objective, **settings))
    rows = json.loads((output / "prefix_accuracy.json").read_text())
    assert rows[-1]["accuracy"] == 1.0
    if positions == "every":
        # The second word of either text tells all, and 40 % of it reach that far.
        assert all(row["accuracy"] == 1.0 for row in rows[1:])


@pytest.mark.parametrize(("objective", "positions"), OTHERS)
def test_other_positions_and_ratings_are_learnt_too(folder, tmp_path, objective, positions):
    settings = {"epochs": 3.0 if "prefix_step" in positions else 8.0, "learning_rate": 1e-2}
    output = train_reward_model(config(folder, tmp_path / "rm", objective, **settings, **positions))
    rows = json.loads((output / "prefix_accuracy.json").read_text())
    assert rows[-1]["accuracy"] == 1.0
    assert load_reward_model(output)[0].config.num_labels == 1


@pytest.mark.parametrize(("objective", "positions"), BOTH)
def test_the_loss_comes_from_one_pass_per_response(folder, tmp_path, objective, positions):
    """The loss of a batch equals that of every prefix scored in a pass of its own."""
    settings = config(folder, tmp_path / "rm", objective, positions=positions)
    model, tokenizer = recipe._model_to_train(settings)
    judged = recipe._judged_rows(
        settings, training_reading(settings, tokenizer), rows_of_data(settings)
    )[:3]
    read_at = score_reading(settings.row.reading, judged, None)
    loss = loss_of(model, judged, tokenizer, read_at, objective=objective, positions=positions)

    def prefix_scores(row: EncodedText) -> torch.Tensor:
        first = row.start if positions == "every" else len(row) - 1
        prefixes = [torch.tensor([row.input_ids[: end + 1]]) for end in range(first, len(row))]
        return torch.cat([model(prefix).logits[:, 0] for prefix in prefixes])

    losses = []
    for one in judged:
        scores = [prefix_scores(row) for row in one.responses]
        if objective == "classification":
            losses.append((torch.nn.functional.softplus(-scores[0]) if one.target else
                           torch.nn.functional.softplus(scores[0])).mean())  # fmt: skip
        else:
            length = max(map(len, scores))
            held = [torch.cat([s, s[-1:].expand(length - len(s))]) for s in scores]
            losses.append(torch.nn.functional.softplus(held[1] - held[0]).mean())
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_accumulated_passes_equal_one_batch(folder, tmp_path):
    whole = train_reward_model(config(folder, tmp_path / "whole", batch_size=8))
    parts = train_reward_model(
        config(folder, tmp_path / "parts", batch_size=2, gradient_accumulation=4)
    )
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_weights(folder, trained, tmp_path):
    again = train_reward_model(config(folder, tmp_path / "rm"))
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(trained).items())


def test_a_finished_run_is_left_alone_and_another_is_refused(folder, trained, capsys):
    before = (trained / "config.json").stat().st_mtime_ns
    assert train_reward_model(config(folder, trained)) == trained
    assert (trained / "config.json").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match="positions: 'every' -> 'last'"):
        train_reward_model(config(folder, trained, positions="last"))


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(NumericError, match="the loss is nan"):
        train_reward_model(
            config(folder, tmp_path / "rm", learning_rate=1e38, max_grad_norm=1e38, epochs=3.0)
        )
    assert list(tmp_path.iterdir()) == []


def test_lora_is_merged_into_a_whole_model(folder, tmp_path):
    pytest.importorskip("peft", reason="PEFT is an extra")
    output = train_reward_model(
        config(folder, tmp_path / "rm", lora_rank=2, lora_alpha=4, learning_rate=1e-2)
    )
    start = weights(folder / "lm")
    after = weights(output)
    assert not [name for name in after if "lora" in name]
    changed = [
        name for name in start if name in after and not torch.equal(start[name], after[name])
    ]
    assert changed
    assert "model.embed_tokens.weight" not in changed
    load_reward_model(output)


def test_a_reward_model_with_two_outputs_gets_a_new_head(folder, tmp_path):
    tokenizer = byte_level(bos=True)
    start = tiny_model("llama", vocab_size=len(tokenizer), num_labels=2)
    start.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    output = train_reward_model(config(folder, tmp_path / "rm", model=str(tmp_path / "two")))
    assert load_reward_model(output)[0].config.num_labels == 1


def test_a_reward_model_with_one_output_keeps_its_head(folder, trained, tmp_path):
    settings = config(folder, tmp_path / "rm", model=str(trained))
    assert torch.equal(
        recipe._model_to_train(settings)[0].score.weight, weights(trained)["score.weight"]
    )


def test_an_encoder_learns_whole_responses_only(folder, tmp_path):
    tokenizer = word_level(bos=True)
    start = tiny_model("bert", vocab_size=64)
    start.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    settings = {"model": str(tmp_path / "bert"), "reading": ReadingSettings(append_eos=False)}
    with pytest.raises(ConfigError, match=r"reads in both directions.*or positions='last'"):
        train_reward_model(config(folder, tmp_path / "rm", **settings))
    output = train_reward_model(config(folder, tmp_path / "rm", positions="last", **settings))
    rows = json.loads((output / "prefix_accuracy.json").read_text())
    assert [row["fraction"] for row in rows] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_chats_are_scored_at_the_end_of_the_turn(folder, tmp_path):
    template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
    start = save_start(tmp_path / "lm", byte_level(chat_template=template))
    ask = [{"role": "user", "content": "rate it"}]
    chats = [
        {
            "chosen": [*ask, {"role": "assistant", "content": f"good {row}"}],
            "rejected": [*ask, {"role": "assistant", "content": f"bad plot {row}"}],
        }
        for row in range(20)
    ]
    lines(tmp_path / "bradley-terry.jsonl", chats)
    settings = config(tmp_path, tmp_path / "rm", model=str(start))
    tokenizer = recipe._model_to_train(settings)[1]
    judged = recipe._judged_rows(
        settings, training_reading(settings, tokenizer), rows_of_data(settings)
    )
    batch = reward_batch(judged[:1], pad_id=tokenizer.pad_token_id, read_at=read_every_token)
    counted = [
        tokenizer.decode(ids[at])
        for ids, at in zip(batch["input_ids"], batch["counted"], strict=True)
    ]
    assert counted[0].startswith("good")
    assert counted[0].endswith("<eos>")
    assert train_reward_model(settings) == tmp_path / "rm"


def test_a_pad_token_is_asked_for_and_added(folder, tmp_path):
    start = save_start(tmp_path / "lm", byte_level(bos=True, pad_token=None))
    tokens = len(byte_level(bos=True))
    with pytest.raises(ModelError, match="no pad token"):
        train_reward_model(config(folder, tmp_path / "rm", model=str(start)))
    output = train_reward_model(
        config(folder, tmp_path / "rm", model=str(start), pad_token="<filler>")
    )
    model, tokenizer = load_reward_model(output)
    assert tokenizer.pad_token_id == model.config.pad_token_id == tokens
    assert model.get_input_embeddings().num_embeddings == tokens + 1


def test_padding_with_the_end_of_sequence_warns_and_changes_no_score(folder, tmp_path):
    settings = config(folder, tmp_path / "rm", pad_token="<eos>")
    with pytest.warns(TokenCreditWarning, match="pads with its end-of-sequence token"):
        model, tokenizer = recipe._model_to_train(settings)
    judged = recipe._judged_rows(
        settings, training_reading(settings, tokenizer), rows_of_data(settings)
    )
    rows = [judged[0].responses[0], judged[0].responses[1]]
    assert len(rows[0]) != len(rows[1])
    read = {"pad_id": tokenizer.eos_token_id, "read_at": read_last_token}
    together, apart = (
        [counted_scores(model, *scored_rows(some, **read)) for some in batches]
        for batches in ([rows], [rows[:1], rows[1:]])
    )
    torch.testing.assert_close(together[0], torch.cat(apart))


def test_fractions_come_from_the_prefixes_themselves(folder, tmp_path):
    """One pass gives what the cut texts give, and batches of any size the same."""
    settings = config(folder, tmp_path / "rm", reading=ReadingSettings(append_eos=False))
    model, tokenizer = recipe._model_to_train(settings)
    reading = training_reading(settings, tokenizer)
    judged = recipe._judged_rows(settings, reading, rows_of_data(settings))
    rows = [row for one in judged for row in one.responses]
    several = {"pad_id": tokenizer.pad_token_id, "context": nullcontext()}
    scores = fraction_scores(model, rows, batch_size=5, **several)
    torch.testing.assert_close(scores, fraction_scores(model, rows, batch_size=64, **several))
    row = rows[0]
    length = sum(row.response_mask)
    for column, tenths in enumerate((2, 4, 6, 8, 10)):
        end = row.start + -(-tenths * length // 10)
        cut = torch.tensor([row.input_ids[:end]])
        torch.testing.assert_close(scores[0, column], model(cut).logits[0, 0])


def test_dropout_is_off(folder, tmp_path):
    tokenizer = byte_level(bos=True)
    start = tiny_model("gpt2", vocab_size=len(tokenizer))
    start.config.resid_pdrop = start.config.embd_pdrop = start.config.attn_pdrop = 0.5
    start.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    model, _ = recipe._model_to_train(
        config(folder, tmp_path / "rm", model=str(tmp_path / "start"))
    )
    ids = torch.tensor([tokenizer("a good film")["input_ids"]])
    model.train()
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("classification", {"centering": 0.1}, r"loss\.centering is 0\.1 .* does not read it"),
        ("regression", {"bootstrap_lambda": 0.5}, "one of classification bootstrapped, regression"),
        ("bradly-terry", {}, "objective is 'bradly-terry'; expected one of 'bradley-terry', "),
        ("classification", {"positions": "pairs"}, "expected one of last, every, bootstrapped"),
        ("regression", {"positions": "segments"}, "expected one of last, every, bootstrapped"),
        ("bradley-terry", {"positions": "bootstrapped"}, "one of last, every, pairs, segments"),
        ("bradley-terry", {"prefix_start": 0}, "start is 0"),
        ("bradley-terry", {"segment_length": 0}, "length is 0"),
        ("regression", {"bootstrap_lambda": 2.0}, "expected a number from 0 to 1"),
    ],
)
def test_settings_that_contradict_each_other(folder, tmp_path, objective, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "rm", objective, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "./absent"}, ModelError, "there is no folder"),
        ({"strength_column": "chosen"}, DataError, "expected a finite number"),
        ({"max_length": 65}, ConfigError, "reads at most 64 tokens"),
        ({"max_length": 8, "truncation": "response-end"}, DataError, "raise max_length"),
        ({"chosen_column": "best"}, DataError, "no column 'best'"),
        ({"eval_data": "absent.jsonl"}, DataError, "there is no file"),
    ],
)
def test_bad_input_leaves_no_folder(folder, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train_reward_model(config(folder, tmp_path / "rm", **settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("positions", ["last", "every"])
def test_rankings_are_learnt(folder, tmp_path, positions):
    """Lists of two and three answers, the best of which says good."""
    texts = (" a good film", " a slow film", " a bad film")
    rows = [
        {
            "prompt": f"rate film {row}:",
            "responses": texts[: 2 + row % 2],
            "scores": [2, 1, 0][: 2 + row % 2],
        }
        for row in range(20)
    ]
    lines(tmp_path / "plackett-luce.jsonl", rows)
    settings = {"epochs": 20.0, "learning_rate": 1e-2, "positions": positions}
    settings |= {"model": str(folder / "lm")}
    output = train_reward_model(config(tmp_path, tmp_path / "rm", "plackett-luce", **settings))
    rows = json.loads((output / "prefix_accuracy.json").read_text())
    assert rows[-1]["accuracy"] == 1.0
    assert load_reward_model(output)[0].config.num_labels == 1


def test_what_a_long_row_loses():
    tokenizer = word_level(bos=True)
    prompt, response = "the film is good and", " the plot is bad"
    (whole,) = encoded_texts(tokenizer, [prompt], [response], append_eos=True)
    assert tokenizer.decode(whole.input_ids).endswith("bad <eos>")
    assert (len(whole), whole.start) == (11, 6)
    cut = {
        (truncation, length): encoded_texts(
            tokenizer, [prompt], [response], append_eos=True, max_length=length,
            truncation=truncation,
        )[0]
        for truncation in ("response-end", "prompt-start")
        for length in (11, 8, 3)
        if (truncation, length) != ("response-end", 3)
    }  # fmt: skip
    assert cut["response-end", 11] == cut["prompt-start", 11] == whole
    assert cut["response-end", 8].input_ids == whole.input_ids[:8]
    assert cut["prompt-start", 8].input_ids == [*whole.input_ids[:1], *whole.input_ids[4:]]
    assert cut["prompt-start", 3].input_ids == [*whole.input_ids[:1], *whole.input_ids[5:7]]
    assert cut["prompt-start", 3].response_mask == [False, False, True]


def test_texts_alone_begin_with_one_beginning_of_sequence():
    for tokenizer in (byte_level(bos=True), byte_level(bos=False)):
        (row,) = encoded_texts(tokenizer, [""], ["good film"], append_eos=False)
        bos = tokenizer.bos_token_id
        assert [token == bos for token in row.input_ids] == [True] + [False] * (len(row) - 1)
        assert row.start == 1
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="no token that begins a sequence"):
        sequence_start(tokenizer)


def test_padding_stands_on_the_right():
    rows = [EncodedText([5, 6, 7], [False, True, True]), EncodedText([8, 9], [False, True])]
    ids, attention_mask, response_mask = right_padded(rows, pad_id=3)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 3]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert response_mask.tolist() == [[False, True, True], [False, True, False]]


def test_first_all_chosen_then_all_rejected():
    rows = [EncodedText([number, 9], [False, True]) for number in range(4)]
    batch = reward_batch(
        [JudgedRow((rows[0], rows[1]), 0.0), JudgedRow((rows[2], rows[3]), 1.5)],
        pad_id=7,
        read_at=read_every_token,
    )
    assert batch["input_ids"][:, 0].tolist() == [0, 2, 1, 3]
    assert batch["targets"].tolist() == [0.0, 1.5]


def test_no_prompt_stands_on_both_sides():
    prompts = [f"prompt {row % 10}" for row in range(40)]
    responses = [f"response {row}" for row in range(40)]
    train, held_out = held_out_rows(prompts, responses, fraction=0.25, seed=0)
    assert sorted(train + held_out) == list(range(40))
    assert len(held_out) == 3 * 4
    assert not {prompts[row] for row in train} & {prompts[row] for row in held_out}
    assert held_out_rows(prompts, responses, fraction=0.25, seed=1)[1] != held_out


def test_where_prompts_are_too_few_no_response_stands_on_both_sides():
    responses = [f"response {row % 20}" for row in range(40)]
    train, held_out = held_out_rows([""] * 40, responses, fraction=0.1, seed=0)
    assert len(held_out) == 2 * 2
    assert not {responses[row] for row in train} & {responses[row] for row in held_out}


def test_nothing_is_held_out_of_a_fraction_of_zero():
    assert held_out_rows(["a", "b"], ["c", "d"], fraction=0.0, seed=0) == ([0, 1], [])
    with pytest.raises(DataError, match="leave none to train on"):
        held_out_rows(["a"], ["c"], fraction=0.5, seed=0)


def test_an_objective_is_a_loss_and_a_row_and_every_command_has_it(folder, tmp_path, monkeypatch):
    def hinge_loss(judgements, settings):
        chosen, rejected, *_ = judgements.sides
        return (1 - chosen + rejected).clamp(min=0).mean()

    monkeypatch.setitem(OBJECTIVES, ("hinge", "last"), Objective("pairs", "last", hinge_loss))
    words = ["--data", folder / "bradley-terry.jsonl", "--model", folder / "lm", "--max_length", 64]
    words += ["--objective", "hinge", "--positions", "last", "--training.learning_rate", 1e-2]
    words += ["--training.epochs", 8, "--evaluation.share", 0.2, "--progress", "false"]
    words += ["--output", tmp_path / "rm", "--device", "cpu"]
    assert main(["train-reward-model", *map(str, words)]) == 0
    metrics = json.loads((tmp_path / "rm" / "metrics.json").read_text())
    assert metrics["held_out_accuracy"] == 1.0
    assert metrics["train_loss"] < 0.9  # 1 where all scores are the same
    assert load_reward_model(tmp_path / "rm")[0].config.num_labels == 1


def test_the_flat_name_of_a_setting_is_answered_with_the_one_it_has_now(folder, tmp_path, capsys):
    for old, now in (
        ("epochs", "training.epochs"),
        ("held_out", "evaluation.share"),
        ("lora_rank", "lora.rank"),
        ("prompt_column", "columns.prompt"),
        ("prefix_step", "beginnings.step"),
        ("segment_length", "segments.length"),
        ("center_rewards_coefficient", "loss.centering"),
    ):
        assert main(["train-reward-model", "--data", "x", "--model", "y", "--output",
                     str(tmp_path / "rm"), f"--{old}", "1"]) == 1  # fmt: skip
        assert f"{old!r} is now {now!r}" in capsys.readouterr().err


def test_weights_are_trained_in_float32(folder, tmp_path):
    with pytest.raises(ConfigError, match="expected 'float32', in which weights are trained"):
        config(folder, tmp_path / "rm", dtype="bfloat16")


@pytest.mark.parametrize(
    "segments",
    [{"segments": "entropy", "entropy": 4.38}, {"segments": "ngram", "segment_length": 3}],
)
def test_a_model_of_segments_is_evaluated_as_it_was_trained(folder, tmp_path, segments):
    """`evaluate-reward-model` finds in the configuration what training read, and so the same."""
    data = str(folder / "bradley-terry.jsonl")
    output = train_reward_model(
        config(folder, tmp_path / "rm", positions="segments", eval_data=data, epochs=2.0,
               **segments)
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(output)
    assert model.config.score_positions == "segments"
    assert model.config.score_segments == segments["segments"]
    if segments["segments"] == "entropy":
        assert model.config.score_segment_entropy == 4.38
        assert model.config.score_segment_reference == str((folder / "lm").resolve())
    found = evaluate_reward_model(
        EvaluateRewardModelConfig(str(output), data, str(tmp_path / "found"), progress=False)
    )
    fractions = json.loads((found / "evaluation.json").read_text())["fractions"]
    assert fractions == json.loads((output / "prefix_accuracy.json").read_text())
    scores = json.loads((found / "pairs.jsonl").read_text().splitlines()[0])["chosen_scores"]
    loaded, tokenizer = load_reward_model(output)
    row = json.loads(Path(data).read_text().splitlines()[0])
    (text,) = encoded_texts(tokenizer, [row["prompt"]], [row["chosen"]], append_eos=True)
    (ends,) = trained_segment_ends(loaded, tokenizer)([text])
    assert 1 < sum(ends) < sum(text.response_mask)
    own = loaded(torch.tensor([text.input_ids]))
    at_ends = [
        loaded(torch.tensor([text.input_ids[: at + 1]])).logits[0, 0].item()
        for at, is_end in enumerate(ends)
        if is_end
    ]
    assert scores[-1] == pytest.approx(sum(at_ends) / len(at_ends), rel=1e-3, abs=1e-5)
    assert abs(scores[-1] - own.logits[0, 0].item()) > 1e-4


def test_positions_are_remembered_and_those_of_the_start_forgotten(folder, tmp_path):
    first = train_reward_model(
        config(folder, tmp_path / "first", positions="segments", segment_length=3)
    )
    again = train_reward_model(config(folder, tmp_path / "again", model=str(first)))
    model = AutoModelForSequenceClassification.from_pretrained(again)
    assert model.config.score_positions == "every"
    assert not [name for name in vars(model.config) if name.startswith("score_segment")]


def test_entropy_segments_need_a_language_model(folder, trained, tmp_path):
    settings = {"positions": "segments", "segments": "entropy", "model": str(trained)}
    with pytest.raises(ModelError, match=r"a causal language model as segments\.reference"):
        train_reward_model(config(folder, tmp_path / "rm", **settings))
    reference = {"segments.reference": str(folder / "lm")}
    named = config(folder, tmp_path / "rm", **settings, **reference)
    assert named.entropy_reference == str(folder / "lm")
    halves = config(folder, tmp_path / "rm", **settings, dtype="bfloat16")
    assert halves.loading.dtype == "bfloat16"
    assert config(folder, tmp_path / "rm", segments="entropy").entropy_reference is None


def test_long_prefixes_may_weigh_more(folder, tmp_path):
    runs = {
        weights_: train_reward_model(
            config(folder, tmp_path / weights_, "regression", prefix_weights=weights_, epochs=4.0)
        )
        for weights_ in ("equal", "length")
    }
    first, second = (weights(run)["score.weight"] for run in runs.values())
    assert not torch.equal(first, second)
    with pytest.raises(ConfigError, match=r"loss.prefix_weights is length .* does not read it"):
        config(folder, tmp_path / "x", prefix_weights="length")
