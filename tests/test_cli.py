import json
from dataclasses import MISSING

import pytest
from forked import ForkedCommand
from saved_models import save_reward_model
from tiny_policy import write_models
from tiny_tokenizers import byte_level

from tokencredit.cli import COMMANDS, main, recipe_of
from tokencredit.recipes.settings import all_settings


def settings_of(name):
    return {one.rpartition(".")[2] for one, _ in all_settings(recipe_of(name)[1])}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def policy_arguments(models, output):
    return [
        *("train-policy", "--policy", str(models / "policy")),
        *("--reward_model", str(models / "reward")),
        *("--prompts", str(models / "prompts.jsonl"), "--output", str(output)),
    ]


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in shown] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_config(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--config" in text
    assert "--output" in text or name in {"serve", "methods", "describe-users"}


def test_unknown_command_suggests_the_near_one(capsys):
    assert main(["train-polcy"]) == 2
    assert "Did you mean 'train-policy'?" in capsys.readouterr().err


def test_settings_file_with_overrides_on_the_command_line(models, tmp_path, capsys):
    settings = {"steps": 5, "batch_size": 2, "sampling": {"max_new_tokens": 3}}
    settings |= {"machine": {"device": "cpu"}, "record": {"progress": False}}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    arguments = policy_arguments(models, tmp_path / "run")
    status = main([*arguments, "--config", str(tmp_path / "run.yaml"), "--steps", "1"])
    assert status == 0
    shown = capsys.readouterr().out
    assert "steps: 1" in shown
    assert "batch_size: 2" in shown
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_misspelt_setting_is_named_with_the_right_one(models, tmp_path, capsys):
    arguments = policy_arguments(models, tmp_path / "run")
    assert main([*arguments, "--learning_rte", "1"]) == 1
    assert "Did you mean 'optimizer.learning_rate'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_misspelt_setting_in_the_file_is_named(models, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("gae_lamda: 0.9\n")
    arguments = policy_arguments(models, tmp_path / "run")
    assert main([*arguments, "--config", str(tmp_path / "run.yaml")]) == 1
    assert "gae_lambda" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_contradictory_settings_write_nothing(models, tmp_path, capsys):
    arguments = policy_arguments(models, tmp_path / "run")
    assert main([*arguments, "--kl.loss_coef", "0.1"]) == 1
    assert "not both" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_model_writes_an_error_without_a_trace(models, tmp_path):
    arguments = policy_arguments(models, tmp_path / "run")
    arguments[2] = str(tmp_path / "nowhere")
    finished = ForkedCommand(*arguments)
    assert finished.wait(60) == 1
    assert "ModelError" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "content",
    [b"output: \xed\xa0\x80", b"a: &a [*a, *a]", b"config: 1", b'{"a":' * 150 + b"1" + b"}" * 150],
    ids=["no UTF-8", "a list in itself", "a file in a file", "a hundred levels"],
)
def test_a_file_of_settings_that_cannot_be_read(tmp_path, capsys, content):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert main(["score-tokens", "--config", str(path)]) == 1
    assert "ConfigError: " in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_the_console_cannot_show_is_written_by_its_numbers(tmp_path, encoding):
    tokenizer = byte_level()
    save_reward_model(tmp_path / "model", tokenizer)
    arguments = ["--reward_model", str(tmp_path / "model"), "--response", "good \u65e5\u672c"]
    finished = ForkedCommand("explain", *arguments, env={"PYTHONIOENCODING": encoding})
    assert finished.wait(60) == 0
    assert r"\u65e5" in finished.stdout
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if "limit" in settings_of(name)])
@pytest.mark.parametrize("limit", ["-1", "0"])
def test_a_limit_below_one_row_is_refused_before_anything_is_read(tmp_path, capsys, name, limit):
    known = dict(all_settings(recipe_of(name)[1]))
    needed = {one for one, field in known.items() if field.default is MISSING} - {"architecture"}
    values = dict.fromkeys(needed, str(tmp_path / "none"))
    values |= {"labels": "steps"} if "labels" in needed else {}
    values |= {"reward_models": "[x]"} if "reward_models" in needed else {}
    values |= {"method": "ratings"} if "method" in needed else {}
    given = [word for pair in values.items() for word in (f"--{pair[0]}", pair[1])]
    given += ["--reward_model", "x"] if "reward_model" in known else []
    flag = "--limit" if "limit" in known else "--data.limit"
    assert main([name, *given, flag, limit]) == 1
    assert f"limit is {limit}" in capsys.readouterr().err


def test_what_is_loaded_is_said_in_one_line_each(models, tmp_path, capsys):
    policy, reward = str(models / "policy"), str(models / "reward")
    short = ["--steps", "1", "--batch_size", "2", "--sampling.max_new_tokens", "2"]
    assert main([*policy_arguments(models, tmp_path / "run"), *short]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "parameters" in line]
    assert len(said) == len(set(said)) == 2
    assert any(line.startswith(policy) and "CausalLM" in line for line in said)
    assert any(line.startswith(reward) and line.endswith("float32, head trained") for line in said)
