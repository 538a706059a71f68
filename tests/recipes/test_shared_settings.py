from dataclasses import dataclass

import pytest

from tokencredit.errors import ConfigError
from tokencredit.ranges import require_positive
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    TrainingSettings,
    free_settings,
    group,
    moved_settings,
    require_float32,
    setting,
)


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


def test_what_is_not_asked_for_is_not_refused():
    require_positive(HeldOutSettings(data=None), "data")
    require_float32(LoadingSettings(dtype="bfloat16"), frozen="a reference")
