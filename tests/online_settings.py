"""Settings of `iterate-preferences` by their set-up, with what each needs."""

from typing import Any

from tokencredit.policy.setups import ONLINE_SETUPS
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.settings import settings_from

NEEDED: dict[str, dict[str, str]] = {
    name: {"reward_model": "rm"} if one.judged_by in ("scores", "win-rates") else {}
    for name, one in ONLINE_SETUPS.items()
} | {
    "aligndistil": {"teacher": "teacher", "teacher_reference": "first"},
    "spin": {"demonstrations": "completion"},
}
"""What a set-up cannot do without."""


def online(setup: str = "online-dpo", **changes: Any) -> IteratePreferencesConfig:
    """Settings; one of a group is changed by `group__setting=...`."""
    settings = {"prompts": "p.jsonl", "model": "lm", "output": "out", "setup": setup}
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    found: IteratePreferencesConfig = settings_from(
        IteratePreferencesConfig, {**settings, **NEEDED[setup], **changed}
    )
    return found
