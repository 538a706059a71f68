r"""Train a policy on its own responses, round by round, with any offline loss.

    tokencredit iterate-preferences --prompts prompts.jsonl --model lm --reward_model rm \
        --output online --setup online-dpo

Each round draws responses of the policy as it is, has them judged, chooses rows, and trains on
these with `train-preferences`; the next round starts from what came out. Online iterative DPO,
INPO, DNO, CREAM, SPIN, SuperHF and rejection sampling are rows of one table (`tokencredit methods
--kind setup`): what is drawn, how it is judged, which rows, which loss, which reference.

Departures from the published programs: (1) rows hold the text of responses, which training
tokenizes again; (2) prompts whose answers are all as good are left out, whatever the loss; (3)
optimiser and learning rate start anew in every round.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from tokencredit.errors import DataError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.recipes.iteration.answers import Answer, answers_of_round, has_answers
from tokencredit.recipes.iteration.chosen import Chosen, chosen_rows
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.preferences.train_preferences import train_preferences
from tokencredit.recipes.run.run_folder import jsonl_text, write_atomically
from tokencredit.recipes.settings import require_trainable_device
from tokencredit.recipes.training.supervised import folder_of_all, processes_of

__all__ = ["IteratePreferencesConfig", "iterate_preferences"]


def iterate_preferences(config: IteratePreferencesConfig) -> Path:
    """Draw, judge, choose and train in rounds; what is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: `round-000` and so on, each with the policy after that round;
        `responses-000.jsonl` and `rows-000.jsonl`; `metrics.jsonl` with a row for each policy, the
        first model included.

    Raises:
        DataError: the prompts are not there, or nothing can be learnt from the answers of a round.
        ModelError, ServerError: a model or a server is not there, or reads other ids.
        ConfigError, NumericError: as `train_preferences`.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    require_trainable_device(config.device, name="device")
    made: list[Chosen] = []
    said: list[dict[str, Any]] = []
    with folder_of_all(config, kept=has_answers) as folder, quiet_transformers():
        for number in range(config.rounds):
            answers = answers_of_round(config, number, folder)
            made.append(chosen_rows(config, answers, number))
            _write_rows(config, made, number)
            trained = train_preferences(config.of_round(number))
            clear_device_cache(garbage_collection=True)
            said.append(_measured(number, answers) | made[-1].counts | _of_training(trained))
            _tell(config, folder, said)
        answers = answers_of_round(config, config.rounds, folder, last=True)
        said.append(_measured(config.rounds, answers))
        _tell(config, folder, said)
    print(f"policy: {config.folder_of(config.rounds - 1)}")
    return folder


def _write_rows(config: IteratePreferencesConfig, made: Sequence[Chosen], number: int) -> None:
    """The rows of a round, with those of rounds before that are learnt again.

    Raises:
        DataError: there are none.
    """
    assert config.rounds_of_rows is not None
    counts = made[-1].counts
    if not made[-1].rows:
        raise DataError(
            f"round {number} has nothing to learn from: {counts['equal_groups']:g} prompts without "
            f"answers that differ in what they are judged by, {counts['unusable_answers']:g} "
            "answers that are empty or not scored; expected one row at least: draw more samples, "
            "or look at the reward model"
        )
    rows = [row for one in made[-config.rounds_of_rows :] for row in one.rows]
    if _is_first(config):
        write_atomically(config.data_of(number), jsonl_text(rows))
    state = processes_of(config)
    if state is not None:
        state.wait_for_everyone()


def _measured(number: int, answers: Sequence[Answer]) -> dict[str, Any]:
    """What the answers of a policy say of it: means over its own responses."""
    own = [one for one in answers if one.own]
    numbers: dict[str, list[float | None]] = {
        "kl": [one.log_ratio for one in own],
        "score": [one.score for one in own],
        "held_out_score": [one.held_out_score for one in own],
        "passed": [None if one.passed is None else float(one.passed) for one in own],
        "own_score": [one.own_score for one in own],
        "length": [float(one.tokens) for one in own],
        "truncated": [float(not one.ended) for one in own],
    }
    found: dict[str, Any] = {"round": number, "responses": float(len(own))}
    for name, values in numbers.items():
        known = [value for value in values if value is not None]
        if known:
            found[name] = sum(known) / len(known)
    return found


def _of_training(folder: Path) -> dict[str, float]:
    """The numbers of a round's training, without those of its speed."""
    told = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {name: told[name] for name in told if name not in ("seconds", "tokens_per_second")}


def _tell(config: IteratePreferencesConfig, folder: Path, said: Sequence[dict[str, Any]]) -> None:
    """Write a row for each policy so far, and print the last one."""
    if not _is_first(config):
        return
    write_atomically(folder / "metrics.jsonl", jsonl_text(said))
    shown = ("kl", "score", "held_out_score", "passed", "rows", "equal_groups", "consistency")
    told = (f"{name} {said[-1][name]:,.4g}" for name in shown if name in said[-1])
    print(f"round {said[-1]['round']:g}: {'  '.join(told)}", flush=True)


def _is_first(config: IteratePreferencesConfig) -> bool:
    state = processes_of(config)
    return state is None or bool(state.is_main_process)
