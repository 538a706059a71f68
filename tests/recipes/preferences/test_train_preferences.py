"""`train-preferences` end to end: against TRL, every loss, weights, resuming, bad input."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import run_in_processes, run_script
from named_settings import configured
from preference_cases import NAMES
from readings import training_reading
from safetensors.torch import load_file
from saved_models import save_reward_model
from tiny_reward_training import lines, save_start, write_inputs
from tiny_tokenizers import CHAT_TEMPLATE, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    TokenCreditWarning,
)
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.recipes.preferences import constants
from tokencredit.recipes.preferences import train_preferences as recipe
from tokencredit.recipes.preferences.known import known_rows
from tokencredit.recipes.preferences.objective import (
    Objective,
    answer_statistics,
    constant_weights,
    edited_tokens,
)
from tokencredit.recipes.preferences.rows import SAID, answer_batch, answer_rows
from tokencredit.recipes.preferences.train_preferences import (
    TrainPreferencesConfig,
    train_preferences,
)
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.text.hf_token_rows import EncodedText

SEVERAL = {"responses": [" a good film", " a bad film", " slow"], "scores": [2.0, 1.0, 0.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pairs with everything a loss may ask for, lists, single answers, and tiny models."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    pairs = [
        row | {"chosen_score": 1.5 + at % 2, "rejected_score": 0.5, "soft_label": 0.8}
        for at, row in enumerate(read_jsonl(folder / "bradley-terry.jsonl"))
    ]
    lines(folder / "pairs.jsonl", pairs)
    prompts = [{"prompt": row["prompt"]} for row in pairs]
    lines(folder / "lists.jsonl", [row | SEVERAL for row in prompts])
    singles = [
        {"prompt": row["prompt"], "response": row["chosen"], "score": float(at % 3)}
        for at, row in enumerate(pairs)
    ]
    lines(folder / "singles.jsonl", singles)
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    save_reward_model(folder / "reward", tokenizer)
    for seed, name in enumerate(("teacher", "teacher_reference")):
        moved_model(folder, folder / name, seed=seed)
    return folder


def config(folder: Path, output: Path, loss: str = "dpo", **settings) -> TrainPreferencesConfig:
    kind = PREFERENCE_LOSSES[loss].learns_from
    asked = ("teacher", "teacher_reference")[: PREFERENCE_LOSSES[loss].teachers]
    tiny = {
        "data": str(folder / f"{kind}.jsonl"),
        "model": str(folder / "lm"),
        "batch_size": 4,
        "held_out": 0.2,
        "max_length": 64,
        "learning_rate": 1e-3,
        "progress": False,
        "device": "cpu",
        "log_every": 1,
    } | {name: str(folder / name) for name in asked}
    return configured(TrainPreferencesConfig, output=str(output), loss=loss, **(tiny | settings))


def prepared(settings: TrainPreferencesConfig, folder: Path):
    """Model, rows with their constants, frozen reference and pad id, without a run."""
    data = recipe._load(settings, recipe.Source(settings.data, "train", settings.dataset, None))
    model, tokenizer = recipe._model_to_train(settings)
    rows = answer_rows(settings, training_reading(settings, tokenizer), data)
    folder.mkdir(exist_ok=True)
    known, _ = known_rows(settings, model, tokenizer, rows, rows[:2], folder)
    frozen = recipe.frozen_models(settings, tokenizer)
    return model, known, frozen, int(tokenizer.pad_token_id)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_losses(one: Path, other: Path) -> None:
    """The same numbers up to rounding, which Adam magnifies where a gradient is next to 0."""
    rows, others = (read_jsonl(folder / "metrics.jsonl") for folder in (one, other))
    for row, same in zip(rows, others, strict=True):
        for key in ("loss", "margin"):
            assert same[key] == pytest.approx(row[key], rel=1e-3, abs=1e-5)
    first, second = weights(one), weights(other)
    close = [torch.isclose(second[name], value, atol=1e-5) for name, value in first.items()]
    assert float(torch.cat([one.flatten() for one in close]).float().mean()) > 0.97


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return train_preferences(config(folder, tmp_path_factory.mktemp("run") / "dpo"))


def test_dpo_is_that_of_trl(folder, trained, tmp_path):
    """The same steps as TRL's DPOTrainer, which `train-implicit-reward` runs on the same rows."""
    pytest.importorskip("trl", reason="TRL is an extra")
    from tokencredit.recipes.reward_model.train_implicit_reward import (
        TrainImplicitRewardConfig,
        train_implicit_reward,
    )

    ours = config(folder, trained)
    same = {name: getattr(ours, name) for name in ("data", "model", "training", "evaluation")}
    theirs = train_implicit_reward(
        TrainImplicitRewardConfig(
            output=str(tmp_path / "trl"), max_length=64, progress=False, device="cpu", **same
        )
    )
    rows, others = read_jsonl(trained / "metrics.jsonl"), read_jsonl(theirs / "metrics.jsonl")
    assert len(rows) >= 4
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert row["margin"] == pytest.approx(other["rewards/margins"], rel=1e-2, abs=1e-5)
    # Until the policy moves, both sides of a pair are equal but for rounding.
    moved = [at for at, other in enumerate(others) if abs(other["rewards/margins"]) > 1e-3]
    assert len(moved) >= 2
    for at in moved:
        assert rows[at]["accuracy"] == pytest.approx(others[at]["rewards/accuracies"])
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert abs(rows[-1]["margin"]) > 1e-3


