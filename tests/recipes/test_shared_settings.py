from dataclasses import dataclass

import pytest
import yaml
from named_settings import configured

from tokencredit.cli import recipe_of
from tokencredit.errors import ConfigError
from tokencredit.ranges import require_positive
from tokencredit.recipes.policy.setting_groups import MachineSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.reward_model.train_reward_model import TrainRewardModelConfig
from tokencredit.recipes.run.run_folder import resolved_yaml
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    LoraSettings,
    TrainingSettings,
    free_settings,
    group,
    moved_settings,
    require_float32,
    setting,
)
from tokencredit.recipes.training.arguments import require_trackers, training_arguments


@dataclass(frozen=True)
class Settings:
    output: str = setting(free=True)
    split: str = "train"
    training: TrainingSettings = group(TrainingSettings, batch_size=8)
    evaluation: HeldOutSettings = group(HeldOutSettings)


def test_a_group_may_have_defaults_of_its_recipe():
    assert Settings("x").training == TrainingSettings(batch_size=8)
    assert Settings("x").evaluation == HeldOutSettings()


def test_free_settings_and_old_names_are_read_off_the_fields():
    of_training = {"gradient_checkpointing", "log_every", "evaluate_every", "checkpoint_every"}
    named = {f"training.{name}" for name in of_training | {"keep", "report_to"}}
    assert set(free_settings(Settings)) == {"output"} | named
    moved = moved_settings(Settings)
    assert moved["epochs"] == "training.epochs"
    assert moved["held_out"] == "evaluation.share"
    assert moved["eval_split"] == "evaluation.split"
    assert "split" not in moved


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TrainingSettings(epochs=0.0), "training.epochs is 0.0; expected more than 0"),
        (lambda: TrainingSettings(batch_size=-1), "training.batch_size is -1"),
        (lambda: TrainingSettings(gradient_accumulation=0), "training.gradient_accumulation is 0"),
        (lambda: TrainingSettings(max_steps=0), "training.max_steps is 0; expected at least 1"),
        (lambda: TrainingSettings(keep=0), "training.keep is 0; expected at least 1"),
        (lambda: LoraSettings(dropout=0.1), r"lora.dropout is 0.1 with lora.rank 0"),
        (lambda: LoraSettings(rank=2, target_modules=()), "lora.target_modules is empty"),
        (lambda: LoraSettings(rank=2, dropout=1.0), r"lora.dropout is 1.0; .* share in \[0, 1\)"),
        (lambda: TrainingSettings(warmup=1.0), r"training.warmup is 1.0; .* share in \[0, 1\)"),
        (lambda: HeldOutSettings(share=-0.1), r"evaluation.share is -0.1"),
        (lambda: require_positive(HeldOutSettings(share=0.0), "share"), "^share is 0.0; expected"),
        (
            lambda: require_float32(LoadingSettings(dtype="float16"), frozen=None),
            "loading.dtype is 'float16'; expected 'float32'",
        ),
    ],
)
def test_numbers_that_make_no_sense(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("examples", "epochs", "expected"), [(1, 0.5, 0), (8, 1.0, 0), (9, 1.0, 1), (160, 1.0, 2)]
)
def test_a_run_of_one_step_learns(tmp_path, examples, epochs, expected):
    training = {"warmup": 0.1, "batch_size": 8, "epochs": epochs}
    settings = configured(
        TrainRewardModelConfig, data="d", model="m", output="o", device="cpu", **training
    )
    assert training_arguments(settings, tmp_path, examples=examples).warmup_steps == expected


def test_what_is_not_asked_for_is_not_refused():
    require_positive(HeldOutSettings(data=None), "data")
    require_float32(LoadingSettings(dtype="bfloat16"), frozen="a reference")


@pytest.mark.parametrize(
    ("command", "of_all", "of_lora"),
    [
        ("train-reward-model", 2e-5, 2e-4),
        ("train-token-classifier", 2e-5, 2e-4),
        ("train-vocabulary-reward", 5e-6, 5e-5),
        ("train-implicit-reward", 1e-6, 1e-5),
        ("train-preferences", 1e-6, 1e-5),
    ],
)
def test_adapters_have_a_learning_rate_of_their_own_that_is_printed(command, of_all, of_lora):
    kind = recipe_of(command)[1]
    needed = {"data": "d", "model": "m", "output": "o"}
    if command == "train-token-classifier":
        needed["labels"] = "edits"
    assert kind(**needed).training.learning_rate == of_all
    adapted = kind(**needed, lora=LoraSettings(rank=4))
    assert adapted.training.learning_rate == of_lora
    assert yaml.safe_load(resolved_yaml(adapted))["training"]["learning_rate"] == of_lora
    named = TrainingSettings(learning_rate=1.0)
    assert kind(**needed, lora=LoraSettings(rank=4), training=named).training.learning_rate == 1.0
    with pytest.raises(ConfigError, match=r"lora.quantization is '4bit' with device"):
        kind(**needed, lora=LoraSettings(rank=4, quantization="4bit"), device="cpu")
    half = LoadingSettings(dtype="bfloat16")
    assert kind(**needed, lora=LoraSettings(rank=4), loading=half).loading == half


def test_policies_have_the_same_rule_and_no_dropout():
    needed = {"policy": "p", "prompts": "q", "output": "o", "reward_model": "r"}
    assert TrainPolicyConfig(**needed).optimizer.rate == 1e-5
    assert TrainPolicyConfig(**needed, lora=LoraSettings(rank=4)).optimizer.rate == 1e-4
    with pytest.raises(ConfigError, match=r"lora.dropout is 0.1; expected 0"):
        TrainPolicyConfig(**needed, lora=LoraSettings(rank=4, dropout=0.1))


def test_trackers_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"'wandbx', which is not installed; .*wandbx\)"):
        require_trackers(("wandbx",))


@pytest.mark.parametrize("device", ["cuda:0", "gpu"])
def test_a_device_of_training_that_nobody_takes_is_refused(tmp_path, device):
    with pytest.raises(ConfigError, match=f"machine.device is '{device}'; expected 'cpu'"):
        MachineSettings(device=device)
    recipe, kind = recipe_of("train-reward-model")
    with pytest.raises(ConfigError, match=f"device is '{device}'; expected 'cpu'"):
        recipe(kind(data="x", model="x", output=str(tmp_path / "run"), device=device))
