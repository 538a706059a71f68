"""`iterate-preferences` end to end: every set-up, rounds, resuming, what a round leaves behind."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_in_processes
from online_settings import NEEDED
from safetensors.torch import load_file
from several_processes import draw_in_small_files
from tiny_endpoint import answering, first_token, shown_texts
from tiny_policy import write_models
from tiny_reward_training import lines, save_start
from tiny_tokenizers import CHAT_TEMPLATE, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError, ModelError, RunFolderError
from tokencredit.policy.setups import ONLINE_SETUPS
from tokencredit.recipes.iteration import answers as drawing
from tokencredit.recipes.iteration.iterate_preferences import iterate_preferences
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.preferences.train_preferences import train_preferences
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from
from tokencredit.recipes.training import trainer

PROMPTS = ("the plot is", "this film", "the music was", "a", "his first comedy is a", "the cast")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A policy, reward models, prompts with answers of others, and functions that judge."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    rows = [{"prompt": prompt, "completion": " good"} for prompt in PROMPTS]
    lines(folder / "demonstrations.jsonl", rows)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "policy")
    with torch.no_grad():
        teacher.get_input_embeddings().weight.mul_(1.5)
    teacher.save_pretrained(folder / "teacher")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "teacher")
    (folder / "online_judges.py").write_text(
        "def length(prompts, responses):\n"
        "    return [float(len(one)) for one in responses]\n"
        "def constant(prompts, responses):\n"
        "    return [1.0 for one in responses]\n"
        "def has_an_e(prompts, responses):\n"
        "    return ['e' in one for one in responses]\n"
        "def unsure(prompts, responses):\n"
        "    return [0.5 for one in responses]\n"
    )
    return folder


def config(
    models: Path, output: Path, setup: str = "online-dpo", **changes: Any
) -> IteratePreferencesConfig:
    """Two rounds of two steps on six prompts."""
    settings: dict[str, Any] = {
        "prompts": str(models / "demonstrations.jsonl"),
        "model": str(models / "policy"),
        "output": str(output),
        "setup": setup,
        "rounds": 2,
        "samples": 1 if setup in ("aligndistil", "spin") else 3,
        "prompts_at_once": 4,
        "sampling.max_new_tokens": 5,
        "max_length": 32,
        "evaluation.share": 0.0,
        "training.max_steps": 2,
        "training.batch_size": 4,
        "training.warmup": 0.0,
        "training.learning_rate": 1e-2,
        "training.log_every": 1,
        "training.checkpoint_every": 1,
        "device": "cpu",
        "progress": False,
    }
    folders = {"rm": "reward", "teacher": "teacher", "first": "policy"}
    given = {
        name: str(models / folders[value]) if value in folders else value
        for name, value in NEEDED[setup].items()
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    found: IteratePreferencesConfig = settings_from(
        IteratePreferencesConfig, {**settings, **given, **changed}
    )
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, without what tells the time or the place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[name] = {key: one.tolist() for key, one in load_file(path).items()}
        elif path.suffix == ".jsonl":
            found[name] = path.read_text()
        else:
            found[name] = None  # that it is there
    return found


@pytest.fixture(scope="module")
def run(models, tmp_path_factory) -> Path:
    held_out = str(models / "held-out")
    output = tmp_path_factory.mktemp("run") / "online"
    settings = config(models, output, held_out_reward_model=held_out, reference="first")
    return iterate_preferences(settings)


def test_there_is_a_row_for_every_policy(run):
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["responses"] for row in rows] == [18, 18, 6]
    assert rows[0]["kl"] == 0
    assert rows[1]["kl"] != 0
    assert rows[2]["kl"] != rows[1]["kl"]
    for row in rows:
        assert {"score", "held_out_score", "length", "truncated"} <= set(row)
    for row in rows[:2]:
        assert row["rows"] + row["equal_groups"] == 6
        assert row["train_steps"] == 2
    assert "train_steps" not in rows[2]
    responses = read_jsonl(run / "responses-001.jsonl")
    kl = sum(row["log_ratio"] for row in responses) / 18
    assert rows[1]["kl"] == pytest.approx(kl)


def log_prob(model, tokenizer, prompt: str, response: str, ended: bool) -> float:
    """Of the response's tokens, by one plain forward pass."""
    start = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id] * ended
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[at - 1, ids[at]]) for at in range(len(start), len(ids)))


