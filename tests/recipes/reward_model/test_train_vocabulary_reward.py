import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generate_settings import generate_config
from named_settings import configured
from safetensors.torch import load_file
from saved_models import save_reward_model
from tiny_reward_training import lines, save_start, write_inputs
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
    TokenCreditWarning,
)
from tokencredit.evaluation.prefix_accuracy import FRACTIONS
from tokencredit.recipes.decoding.generate import generate
from tokencredit.recipes.reward_model import vocabulary_turns as training
from tokencredit.recipes.reward_model.examples import JudgedRow, reward_batch
from tokencredit.recipes.reward_model.train_vocabulary_reward import (
    TrainVocabularyRewardConfig,
    train_vocabulary_reward,
)
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.reward_model.hf_vocabulary import trained_statistics
from tokencredit.reward_model.objectives import Judgements
from tokencredit.scorers.hf_vocabulary import (
    load_vocabulary_reward,
    vocabulary_prefix_scores,
    vocabulary_sequence_scores,
)
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, response_batch

OBJECTIVES = {"farma": "farma", "genarm": "genarm", "cd-fudge": "cd", "cd-q": "cd"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs whose better side says good, rated texts, prompts, and a tiny language model."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    lines(folder / "prompts.jsonl", [{"prompt": f"rate film {row}:"} for row in range(3)])
    return folder


def config(folder: Path, output: Path, objective="farma", **settings):
    tiny = {
        "data": str(folder / "bradley-terry.jsonl"),
        "model": str(folder / "lm"),
        "batch_size": 8,
        "held_out": 0.2,
        "max_length": 64,
        "first_token": 2,
        "learning_rate": 1e-3,
        "progress": False,
        "device": "cpu",
    }
    return configured(
        TrainVocabularyRewardConfig,
        **({"output": str(output), "objective": objective} | tiny | settings),
    )


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A model of each objective that has seen enough to tell good from bad."""
    output = tmp_path_factory.mktemp("runs")
    settings = {"epochs": 6.0, "learning_rate": 1e-2, "reward_beta": 0.5}
    return {
        objective: train_vocabulary_reward(
            config(folder, output / objective, objective, **settings)
        )
        for objective in OBJECTIVES
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_folder_is_a_language_model_that_says_what_its_logits_are(trained, objective):
    model = AutoModelForCausalLM.from_pretrained(trained[objective])
    assert model.config.vocabulary_objective == objective
    assert model.config.reading == {"template": "plain", "append_eos": True}
    assert getattr(model.config, "reward_beta", None) == (0.5 if objective == "genarm" else None)
    names = {path.name for path in trained[objective].iterdir()}
    assert {"config.yaml", "metrics.json", "metrics.jsonl", "model.safetensors"} <= names
    assert {"prefix_accuracy.json", "prefix_accuracy.png", "tokenizer.json"} <= names


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_learns_which_side_is_better(trained, objective):
    metrics = json.loads((trained[objective] / "metrics.json").read_text())
    rows = json.loads((trained[objective] / "prefix_accuracy.json").read_text())
    assert [row["fraction"] for row in rows] == list(FRACTIONS)
    assert metrics["held_out_accuracy"] == rows[-1]["accuracy"] == 1.0
    logs = read_jsonl(trained[objective] / "metrics.jsonl")
    first = "outcomes" if objective.startswith("cd") else "preferences"
    names = [first, "constraint", first] if objective == "farma" else [first]
    assert list(dict.fromkeys((log["turn"], log["trains"]) for log in logs)) == list(
        enumerate(names, start=1)
    )


@pytest.mark.parametrize(("objective", "method"), OBJECTIVES.items())
def test_generate_is_guided_by_it(folder, trained, tmp_path, objective, method):
    def rows(guidance_beta):
        return read_jsonl(
            generate(
                generate_config(
                    policy=str(folder / "lm"),
                    reward_model=str(trained[objective]),
                    prompts=str(folder / "prompts.jsonl"),
                    output=str(tmp_path / str(guidance_beta)),
                    method=method,
                    progress=False,
                    **{"guidance.beta": guidance_beta, "sampling.max_new_tokens": 6},
                )
            )
        )

    guided = rows(20.0)
    for row in guided:
        steps = [step["score"] for step in row["steps"]]
        expected = sum(steps) if method == "genarm" else steps[-1]
        assert row["score"] == pytest.approx(expected, abs=1e-3)
    for row, plain in zip(guided, rows(0.0), strict=True):
        assert row["kl"] > plain["kl"] + 0.1
        assert method == "farma" or plain["kl"] == pytest.approx(0.0, abs=1e-4)


def test_the_values_of_a_response_are_the_logits_in_the_place_of_its_tokens(trained):
    model, tokenizer = (
        loader.from_pretrained(trained["farma"]) for loader in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = tokenizer("rate film 3: a good film")["input_ids"]
    rows = [
        EncodedText(ids[:end], [at >= 4 for at in range(end)]) for end in (len(ids), len(ids) - 2)
    ]
    batch = response_batch(rows, pad_id=0)
    logits = model(torch.tensor([ids])).logits[0]
    own = logits[torch.arange(3, len(ids) - 1), torch.tensor(ids[4:])]
    values = vocabulary_prefix_scores(model, batch, method="farma")
    torch.testing.assert_close(values[0], own, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(values[1, :-2], own[:-2], rtol=1e-3, atol=1e-5)
    assert values[1, -2:].tolist() == [0.0, 0.0]
    reading = Reading(tokenizer, append_eos=True, turn_ends=(ids[-1],))
    scores = vocabulary_sequence_scores(model, batch, method="farma", reading=reading)
    torch.testing.assert_close(scores, own[[-1, -3]], rtol=1e-3, atol=1e-5)
    reading = replace(reading, append_eos=False)
    without = vocabulary_sequence_scores(model, batch, method="farma", reading=reading)
    torch.testing.assert_close(without, own[[-2, -3]], rtol=1e-3, atol=1e-5)
    own_logprobs = logits.log_softmax(-1)[torch.arange(3, len(ids) - 1), torch.tensor(ids[4:])]
    for over, expected in (
        ("sum", own_logprobs.cumsum(-1)),
        ("mean", own_logprobs.cumsum(-1) / torch.arange(1, len(own) + 1)),
    ):
        said = vocabulary_prefix_scores(model, batch, method="genarm", over_tokens=over)
        torch.testing.assert_close(said[0], expected, rtol=1e-3, atol=1e-4)


def test_the_constraint_reads_the_chosen_side_alone(trained):
    farma, genarm = (
        json.loads((trained[name] / "metrics.json").read_text())["train_tokens"]
        for name in ("farma", "genarm")
    )
    assert 2 * genarm < farma < 3 * genarm  # two turns of both sides, one of one


def test_turns_of_the_constraint_stand_between_those_of_pairs(folder, tmp_path, monkeypatch):
    seen = []
    found = {"train_loss": 0.1, "train_steps": 3.0, "train_tokens": 5.0, "seconds": 1.0}
    monkeypatch.setattr(
        "tokencredit.recipes.reward_model.vocabulary_turns.train",
        lambda trainer, *, tokens: seen.append((trainer.turn, trainer.run.begin, tokens)) or found,
    )
    run = train_vocabulary_reward(config(folder, tmp_path / "run", rounds=3))
    names = ["preferences", "constraint", "preferences", "constraint", "preferences"]
    assert [turn for turn, _, _ in seen] == list(enumerate(names, start=1))
    assert [begin.steps_before for _, begin, _ in seen] == [0, 3, 6, 9, 12]
    both, chosen = seen[0][2], seen[1][2]
    assert chosen < both
    assert [tokens for _, _, tokens in seen] == [both, chosen, both, chosen, both]
    assert json.loads((run / "metrics.json").read_text())["train_tokens"] == 25


def test_a_turn_of_the_constraint_brings_values_and_best_continuations_together(trained):
    logs = read_jsonl(trained["farma"] / "metrics.jsonl")
    losses = [log["loss"] for log in logs if log["trains"] == "constraint"]
    assert len(losses) > 1
    assert losses[-1] < 0.8 * losses[0]


def test_ratings_are_learnt_in_standard_deviations(folder, tmp_path):
    data = str(folder / "regression.jsonl")
    settings = {"data": data, "rating_column": "rating", "eval_data": data, "epochs": 5.0}
    run = train_vocabulary_reward(
        config(folder, tmp_path / "run", "cd-fudge", learning_rate=1e-2, **settings)
    )
    model = AutoModelForCausalLM.from_pretrained(run)
    assert model.config.rating_mean == 50
    assert model.config.rating_standard_deviation == 40
    last = json.loads((run / "prefix_accuracy.json").read_text())[-1]
    assert last["accuracy"] > 0.9
    assert last["count"] == 20


def test_what_stands_behind_the_end_of_sequence_is_cut():
    ids, eos = [5, 6, 7, 8, 9], 8
    for mask, length in (
        ([False, False, True, False, False], 4),  # a template ends the turn with 8, and a line
        ([False, False, True, True, False], 4),
        ([False, False, True, True, True], 5),
        ([False, True, False, False, False], 4),
    ):
        row = training.ended_row(EncodedText(ids, mask), [eos])
        assert row == EncodedText(ids[:length], mask[:length])
    row = EncodedText(ids, [False, True, True, False, False])
    assert training.ended_row(row, [99]) == training.ended_row(row, []) == row
    assert training.read_response(row) == [False, True, True, True, True]


def test_the_same_seed_gives_the_same_weights(folder, tmp_path, capsys):
    runs = [train_vocabulary_reward(config(folder, tmp_path / name, "genarm")) for name in "ab"]
    first, second = (load_file(run / "model.safetensors") for run in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert "those that the loss counts in brackets" in capsys.readouterr().out


def test_adapters_are_merged(folder, tmp_path):
    pytest.importorskip("peft")
    run = train_vocabulary_reward(
        config(folder, tmp_path / "run", "genarm", lora_rank=2, mixed_precision="bf16")
    )
    start, end = (load_file(path / "model.safetensors") for path in (folder / "lm", run))
    changed = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert start.keys() == end.keys()
    assert changed
    assert not {name for name in changed if "embed" in name or "norm" in name}


def test_a_finished_run_is_left_alone_and_another_is_refused(folder, tmp_path, capsys):
    run = train_vocabulary_reward(config(folder, tmp_path / "run", "genarm"))
    assert train_vocabulary_reward(config(folder, run, "genarm")) == run
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RunFolderError, match=r"reward_beta: 0\.05 -> 0\.1"):
        train_vocabulary_reward(config(folder, run, "genarm", reward_beta=0.1))


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(NumericError, match="the loss is nan"):
        train_vocabulary_reward(
            config(
                folder, tmp_path / "x", "genarm", learning_rate=1e38, max_grad_norm=1e38, epochs=3.0
            )
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "./absent"}, ModelError, "there is no folder"),
        ({"max_length": 65}, ConfigError, "reads at most 64 tokens"),
        ({"rejected_column": "worst"}, DataError, "no column 'worst'"),
        (
            {"objective": "cd-fudge", "rating_column": "strength", "text_column": "prompt",
             "limit": 1, "held_out": 0.0},
            DataError,
            "expected different ones",
        ),
    ],
)  # fmt: skip
def test_bad_input_leaves_no_folder(folder, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train_vocabulary_reward(config(folder, tmp_path / "run", **settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"first_token": 0}, "first_token is 0"),
        ({"reward_beta": 0.0}, "reward_beta is 0.0"),
        ({"rating_column": "rating"}, "learns from pairs"),
        ({"objective": "cd-fudge", "margin": 1.0}, "compares nothing"),
        ({"objective": "cd-q", "margin": 1.0}, "compares nothing"),
        ({"objective": "cd-fudge", "policy": "lm"}, "asks no policy; expected none, or objective"),
        ({"objective": "cd-q", "bootstrap_lambda": 1.5}, "bootstrap_lambda is 1.5"),
        ({"objective": "farma", "dtype": "bfloat16"}, "expected 'float32', in which weights are"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_contradict_each_other(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, tmp_path / "run", **settings)


def test_without_peft_adapters_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="PEFT is not installed"):
        train_vocabulary_reward(config(folder, tmp_path / "run", lora_rank=2))


def test_a_guide_needs_a_head_over_the_vocabulary_of_the_policy(folder, tmp_path, trained):
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    scored = tmp_path / "scored"
    for architecture in ("gpt2", "llama"):  # the first has its head from its embeddings
        save_reward_model(scored / architecture, tokenizer, architecture)
        with pytest.raises(ModelError, match="expected a causal language model"):
            load_vocabulary_reward(str(scored / architecture), tokenizer, method="farma")
    with pytest.raises(ModelError, match="reward_model has another vocabulary"):
        load_vocabulary_reward(str(trained["farma"]), byte_level(), method="farma")
    with pytest.warns(TokenCreditWarning, match="trained by objective 'cd-fudge'"):
        load_vocabulary_reward(str(trained["cd-fudge"]), tokenizer, method="farma")


def test_a_wider_guide_does_no_harm_and_a_wider_policy_is_cut(folder, trained, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    wide = save_start(tmp_path / "wide", tokenizer, vocab_size=len(tokenizer) + 9)
    pairs = {"wide-policy": (wide, trained["genarm"]), "wide-guide": (folder / "lm", wide)}
    for name, (policy, guide) in pairs.items():
        found = generate(
            generate_config(
                policy=str(policy),
                reward_model=str(guide),
                prompts=str(folder / "prompts.jsonl"),
                output=str(tmp_path / name),
                method="genarm",
                progress=False,
                **{"sampling.max_new_tokens": 4},
            )
        )
        assert all(max(row["token_ids"]) < len(tokenizer) for row in read_jsonl(found))


def test_one_way_to_score_a_vocabulary(folder):
    with pytest.raises(ConfigError, match="scores the whole vocabulary in one pass"):
        generate_config(policy="p", reward_model="r", prompts="x", output="o", method="cd",
                        **{"guidance.scorer": "rows"})  # fmt: skip


# CD-Q with the policy's own expectation


def outcome_batch(tokenizer):
    """Two rows of different length, padded, with outcomes, and where their responses are."""
    texts = ["rate film 3: a good film<eos>", "rate film 3: bad<eos>"]
    start = len(tokenizer("rate film 3:")["input_ids"])
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        rows.append(EncodedText(ids, [at >= start for at in range(len(ids))]))
    judged = [JudgedRow((rows[0],), 1.0), JudgedRow((rows[1],), -1.0)]
    return rows, reward_batch(judged, pad_id=0, read_at=training.read_response)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_value_learns_what_the_policy_makes_of_the_prefix(folder, trained, share):
    """The loss of a batch against sums over the vocabulary in Python, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(trained["cd-fudge"])
    policy = AutoModelForCausalLM.from_pretrained(folder / "lm").requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    settings = config(folder, Path("x"), "cd-q", bootstrap_lambda=share)
    (turn,) = training.TURNS["cd-q"](settings, policy)
    assert turn.policy is policy
    rows, batch = outcome_batch(tokenizer)
    said = trained_statistics(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        batch["counted"],
        turn.statistic,
        frozen=[policy],
    )
    mask = torch.arange(said.shape[1]) < batch["counted"].sum(-1)[:, None]
    loss = turn.loss(Judgements(said, mask, batch["targets"], batch["strengths"]))
    expected = []
    for row, outcome in zip(rows, (1.0, -1.0), strict=True):
        ids = torch.tensor([row.input_ids])
        values, shares = model(ids).logits[0], policy(ids).logits[0].softmax(-1)
        places = range(row.start, len(row))
        own = [values[at - 1, row.input_ids[at]] for at in places]
        target, errors = outcome, [(own[-1] - outcome) ** 2]
        for at in reversed(places[:-1]):
            mean = sum(
                (p * v for p, v in zip(shares[at].tolist(), values[at].tolist(), strict=True)), 0.0
            )
            target = (1 - share) * mean + share * target
            errors.append((own[at - row.start] - target) ** 2)
        expected.append(torch.stack(errors).mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-3, atol=1e-5)
    ours, theirs = (
        torch.autograd.grad(one, model.lm_head.weight)[0]
        for one in (loss, torch.stack(expected).mean())
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_looking_to_the_end_it_is_cd_fudge(folder, tmp_path):
    runs = [
        train_vocabulary_reward(config(folder, tmp_path / name, name, **settings))
        for name, settings in (("cd-fudge", {}), ("cd-q", {"bootstrap_lambda": 1.0}))
    ]
    fudge, ahead = (load_file(run / "model.safetensors") for run in runs)
    for name, value in fudge.items():
        torch.testing.assert_close(ahead[name], value, rtol=1e-3, atol=1e-5)


def test_the_policy_is_the_start_unless_another_is_named(folder, tmp_path):
    other = save_start(
        tmp_path / "other",
        AutoTokenizer.from_pretrained(folder / "lm"),
        vocab_size=320,
        initializer_range=1.0,
    )
    settings = config(folder, tmp_path / "x", "cd-q")
    assert settings.frozen_policy == str(folder / "lm")
    assert config(folder, tmp_path / "x", "genarm").frozen_policy is None
    runs = {
        name: train_vocabulary_reward(
            config(folder, tmp_path / name, "cd-q", bootstrap_lambda=0.0, **policy)
        )
        for name, policy in (
            ("none", {}),
            ("start", {"policy": str(folder / "lm")}),
            ("another", {"policy": str(other), "dtype": "bfloat16"}),
        )
    }
    none, start, another = (load_file(run / "model.safetensors") for run in runs.values())
    assert all(torch.equal(value, start[name]) for name, value in none.items())
    assert not all(torch.equal(value, another[name]) for name, value in none.items())


def test_a_policy_of_other_tokens_is_refused(folder, tmp_path):
    other = save_start(tmp_path / "other", byte_level(bos=True))
    with pytest.raises(ModelError, match=r"the policy .* has another vocabulary"):
        train_vocabulary_reward(config(folder, tmp_path / "run", "cd-q", policy=str(other)))
    assert not (tmp_path / "run").exists()