def test_the_folder_is_a_policy_that_names_its_reference(folder, trained):
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.config.dpo_reference == str((folder / "lm").resolve())
    assert model.config.dpo_beta == 0.1
    assert model.config.reading == {"template": "plain", "append_eos": True}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"held_out_loss", "held_out_accuracy", "held_out_margin"} <= set(metrics)
    assert metrics["equal_answers"] == 0
    assert not (trained / "constants").exists()
    assert not (trained / "checkpoints").exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_moves_the_policy(folder, tmp_path, name):
    """One batch of the command's own rows: a finite loss that has a gradient."""
    weighed = {"token_weights_kind": "select"} if name == "sepo" else {}
    if weighed:
        weighed |= {"method": "contrastive-prompts"}
    settings = config(folder, tmp_path / "run", name, **weighed)
    model, known, frozen, pad_id = prepared(settings, tmp_path)
    trainer = recipe.preference_trainer(
        settings, model, known, TrainingRun.of(settings, tmp_path), pad_id=pad_id, frozen=frozen
    )
    inputs = known.batch([0, 1, 2], pad_id=pad_id)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert bool(loss.detach().isfinite())
    assert sum(float(one.abs().sum()) for one in gradients) > 0
    assert all(bool(one.isfinite().all()) for one in gradients)
    measured = trainer.measured.means()
    assert ("accuracy" in measured) == (settings.row.learns_from != "singles")
    assert all(value == value for value in measured.values())
    if settings.row.references == ("reference",):  # nothing has moved yet
        assert measured["log_ratio"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ("pro", {}),
        ("a-lol", {}),
        ("tdpo2", {"lora_rank": 2, "evaluate_every": 2}),
        ("mapl", {"mixed_precision": "bf16"}),
    ],
)
def test_lists_singles_frozen_references_and_built_pairs_train(folder, tmp_path, loss, more):
    if "lora_rank" in more:
        pytest.importorskip("peft", reason="PEFT is an extra")
    output = train_preferences(config(folder, tmp_path / "run", loss, max_steps=3, **more))
    start, after = weights(folder / "lm"), weights(output)
    assert set(start) == set(after)
    assert any(not torch.equal(start[name], after[name]) for name in start)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["held_out_loss"] == metrics["held_out_loss"]
    if loss == "a-lol":  # scores of 0, 1 and 2: some are below what is expected
        assert 0 < metrics["below_expectation"] < 16
    if loss == "mapl":
        assert metrics["train_examples"] == 3 * 16