def as_drawn(tokenizer, path: Path) -> list[dict[str, Any]]:
    """Responses whose text has the tokens that were drawn: no special token in the middle."""
    rows = []
    for row in read_jsonl(path):
        both = (row["prompt"] + row["response"], row["prompt"])
        whole, start = (len(tokenizer(text)["input_ids"]) for text in both)
        if whole - start + row["ended"] == row["tokens"]:
            rows.append(row)
    assert len(rows) > 5
    return rows


def test_the_kl_is_that_of_the_policy_of_the_round_to_the_first_model(models, run):
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    policy, first = (
        AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (run / "round-000", models / "policy")
    )
    for row in as_drawn(tokenizer, run / "responses-001.jsonl"):
        said = (tokenizer, row["prompt"], row["response"], row["ended"])
        expected = log_prob(policy, *said) - log_prob(first, *said)
        assert row["log_ratio"] == pytest.approx(expected, abs=1e-4)


def test_a_round_is_a_run_of_train_preferences_on_its_rows(models, run, tmp_path):
    for number, reference in ((0, None), (1, str(models / "policy"))):
        made = config(models, run, reference="first").of_round(number)
        assert made.reference == reference
        alone = train_preferences(replace(made, output=str(tmp_path / str(number))))
        assert_same_weights(alone, run / f"round-{number:03d}")
    assert not torch.equal(*(weights(run / f"round-00{at}")["lm_head.weight"] for at in (0, 1)))


def test_a_reference_that_moves_is_another_training(models, run, tmp_path):
    moved = config(models, run, reference="first").of_round(1)
    alone = train_preferences(replace(moved, output=str(tmp_path / "moved"), reference=None))
    with pytest.raises(AssertionError):
        assert_same_weights(alone, run / "round-001")


def test_what_is_done_is_not_done_again_and_more_rounds_go_on(models, run, tmp_path, monkeypatch):
    held_out = str(models / "held-out")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to do")

    before = outcome(run)
    with monkeypatch.context() as patched:
        patched.setattr(drawing, "models_of_round", refuse)
        patched.setattr(trainer.SupervisedTrainer, "training_step", refuse)
        same = config(models, run, held_out_reward_model=held_out, reference="first")
        assert iterate_preferences(same) == run
    assert outcome(run) == before
    with pytest.raises(RunFolderError, match=r"samples: 3 -> 4"):
        iterate_preferences(replace(same, samples=4))


class Killed(BaseException):
    """What no code expects, as a process expects no SIGKILL."""


