"""Settings of `iterate-preferences` by their set-up, with what each needs."""

from typing import Any

from tokencredit.policy.setups import ONLINE_SETUPS
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.settings import settings_from

NEEDED = {
    name: {
        "nothing": {"demonstrations": "completion"},
        "log-ratio": {},
    }.get(one.judged_by, {"reward_model": "rm"})
    for name, one in ONLINE_SETUPS.items()
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