def test_adapters_start_where_their_base_is(folder, tmp_path):
    pytest.importorskip("peft", reason="PEFT is an extra")
    settings = config(folder, tmp_path / "run", lora_rank=2, learning_rate=1e-2)
    output = train_preferences(settings)
    rows = read_jsonl(output / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert rows[-1]["loss"] != pytest.approx(0.6931, abs=1e-4)


def test_credit_in_equal_parts_weighs_nothing(folder, trained, tmp_path):
    """Weights made of equal credit are 1: the run is the one without them."""
    settings = config(
        folder,
        tmp_path / "run",
        token_weights_kind="credit",
        method="uniform",
        reward_model=str(folder / "reward"),
    )
    assert_same_losses(trained, train_preferences(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"token_weights_kind": "credit", "method": "prefix-difference", "reward_model": "reward"},
        {"token_weights_kind": "select", "method": "attention", "reward_model": "reward"},
        {"token_weights_kind": "credit", "method": "contrastive-prompts"},
        {"token_weights_kind": "decay"},
    ],
)
def test_weights_of_tokens_are_constants_of_mean_one(folder, tmp_path, settings):
    if "reward_model" in settings:
        settings = settings | {"reward_model": str(folder / "reward")}
    asked = config(folder, tmp_path / "run", **settings)
    _, known, _, pad_id = prepared(asked, tmp_path)
    assert known.names == ("reference", "weights")
    differ = False
    for row, answers in zip(known.rows, known.constants, strict=True):
        for text, numbers in zip(row.texts, answers, strict=True):
            assert len(numbers) == len(text) - text.start
            assert float(numbers[:, 1].mean()) == pytest.approx(1.0, rel=1e-4)
            assert bool((numbers[:, 1] >= 0).all())
            differ |= float(numbers[:, 1].std()) > 1e-3
    assert differ
    inputs = known.batch([0, 3], pad_id=pad_id)
    model, _ = recipe._model_to_train(asked)
    outputs = answer_statistics(model, **{k: v for k, v in inputs.items() if k not in SAID})
    answers, _ = Objective(asked, known.names).answers(outputs, inputs)
    assert not answers.token_weights.requires_grad
    assert not answers.token_weights[~answers.response_mask].any()


@pytest.mark.parametrize("settings", [{}, {"loss": "tdpo2"}])
def test_the_prompt_of_a_pair_is_read_once(folder, tmp_path, settings):
    asked = config(folder, tmp_path / "run", **settings)
    model, known, frozen, pad_id = prepared(asked, tmp_path)
    rows = [replace(row, texts=tuple(longer(text) for text in row.texts)) for row in known.rows]
    inputs = answer_batch(rows, [0, 3, 1], pad_id=pad_id)
    said = recipe.said_of_answers(asked, known, frozen)
    given = {name: value for name, value in inputs.items() if name not in SAID}
    shapes = []
    for one in (model, *frozen):
        one.base_model.register_forward_pre_hook(
            lambda _, __, read: shapes.append(read["input_ids"].shape), with_kwargs=True
        )
    together = said(model, **given)
    (joined,) = {shape for shape in shapes if shape[0] == 3}
    assert shapes.count(joined) == 1 + len(frozen)
    assert joined.numel() < 0.9 * inputs["input_ids"].numel()
    apart = said(model, **(given | {"present": None}))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def longer(text):
    """The text with a prompt of twice the length."""
    again = text.input_ids[: text.start]
    return EncodedText(again + text.input_ids, [False] * len(again) + text.response_mask)