def killed(monkeypatch, where: Any, name: str, settings: IteratePreferencesConfig, at: int) -> None:
    """Run until a function is called for this time."""
    real, seen = getattr(where, name), []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        seen.append(1)
        if len(seen) == at:
            raise Killed
        return real(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(where, name, counted)
        with pytest.raises(Killed):
            iterate_preferences(settings)


def test_a_killed_run_ends_as_if_nobody_had_killed_it(models, run, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_BATCHES_PER_FILE", 1)
    held_out = str(models / "held-out")
    settings = config(
        models, tmp_path / "killed", held_out_reward_model=held_out, reference="first"
    )
    killed(monkeypatch, drawing, "sampled_responses", settings, at=2)  # the second of two batches
    assert len(list((tmp_path / "killed" / ".responses-000").glob("*.jsonl"))) == 1
    assert not (tmp_path / "killed" / "responses-000.jsonl").exists()
    step = trainer.SupervisedTrainer
    killed(monkeypatch, step, "training_step", settings, at=2)
    assert (tmp_path / "killed" / "responses-000.jsonl").exists()
    killed(monkeypatch, drawing, "sampled_responses", settings, at=1)  # of round 1
    killed(monkeypatch, step, "training_step", settings, at=2)
    killed(monkeypatch, drawing, "sampled_responses", settings, at=1)  # of the last policy
    assert outcome(iterate_preferences(settings)) == outcome(run)


@pytest.mark.parametrize("setup", sorted(set(ONLINE_SETUPS) - {"online-dpo", "custom", "cream"}))
def test_every_set_up_trains(models, tmp_path, setup):
    rounds = 2 if setup == "spin" else 1
    output = iterate_preferences(config(models, tmp_path / setup, setup, rounds=rounds))
    rows = read_jsonl(output / "metrics.jsonl")
    assert rows[0]["kl"] == 0
    assert abs(rows[-1]["kl"]) > 1e-3
    start, after = weights(models / "policy"), weights(output / "round-000")
    assert any(not torch.equal(start[name], after[name]) for name in start)
    if setup == "spin":
        assert "score" not in rows[0]
        both = read_jsonl(output / "rows-001.jsonl")
        assert both[:6] == read_jsonl(output / "rows-000.jsonl")  # and those of the round before
        assert len(both) == 12
        assert {row["chosen"] for row in both} == {" good"}


def test_cream_scores_by_its_own_ratios_and_those_of_the_policy_before(models, tmp_path):
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(models / "policy")
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    tokenizer.save_pretrained(base)
    settings = config(models, tmp_path / "cream", "cream", base=str(base))
    output = iterate_preferences(settings)
    policies = [models / "policy", output / "round-000"]
    base_model, first, second = (
        AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (base, *policies)
    )
    for number, now in enumerate((first, second)):
        for row in as_drawn(tokenizer, output / f"responses-00{number}.jsonl"):
            said = (tokenizer, row["prompt"], row["response"], row["ended"])
            ratio = log_prob(now, *said) - log_prob(base_model, *said)
            assert row["own_score"] == pytest.approx(ratio, abs=1e-4)
            earlier = log_prob(base_model, *said) / row["tokens"]
            if number == 1:
                earlier = log_prob(first, *said) - log_prob(base_model, *said)
            assert row["earlier_score"] == pytest.approx(earlier, abs=1e-4)
    rows = read_jsonl(output / "metrics.jsonl")
    assert 0 <= rows[0]["consistency"] <= 1
    labels = {row["soft_label"] for row in read_jsonl(output / "rows-001.jsonl")}
    assert labels == {rows[1]["consistency"]}


def test_cream_that_is_sure_is_dpo(models, tmp_path):
    """Without a base there is no ranking before the first round: the labels are 1."""
    own = {"rounds": 1, "sampling__temperature": 1.0}
    cream = iterate_preferences(config(models, tmp_path / "cream", "cream", **own))
    plain = {"judged_by": "log-ratio", "reward_model": None}
    dpo = iterate_preferences(config(models, tmp_path / "dpo", "custom", **own, **plain))
    assert {row["soft_label"] for row in read_jsonl(cream / "rows-000.jsonl")} == {1.0}
    assert_same_weights(cream / "round-000", dpo / "round-000")


def test_a_judge_of_an_endpoint_scores(models, tmp_path):
    """By whole answers, one token each; with the same questions in a second run it is not asked."""

    def reply(body):
        return first_token(body, {"Yes": -float(len(shown_texts(body)[0])), "No": 0.0})

    judge = {"setup": "rlbff", "principle": "short", "cache": str(tmp_path / "replies")}
    found = []
    with answering(reply) as endpoint:
        for name in ("first", "second"):
            given = {"reward_model": f"{endpoint.address}#m", "rounds": 1}
            given |= {f"judge.{key}": value for key, value in judge.items()}
            output = iterate_preferences(config(models, tmp_path / name, **given))
            found.append((read_jsonl(output / "responses-000.jsonl"), len(endpoint.asked)))
    assert all(row["score"] == -len(row["response"]) for row in found[0][0])
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match="expected a judge as reward_model"):
        config(models, tmp_path, "spin", **{"judge.setup": "rlbff", "judge.principle": "x"})


def test_python_functions_score_and_judge(models, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(models))
    settings = config(
        models,
        tmp_path / "run",
        rounds=1,
        reward_model="online_judges:length",
        judges=["online_judges:has_an_e"],
    )
    output = iterate_preferences(settings)
    for row in read_jsonl(output / "responses-000.jsonl"):
        assert row["score"] == len(row["response"])
        assert row["passed"] == ("e" in row["response"])
    rows = read_jsonl(output / "rows-000.jsonl")
    assert rows
    assert all("e" in row["chosen"] for row in rows)
    (metrics, _) = read_jsonl(output / "metrics.jsonl")
    assert 0 < metrics["passed"] < 1


def test_where_nothing_can_be_learnt_that_is_an_error(models, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(models))
    settings = config(models, tmp_path / "run", reward_model="online_judges:constant")
    with pytest.raises(DataError, match="round 0 has nothing to learn from: 6 prompts without"):
        iterate_preferences(settings)
    unsure = config(models, tmp_path / "other", reward_model=None, judges=["online_judges:unsure"])
    with pytest.raises(DataError, match=r"online_judges:unsure gives 0\.5; expected True or False"):
        iterate_preferences(unsure)
    missing = config(models, tmp_path / "third", reward_model=str(models / "nothing"))
    with pytest.raises(ModelError):
        iterate_preferences(missing)
    assert (tmp_path / "run" / "responses-000.jsonl").exists()
    assert not (tmp_path / "third").exists()  # nothing to go on from: other settings may take it


def test_chat_models_are_asked_by_their_template(tmp_path):
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    save_start(tmp_path / "lm", tokenizer)
    chats = [[{"role": "user", "content": text}] for text in ("rate it", "and this")]
    lines(tmp_path / "prompts.jsonl", [{"prompt": chat} for chat in chats])
    (tmp_path / "longer.py").write_text(
        "def score(prompts, responses):\n"
        "    assert all(one[0]['role'] == 'user' for one in prompts)\n"
        "    return [float(len(one)) for one in responses]\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        output = iterate_preferences(
            settings_from(
                IteratePreferencesConfig,
                {
                    "prompts": str(tmp_path / "prompts.jsonl"),
                    "model": str(tmp_path / "lm"),
                    "output": str(tmp_path / "run"),
                    "setup": "rejection-sampling",
                    "reward_model": "longer:score",
                    "rounds": 1,
                    "sampling.max_new_tokens": 8,
                    "max_length": 48,
                    "evaluation.share": 0.0,
                    "training.max_steps": 1,
                    "device": "cpu",
                    "progress": False,
                },
            )
        )
    finally:
        sys.path.remove(str(tmp_path))
    rows = read_jsonl(output / "rows-000.jsonl")
    assert [row["prompt"] for row in rows] in (chats, chats[::-1])
    assert (output / "round-000" / "config.json").exists()


def test_adapters_are_merged_between_rounds(models, tmp_path):
    pytest.importorskip("peft", reason="PEFT is an extra")
    settings = config(
        models,
        tmp_path / "run",
        lora__rank=2,
        training__learning_rate=0.1,
        loading__dtype="bfloat16",
    )
    output = iterate_preferences(settings)
    rows = read_jsonl(output / "metrics.jsonl")
    assert rows[0]["kl"] == 0
    assert rows[1]["kl"] != 0
    assert set(weights(output / "round-001")) == set(weights(models / "policy"))


def test_two_processes_draw_what_one_draws(models, run, tmp_path):
    """Each has its share of the prompts; seeds are those of prompts, not of processes."""
    settings = [
        f"--{name}={value}"
        for name, value in {
            "prompts": models / "demonstrations.jsonl",
            "model": models / "policy",
            "reward_model": models / "reward",
            "output": tmp_path / "run",
            "rounds": 1,
            "samples": 3,
            "prompts_at_once": 4,
            "sampling.max_new_tokens": 5,
            "max_length": 32,
            "evaluation.share": 0.0,
            "training.max_steps": 1,
            "device": "cpu",
            "progress": "false",
        }.items()
    ]
    run_in_processes(draw_in_small_files, settings)
    one, two = (
        [(row["group"], row["prompt"], row["response"]) for row in read_jsonl(path)]
        for path in (run / "responses-000.jsonl", tmp_path / "run" / "responses-000.jsonl")
    )
    assert one == two
    assert (tmp_path / "run" / "round-000" / "config.json").exists()


def test_the_command_line(models, tmp_path, capsys):
    words = ["iterate-preferences", "--prompts", str(models / "prompts.jsonl")]
    words += ["--model", str(models / "policy"), "--output", str(tmp_path / "run")]
    words += ["--device", "cpu", "--progress", "false", "--max_length", "32", "--rounds", "1"]
    words += ["--sampling.max_new_tokens", "4", "--samples", "2", "--training.max_steps", "1"]
    assert main(words) == 1
    assert (
        "ConfigError: judged_by is 'scores' and there is no reward_model" in capsys.readouterr().err
    )
    assert main([*words, "--reward_model", str(models / "reward")]) == 0
    said = capsys.readouterr().out
    assert "round 0: kl 0" in said
    assert f"policy: {tmp_path / 'run' / 'round-000'}" in said
    numbers = json.loads((tmp_path / "run" / "round-000" / "metrics.json").read_text())
    assert numbers["train_steps"] == 1
