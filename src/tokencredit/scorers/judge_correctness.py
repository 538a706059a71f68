"""Whether a judge in training is right, as a reward in Python for `train-policy`."""

from collections.abc import Sequence
from pathlib import Path

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.judge.lessons import CORRECTNESS
from tokencredit.judge.setups import JudgeSetup
from tokencredit.names import named
from tokencredit.preference.cells import number_cell, prompt_cell, text_cell
from tokencredit.preference.hf_rows import dataset_rows
from tokencredit.scorers.judge_settings import named_setup
from tokencredit.scorers.python_rewards import TextReward
from tokencredit.scorers.references import prompt_key


def correctness_reward(path: str | Path, kind: str = "choice") -> TextReward:
    """A reward in Python that knows the right answers to the questions of a file.

    Args:
        path: as `build-judge-prompts` writes it: rows with `prompt`, `correct` and `setup`.
        kind: a name in `CORRECTNESS`: `choice` is 1 for the right side and -1 otherwise, `strength`
            has a point for an answer that can be read and up to one for how near it is.

    Returns:
        From questions and what the judge wrote to one number each. A question that is not in the
        file is a DataError.

    Raises:
        DataError: the file is not there, or lacks a column.
        ConfigError: there is no such kind or set-up.
    """
    reward_of = named("kind", kind, CORRECTNESS)
    known: dict[str, tuple[JudgeSetup, float]] = {}
    for row in dataset_rows(path, split="train", limit=None):
        if row.fault is not None:
            raise row.fault
        key = prompt_key(prompt_cell(row, "prompt"))
        known[key] = named_setup(text_cell(row, "setup")), number_cell(row, "correct")

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        keys = list(map(prompt_key, prompts))
        missing = [key for key in keys if key not in known]
        if missing:
            raise DataError(
                f"{len(missing)} questions are not in {path}, the first is {missing[0][:80]!r}; "
                "expected the prompts of the policy to be those of this file"
            )
        return [
            reward_of(known[key][0], text, known[key][1])
            for key, text in zip(keys, responses, strict=True)
        ]

    return reward