def test_chosen_tokens_of_high_credit_weigh_more_and_rejected_ones_less(folder, tmp_path):
    asked = config(
        folder,
        tmp_path / "run",
        token_weights_kind="credit",
        method="prefix-difference",
        reward_model=str(folder / "reward"),
    )
    _, known, _, _ = prepared(asked, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    model, _ = recipe._model_to_train(asked)
    made = constants.token_credit_of(asked, model, tokenizer, pad_id=0)
    credit = made(known.rows[:3])
    for at, (row, sign) in enumerate([(r, s) for r in range(3) for s in (1, -1)]):
        found = known.constants[row][at % 2][:, 1]
        order = credit[at].argsort()
        assert bool((sign * found[order].diff() >= -1e-5).all())


def test_edits_weigh_what_differs_with_either_confidence(folder, tmp_path):
    found = []
    for confidence in ("policy", "own"):
        asked = config(folder, tmp_path / "run", token_weights_kind="edits", confidence=confidence)
        model, known, _, pad_id = prepared(asked, tmp_path)
        with torch.no_grad():  # a policy that has moved from its reference
            for weight in model.parameters():
                weight += 0.05 * torch.randn_like(weight)
        inputs = known.batch([4, 1], pad_id=pad_id)
        outputs = answer_statistics(model, **{k: v for k, v in inputs.items() if k not in SAID})
        answers, _ = Objective(asked, known.names).answers(outputs, inputs)
        edited = inputs["edited"]
        ((own, _),) = edited_tokens(asked, [known.rows[4]])
        assert edited[0].tolist() == own.tolist() + [False] * (edited.shape[1] - len(own))
        assert edited.any()
        assert not edited.all()
        kept = answers.token_weights[answers.response_mask & ~edited]
        assert kept.tolist() == [1.0] * len(kept)
        assert bool((answers.token_weights[edited] > 1).all())
        assert (answers.ref_weights is None) == (confidence == "policy")
        found.append(asked.row.losses(answers, asked.options))
    assert not torch.allclose(*found)


def test_the_regulariser_is_in_the_loss_and_in_the_metrics(folder, trained, tmp_path):
    losses = {}
    for strength in (0.0, 0.5):
        more = {"regulariser_strength": strength}
        if strength:
            more |= {"method": "contrastive-prompts"}
        settings = config(folder, tmp_path / f"run-{strength}", max_steps=1, **more)
        (row,) = read_jsonl(train_preferences(settings) / "metrics.jsonl")
        losses[strength] = row
    assert "regulariser" not in losses[0.0]
    added = losses[0.5]["loss"] - losses[0.0]["loss"]
    assert added == pytest.approx(losses[0.5]["regulariser"], rel=1e-3)
    assert abs(added) > 1e-5


def test_constants_are_computed_once_and_a_stopped_run_goes_on_with_them(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "_ROWS_PER_FILE", 5)
    settings = config(folder, tmp_path / "run", max_steps=2)
    real, asked = constants.response_logprobs, []

    def counted(model, batch, stop=None):
        asked.append(len(batch))
        if stop is not None and len(asked) > stop:
            raise KeyboardInterrupt
        return real(model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(constants, "response_logprobs", lambda *some: counted(*some, stop=4))
        with pytest.raises(KeyboardInterrupt):
            train_preferences(settings)
    kept = sorted((tmp_path / "run" / "constants").glob("*.safetensors"))
    assert 0 < len(kept) < 4
    before = sum(asked[:4])
    asked.clear()
    monkeypatch.setattr(constants, "response_logprobs", counted)
    output = train_preferences(settings)
    assert sum(asked) < 40
    assert before + sum(asked) >= 40  # all answers once; a piece that was not whole again
    whole = train_preferences(config(folder, tmp_path / "whole", max_steps=2))
    assert all(torch.equal(one, weights(whole)[name]) for name, one in weights(output).items())


def moved_model(folder: Path, output: Path, *, seed: int = 1) -> Path:
    """The tiny language model with other weights and the same vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(folder / "lm")
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder / "lm").save_pretrained(output)
    return output


def test_constants_are_those_of_their_model_in_the_order_of_the_loss(folder, tmp_path):
    other = moved_model(folder, tmp_path / "other")
    settings = config(folder, tmp_path / "run", "inpo", reference=str(other))
    model, known, _, pad_id = prepared(settings, tmp_path / "known")
    inputs = known.batch([5, 0, 3], pad_id=pad_id)
    asked = {name: value for name, value in inputs.items() if name not in SAID}
    reference = AutoModelForCausalLM.from_pretrained(other).eval()
    with torch.no_grad():
        expected = [answer_statistics(one, **asked) for one in (reference, model)]
    answers, _ = Objective(settings, known.names).answers(expected[1], inputs)
    mask = answers.response_mask
    assert not torch.allclose(expected[0][mask], expected[1][mask], atol=1e-2)
    for found, one in zip(answers.references, expected, strict=True):
        torch.testing.assert_close(found[mask], one[mask], rtol=1e-4, atol=1e-5)


def test_divergences_are_those_of_whole_distributions_from_the_reference(folder, tmp_path):
    other = moved_model(folder, tmp_path / "other")
    settings = config(folder, tmp_path / "run", "tdpo1", reference=str(other))
    model, known, frozen, pad_id = prepared(settings, tmp_path / "known")
    inputs = known.batch([3], pad_id=pad_id)
    asked = {name: value for name, value in inputs.items() if name not in SAID}
    with torch.no_grad():
        found = recipe.said_of_answers(settings, known, frozen)(model.eval(), **asked)[0, :, 1]
        text = known.rows[3].texts[0]
        ids = torch.tensor([text.input_ids])
        policy, reference = (
            one(ids).logits[0, text.start - 1 : -1].log_softmax(-1) for one in (model, *frozen)
        )
    expected = (reference.exp() * (reference - policy)).sum(-1)
    assert float(expected.min()) > 1e-3
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-3, atol=1e-5)


def test_scores_and_labels_go_with_their_rows(folder, tmp_path):
    for loss in ("copg", "cream"):
        settings = config(folder, tmp_path / "run", loss)
        _, known, _, pad_id = prepared(settings, tmp_path / loss)
        batch = known.batch([1, 4], pad_id=pad_id)
        if loss == "copg":
            assert batch["scores"].tolist() == [[2.5, 0.5], [1.5, 0.5]]
        else:
            assert batch["soft_labels"].tolist() == pytest.approx([0.8, 0.8])
        assert batch["row"].tolist() == [1, 4]


@pytest.mark.parametrize("kind", ["credit", "select"])
def test_answers_of_a_list_that_score_its_mean_are_chosen_sides(folder, tmp_path, kind):
    settings = config(
        folder,
        tmp_path / "run",
        "rrhf",
        token_weights_kind=kind,
        method="contrastive-prompts",
    )
    _, known, _, _ = prepared(settings, tmp_path)
    (row,) = known.rows[:1]
    rising = [[torch.arange(float(length)) for length in row.response_lengths]]
    (found,) = constant_weights(settings, [row], rising)
    assert [bool(one[-1] > one[0]) for one in found] == [True, True, False]


def test_held_out_numbers_do_not_hang_on_the_batch_size(folder, tmp_path):
    found = []
    for size in (4, 3):
        settings = config(folder, tmp_path / "run", batch_size=size)
        model, known, _, pad_id = prepared(settings, tmp_path)
        with torch.no_grad():
            torch.manual_seed(0)
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
        found.append(recipe.held_out_metrics(settings, model, known, (), pad_id=pad_id))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0]["held_out_loss"] != pytest.approx(0.6931, abs=1e-3)


def test_the_reference_of_a_training_before_is_forgotten(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(moved_model(folder, tmp_path / "other"))
    model.config.dpo_reference, model.config.dpo_beta = "before", 7.0
    model.save_pretrained(tmp_path / "other")
    for loss in ("simpo", "inpo"):
        settings = config(folder, tmp_path / "run", loss, model=str(tmp_path / "other"))
        started, _ = recipe._model_to_train(settings)
        assert not {"dpo_reference", "dpo_beta"} & set(vars(started.config))


def test_running_averages_are_part_of_the_checkpoint(folder, tmp_path, monkeypatch):
    """A second pass that is stopped after its first step goes on as if it had not been."""
    more = {"epochs": 2.0, "checkpoint_every": 5, "held_out": 0.2}
    whole = train_preferences(config(folder, tmp_path / "whole", "dft", **more))
    settings = config(folder, tmp_path / "run", "dft", **more)
    real = recipe.with_negative_weights
    visits = []

    def stopped(*some):
        visits.append(1)
        if len(visits) > 6:
            raise KeyboardInterrupt
        return real(*some)

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "with_negative_weights", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_preferences(settings)
    output = train_preferences(settings)
    assert all(torch.equal(one, weights(whole)[name]) for name, one in weights(output).items())


def test_numbers_of_other_answers_are_not_taken(folder, tmp_path):
    settings = config(folder, tmp_path / "run")
    _, known, _, _ = prepared(settings, tmp_path)
    rows, made = known.rows[:4], []

    def ones(some):
        made.append(len(some))
        return [torch.ones(length) for row in some for length in row.response_lengths]

    for _ in range(2):
        found = constants.cached_numbers(tmp_path, "ones", rows, ones)
    assert made == [4]
    assert [[len(one) for one in row] for row in found] == [r.response_lengths for r in rows]
    constants.cached_numbers(tmp_path, "ones", rows[::-1], ones)
    (path,) = (tmp_path / "constants").glob("ones-*")
    path.write_bytes(path.read_bytes()[:-5])
    constants.cached_numbers(tmp_path, "ones", rows[::-1], ones)
    assert made == [4, 4, 4]


def test_answers_end_with_the_end_of_their_turn_and_cut_off_ones_do_not(folder):
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    chat = [{"role": "user", "content": "rate it"}]
    asked = config(folder, Path("run"))
    reading = training_reading(asked, tokenizer)
    data = recipe.JudgedAnswers((chat, chat), ("good", "bad"), (True, False))
    (row,) = answer_rows(asked, reading, [data])
    said = [tokenizer.decode(text.input_ids[text.start :]) for text in row.texts]
    assert said == ["good<eos>", "bad"]
    plain = recipe.JudgedAnswers(("rate it:",) * 2, (" good", " bad"), (False, True))
    reader = training_reading(asked, byte_level())
    (row,) = answer_rows(asked, reader, [plain])
    said = [reader.tokenizer.decode(text.input_ids[text.start :]) for text in row.texts]
    assert said == [" good", " bad<eos>"]


def test_pairs_with_equal_sides_are_left_out_with_their_count(folder, tmp_path, capsys):
    rows = read_jsonl(folder / "pairs.jsonl")
    far = "a very good film and a plot " * 9
    rows[3] = rows[3] | {"chosen": far + "good", "rejected": far + "bad"}
    lines(tmp_path / "pairs.jsonl", rows)
    settings = config(
        folder, tmp_path / "run", data=str(tmp_path / "pairs.jsonl"), held_out=0.0, max_steps=1
    )
    with pytest.warns(TokenCreditWarning, match="1 of 20 pairs have equal sides"):
        output = train_preferences(settings)
    assert json.loads((output / "metrics.json").read_text())["equal_answers"] == 1
    shown = capsys.readouterr().out  # what is learnt, with the end of the turn
    assert "['<eos>']" in shown
    assert "those that the loss counts in brackets" in shown
    assert "the score of the whole" not in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "simpo", "reference": "lm"}, "loss 'simpo', which has no reference"),
        ({"loss": "sepo", "reference": "lm"}, "loss 'sepo', which has no reference"),
        ({"loss": "sepo"}, "token_weights.kind is 'none' with loss 'sepo'.* expected 'select'"),
        ({"margin": 1.0}, "margin is 1.0 with loss 'dpo', which has no such option"),
        ({"loss": "pro", "token_weights_kind": "edits"}, "edits are between two responses"),
        (
            {"loss": "pro", "regulariser_strength": 0.1, "method": "contrastive-prompts"},
            "expected 0, or a loss of pairs",
        ),
        ({"reward_model": "rm"}, "nothing is made of its scores"),
        ({"token_weights_kind": "credit"}, "and there is no reward_model"),
        (
            {"token_weights_kind": "credit", "method": "log-ratio", "reward_model": "rm"},
            "which asks none; expected none",
        ),
        ({"token_weights_share": 0.0}, "token_weights.share is 0.0; expected a number above 0"),
        ({"token_weights_clip": None}, "token_weights.clip is none"),
        ({"token_weights_clip": 2.0}, "token_weights.clip is 2.0"),
        ({"delta": -1.0}, "token_weights.delta is -1.0"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_settings_that_make_no_sense(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("loss", "settings", "error", "message"),
    [
        ("dpo", {"model": "./absent"}, ModelError, "there is no folder"),
        ("dpo", {"max_length": 65}, ConfigError, "reads at most 64 tokens"),
        ("copg", {"data": "bradley-terry"}, DataError, "no row .* can be used.*has no scores"),
        ("cream", {"data": "bradley-terry"}, DataError, "no column 'soft_label'"),
        ("pro", {"data": "bradley-terry"}, DataError, "has no scores"),
        ("dpo", {"reference": "other"}, ModelError, "has another vocabulary"),
        (
            "dpo",
            {"token_weights_kind": "credit", "method": "log-ratio", "credit_model": "other"},
            ModelError,
            "credit.model has another vocabulary",
        ),
        (
            "dpo",
            {"token_weights_kind": "credit", "method": "log-ratio"},
            ConfigError,
            "credit method 'log-ratio' has no model",
        ),
    ],
)
def test_bad_input_leaves_no_folder(folder, tmp_path, loss, settings, error, message):
    other = folder / "other"
    if not other.exists():
        save_start(other, byte_level(bos=True))
    named = {
        key: str(folder / value) if key in ("reference", "credit_model") else value
        for key, value in settings.items()
    }
    if "data" in named:
        named["data"] = str(folder / f"{named['data']}.jsonl")
    with pytest.raises(error, match=message):
        train_preferences(config(folder, tmp_path / "run", loss, **named))
    assert list(tmp_path.iterdir()) == []


def test_credit_that_is_no_number_stops_the_run(folder, tmp_path, monkeypatch):
    method = CREDIT_METHODS["uniform"]
    broken = replace(method, credit=lambda e, s: method.credit(e, s) * torch.nan)
    monkeypatch.setitem(CREDIT_METHODS, "uniform", broken)
    settings = config(
        folder,
        tmp_path / "run",
        token_weights_kind="credit",
        method="uniform",
        reward_model=str(folder / "reward"),
    )
    with pytest.raises(NumericError, match="NaN or infinite"):
        train_preferences(settings)
    assert list(tmp_path.iterdir()) == []


LAUNCH = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from recipes.preferences.test_train_preferences import config
from tokencredit.recipes.preferences.train_preferences import train_preferences
folder, output = map(Path, sys.argv[1:])
train_preferences(config(folder, output, batch_size=2, max_steps=1, held_out=0.2))
"""


def test_two_processes_train_as_one(folder, tmp_path):
    """Four rows in one step: two on each of two processes, or all on one."""
    rows = read_jsonl(folder / "pairs.jsonl")[:5]
    for name in ("lm",):
        (tmp_path / name).symlink_to(folder / name)
    lines(tmp_path / "pairs.jsonl", rows)
    paths = [str(Path(__file__).parents[2]), str(Path(recipe.__file__).parents[3])]
    (tmp_path / "launch.py").write_text(LAUNCH.format(paths=paths))
    run_in_processes(run_script, tmp_path / "launch.py", tmp_path, tmp_path / "two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = train_preferences(
            config(tmp_path, tmp_path / "one", batch_size=4, max_steps=1, held_out=0.2)
        )
    assert_same_losses(one, tmp_path / "two")


def test_running_averages_want_one_process(folder, tmp_path, monkeypatch):
    settings = config(folder, tmp_path / "run", "dft")
    model, known, _, pad_id = prepared(settings, tmp_path)

    class Several(recipe.PreferenceTrainer):
        def __init__(self, *some, **more):
            super().__init__(*some, **more)
            monkeypatch.setattr(type(self.accelerator), "num_processes", 2)

    monkeypatch.setattr(recipe, "PreferenceTrainer", Several)
    with pytest.raises(ConfigError, match="would each keep averages of their own"):
        recipe.preference_trainer(
            settings, model, known, TrainingRun.of(settings, tmp_path), pad_id=pad_id
        )
