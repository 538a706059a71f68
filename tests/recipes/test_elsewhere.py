"""Settings by the names of other projects: every one that is answered with is there."""

import re
from pathlib import Path

import pytest

from tokencredit.cli import COMMANDS, main, recipe_of
from tokencredit.recipes.elsewhere import ELSEWHERE
from tokencredit.recipes.settings import all_settings

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"


def test_every_name_here_is_a_setting_of_a_command():
    there = {name for command in COMMANDS for name, _ in all_settings(recipe_of(command)[1])}
    assert {name for names in ELSEWHERE.values() for name in names} <= there


def test_the_page_shows_the_table():
    shown = PAGE.read_text(encoding="utf-8").split("| theirs | here |\n|---|---|\n")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", shown, flags=re.M)
    assert {name: tuple(re.findall(r"`([\w.]+)`", here)) for name, here in rows} == ELSEWHERE


@pytest.mark.parametrize(
    ("command", "flag", "meant"),
    [
        ("train-reward-model", "--model_name_or_path", "'model'"),
        ("train-reward-model", "--per_device_train_batch_size", "'training.batch_size'"),
        ("train-policy", "--per_device_train_batch_size", "'algorithm.micro_batch_size'"),
        ("train-policy", "--beta", "'kl.coef'"),
        ("train-implicit-reward", "--beta", "'dpo_beta'"),
        ("train-implicit-reward", "--lora-r", "'lora.rank'"),
        ("train-preferences", "--beta", "'options.dpo_beta'"),
        ("train-preferences", "--loss-type", "'loss'"),
        ("train-language-model", "--bf16", "'training.mixed_precision'"),
        ("train-policy", "--report_to", "'record.trackers'"),
        ("train-policy", "--pretrain", "'policy'"),
        ("generate", "--prompt_data", "'prompts'"),
        ("serve", "--reward_pretrain", "'reward_model'"),
        ("evaluate-reward-model", "--report_to", "nothing like it"),
    ],
)
def test_a_name_of_another_project_is_answered_with_the_one_here(capsys, command, flag, meant):
    assert main([command, flag, "1"]) == 1
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "methods"])
def test_every_command_proposes_a_name_for_a_misspelt_one(capsys, command):
    name, _ = next(iter(all_settings(recipe_of(command)[1])))
    assert main([command, f"--{name}x", "1"]) == 1
    assert f"there is no setting '{name}x'" in (said := capsys.readouterr().err)
    assert f"Did you mean '{name}'?" in said
