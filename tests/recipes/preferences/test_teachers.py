"""Losses with teachers, from the settings to the weights: what is kept, resumed and refused."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes.preferences.test_train_preferences import config, moved_model, prepared, weights
from reference import distillation as reference
from saved_models import save_reward_model
from tiny_reward_training import lines, save_start, write_inputs
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit import cli
from tokencredit.errors import ConfigError, ModelError
from tokencredit.recipes.preferences import constants, teachers
from tokencredit.recipes.preferences import train_preferences as recipe
from tokencredit.recipes.preferences.rows import SAID
from tokencredit.recipes.preferences.train_preferences import train_preferences
from tokencredit.recipes.run.run_folder import read_jsonl

LOSSES = ("adpa", "aligndistil", "dckd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pairs, the same as single answers, a policy, a teacher and what it is held against."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    pairs = read_jsonl(folder / "bradley-terry.jsonl")[:10]
    lines(folder / "pairs.jsonl", pairs)
    lines(folder / "singles.jsonl", [{**row, "response": row["chosen"]} for row in pairs])
    for seed, name in enumerate(("teacher", "teacher_reference")):
        moved_model(folder, folder / name, seed=seed)
    save_reward_model(folder / "reward", AutoTokenizer.from_pretrained(folder / "lm"))
    return folder


def said_of(settings, folder: Path, rows=(2, 0)):
    """What the policy and its teachers say of some rows, and the answers."""
    model, known, frozen, pad_id = prepared(settings, folder)
    inputs = known.batch(list(rows), pad_id=pad_id)
    asked = {name: value for name, value in inputs.items() if name not in SAID}
    outputs = recipe.said_of_answers(settings, known, frozen)(model.eval(), **asked)
    return outputs, known, inputs, model


def distributions(name: Path, text) -> list[list[float]]:
    """The logits of a model at each response token."""
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    with torch.no_grad():
        logits = model(torch.tensor([text.input_ids])).logits[0, text.start - 1 : -1]
    return logits.double().tolist()


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_numbers_of_tokens_are_those_of_the_reference_loop(folder, tmp_path, loss, top_k):
    settings = config(folder, tmp_path / "run", loss, top_k=top_k)
    outputs, known, _, _ = said_of(settings, tmp_path / "known")
    text = known.rows[2].texts[0]
    policy, teacher, ref = (
        distributions(folder / name, text) for name in ("lm", "teacher", "teacher_reference")
    )
    options = settings.options
    for column, here in enumerate(zip(policy, teacher, ref, strict=True)):
        kept = reference.likeliest(here[1], top_k or len(here[1]))
        pi, t, u = (reference.events(one, kept) for one in here)
        expected = {
            "dckd": lambda pi=pi, t=t: reference.kl(t, pi),
            "adpa": lambda pi=pi, t=t, u=u: reference.adpa(
                pi, t, u, kept=top_k or len(t), clip=None
            ),
            "aligndistil": lambda pi=pi, t=t, u=u: reference.aligndistil(
                pi,
                t,
                u,
                beta=options.dpo_beta,
                extrapolation=options.extrapolation,
                adaptive="distance",
                size=None,
                anchor="teacher",
                scaling="inverse",
            ),
        }[loss]()
        assert outputs[0, column, 1].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
        token = text.input_ids[text.start + column]
        logprob = math.log(reference.softmax(here[0])[token])
        assert outputs[0, column, 0].item() == pytest.approx(logprob, rel=1e-3)
    assert not outputs[0, len(policy) :].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_keeping_the_whole_vocabulary_is_the_full_form(folder, tmp_path, loss):
    width = AutoModelForCausalLM.from_pretrained(folder / "lm").config.vocab_size
    found = []
    for top_k in (0, width):
        settings = config(folder, tmp_path / "run", loss, top_k=top_k)
        outputs, known, _, _ = said_of(settings, tmp_path / f"known-{top_k}")
        assert (known.taught is None) == (top_k == 0)
        found.append(outputs)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_same_teacher_twice_is_its_plain_divergence(folder, tmp_path):
    same = {"teacher_reference": str(folder / "teacher"), "scaling": "even"}
    settings = config(folder, tmp_path / "run", "aligndistil", **same)
    outputs, known, _, _ = said_of(settings, tmp_path / "known")
    text = known.rows[2].texts[0]
    for column, (policy, teacher) in enumerate(
        zip(*(distributions(folder / name, text) for name in ("lm", "teacher")), strict=True)
    ):
        expected = reference.kl(reference.softmax(policy), reference.softmax(teacher))
        assert outputs[0, column, 1].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    agreeing = {"teacher_reference": same["teacher_reference"]}
    settings = config(folder, tmp_path / "run", "adpa", **agreeing)
    outputs, _, _, _ = said_of(settings, tmp_path / "agreeing")
    assert float(outputs[..., 1].abs().max()) < 1e-5


@pytest.mark.parametrize("top_k", [0, 4])
def test_the_size_of_credit_may_say_how_far_a_target_goes(folder, tmp_path, top_k):
    made = {"adaptive": "credit", "method": "prefix-difference", "top_k": top_k}
    made["reward_model"] = str(folder / "reward")
    settings = config(folder, tmp_path / "run", "aligndistil", **made)
    outputs, known, _, model = said_of(settings, tmp_path / "known")
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    (credit,) = constants.token_credit_of(settings, model, tokenizer, pad_id=0)([known.rows[2]])
    sizes = (credit.abs() / credit.abs().mean()).clamp(max=2.0)
    torch.testing.assert_close(known.taught[2][0][:, -1], sizes, rtol=1e-3, atol=1e-5)
    assert float(sizes.std()) > 1e-2
    text = known.rows[2].texts[0]
    parts = (distributions(folder / name, text) for name in ("lm", "teacher", "teacher_reference"))
    for column, here in enumerate(zip(*parts, strict=True)):
        kept = reference.likeliest(here[1], top_k or len(here[1]))
        expected = reference.aligndistil(
            *(reference.events(one, kept) for one in here),
            beta=0.1,
            extrapolation=10.0,
            adaptive="credit",
            size=sizes[column].item(),
            anchor="teacher",
            scaling="inverse",
        )
        assert outputs[0, column, 1].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_weights_by_the_size_of_credit_have_mean_one(folder, tmp_path):
    made = {"token_weights_kind": "magnitude", "method": "prefix-difference"}
    settings = config(
        folder, tmp_path / "run", "dckd", top_k=3, reward_model=str(folder / "reward"), **made
    )
    _, known, _, model = said_of(settings, tmp_path / "known")
    assert known.names == ("weights",)
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    (credit, _) = constants.token_credit_of(settings, model, tokenizer, pad_id=0)([known.rows[2]])
    expected = credit.abs() / credit.abs().mean()
    torch.testing.assert_close(known.constants[2][0][:, 0], expected, rtol=1e-3, atol=1e-5)
    for row in known.constants:
        for numbers in row:
            assert float(numbers.mean()) == pytest.approx(1.0, rel=1e-4)
            assert bool((numbers >= 0).all())
    assert float(known.constants[0][0].std()) > 1e-2


def test_a_batch_is_its_rows_one_by_one_and_padding_says_nothing(folder, tmp_path):
    settings = config(folder, tmp_path / "run", "adpa", top_k=3)
    model, known, frozen, pad_id = prepared(settings, tmp_path / "known")
    said = recipe.said_of_answers(settings, known, frozen)

    def outputs(rows, garbage=False):
        inputs = known.batch(rows, pad_id=pad_id)
        if garbage:
            off = inputs["attention_mask"] == 0
            inputs["input_ids"][off] = 7
            beyond = torch.arange(inputs["taught"].shape[1]) >= inputs["counted"].sum(-1)[:, None]
            inputs["taught"][beyond] = torch.nan
        return said(model.eval(), **{k: v for k, v in inputs.items() if k not in SAID})

    both = outputs([2, 1])
    torch.testing.assert_close(outputs([2, 1], garbage=True), both)
    for at, row in enumerate((2, 1)):
        alone = outputs([row])
        found = both[2 * at : 2 * at + 2, : alone.shape[1]]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_what_teachers_say_is_computed_once_and_a_stopped_run_goes_on_bit_for_bit(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "_ROWS_PER_FILE", 3)
    more = {"max_steps": 4, "checkpoint_every": 2, "top_k": 3, "batch_size": 2}
    whole = train_preferences(config(folder, tmp_path / "whole", "adpa", **more))
    settings = config(folder, tmp_path / "run", "adpa", **more)
    real, asked = teachers.trained_statistics, []

    def counted(*some, **options):
        asked.append(1)
        if len(asked) > stop:
            raise KeyboardInterrupt
        return real(*some, **options)

    monkeypatch.setattr(teachers, "trained_statistics", counted)
    stop = 3
    with pytest.raises(KeyboardInterrupt):  # while teachers are asked
        train_preferences(settings)
    kept = sorted((tmp_path / "run" / "constants").glob("taught-*.safetensors"))
    assert kept
    stop, before = 99, len(asked)
    steps, compute = [], recipe.Objective.losses

    def stopped(*some):
        steps.append(1)
        if len(steps) > 3:
            raise KeyboardInterrupt
        return compute(*some)

    with monkeypatch.context() as patched:
        patched.setattr(recipe.Objective, "losses", stopped)
        with pytest.raises(KeyboardInterrupt):  # in the middle of training
            train_preferences(settings)
    assert len(asked) > before
    asked.clear()
    output = train_preferences(settings)
    assert not asked
    assert all(torch.equal(one, weights(whole)[name]) for name, one in weights(output).items())
    assert not (output / "constants").exists()


@pytest.mark.parametrize(("loss", "top_k"), [("adpa", 3), ("aligndistil", 0)])
def test_adapters_learn_from_teachers(folder, tmp_path, loss, top_k):
    pytest.importorskip("peft", reason="PEFT is an extra")
    settings = config(
        folder, tmp_path / "run", loss, top_k=top_k, lora_rank=2, max_steps=3, learning_rate=1e-2
    )
    output = train_preferences(settings)
    start, after = weights(folder / "lm"), weights(output)
    assert set(start) == set(after)
    assert any(not torch.equal(start[name], after[name]) for name in start)
    rows = read_jsonl(output / "metrics.jsonl")
    assert all("taught" in row for row in rows)
    assert rows[0]["taught"] != rows[-1]["taught"]


def test_the_policy_comes_closer_to_what_its_teachers_call_for(folder, tmp_path):
    more = {"epochs": 4.0, "learning_rate": 3e-3, "held_out": 0.2, "evaluate_every": 4}
    output = train_preferences(config(folder, tmp_path / "run", "aligndistil", **more))
    rows = [row for row in read_jsonl(output / "metrics.jsonl") if "taught" in row]
    assert rows[-1]["taught"] < 0.7 * rows[0]["taught"]
    metrics = json.loads((output / "metrics.json").read_text())
    assert math.isfinite(metrics["held_out_loss"])


def test_from_the_command_line_on_pairs_with_the_reference_that_the_teacher_names(
    folder, tmp_path, monkeypatch
):
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    model.config.dpo_reference = str(folder / "lm")
    model.save_pretrained(tmp_path / "dpo")
    AutoTokenizer.from_pretrained(folder / "lm").save_pretrained(tmp_path / "dpo")
    command = (
        f"tokencredit train-preferences --data {folder / 'pairs.jsonl'} --model {folder / 'lm'} "
        f"--output {tmp_path / 'run'} --teacher {tmp_path / 'dpo'} --loss aligndistil "
        "--options.top_k 5 --options.extrapolation 15 --options.adaptive none --max_length 64 "
        "--training.max_steps 1 --training.batch_size 4 --device cpu --progress false"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    cli.main()
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train_examples"] > 0
    command = command.replace(
        "aligndistil --options.top_k 5 --options.extrapolation 15 --options.adaptive none",
        "adpa --options.advantage_clip [0,1]",
    )
    monkeypatch.setattr(sys, "argv", command.replace("/run", "/clipped").split())
    cli.main()
    (row,) = read_jsonl(tmp_path / "clipped" / "metrics.jsonl")
    assert row["taught"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "adpa", "teacher": None}, "there is no teacher with loss 'adpa'"),
        ({"loss": "dckd", "teacher": None}, "there is no teacher with loss 'dckd'"),
        ({"loss": "dpo", "teacher": "t"}, "with loss 'dpo'; expected no teacher"),
        ({"loss": "dpo", "teacher_reference": "t"}, "with loss 'dpo'; expected no teacher"),
        ({"loss": "dckd", "teacher_reference": "t"}, "a teacher and no teacher_reference"),
        ({"loss": "adpa", "reference": "t"}, "which has no reference"),
        ({"loss": "adpa", "advantage_clip": [1.0, 0.0]}, "the least and the largest advantage"),
        ({"loss": "adpa", "top_k": -1}, "top_k is -1"),
        ({"loss": "dpo", "top_k": 5}, "top_k is 5 with loss 'dpo', which has no such option"),
        ({"loss": "aligndistil", "adaptive": "credit"}, "and there is no reward_model"),
        ({"loss": "aligndistil", "token_weights_kind": "edits"}, "edits are between two"),
    ],
)
def test_settings_that_make_no_sense(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": "other"}, ModelError, "the teacher '.*' has another vocabulary"),
        (
            {"teacher_reference": "other"},
            ModelError,
            "the teacher_reference '.*' has another vocabulary",
        ),
        ({"teacher_reference": None}, ConfigError, "names no reference; expected the model that"),
        ({"top_k": 9999}, ConfigError, "top_k is 9999 with a vocabulary of"),
        ({"teacher": "absent"}, ModelError, "absent"),
    ],
)
@pytest.mark.parametrize("loss", ["adpa", "aligndistil"])
def test_bad_teachers_leave_no_folder(folder, tmp_path, loss, settings, error, message):
    if not (folder / "other").exists():
        save_start(folder / "other", byte_level(bos=True))
    named = {
        key: f"{folder / value}" if isinstance(value, str) else value
        for key, value in settings.items()
    }
    with pytest.raises(error, match=message):
        train_preferences(config(folder, tmp_path / "run", loss, **named))
    assert list(tmp_path.iterdir()) == []


def test_a_pair_is_its_chosen_answer_where_single_ones_are_learnt_from(folder, tmp_path):
    found = []
    for data in ("pairs", "singles"):
        settings = config(folder, tmp_path / "run", "aligndistil", top_k=2)
        settings = replace(settings, data=str(folder / f"{data}.jsonl"))
        _, known, _, _ = said_of(settings, tmp_path / data)
        found.append([row.texts[0].input_ids for row in known.rows])
    assert found[0] == found[1]
