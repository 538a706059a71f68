"""Questions to train a judge on that writes its verdict: `tokencredit build-judge-prompts`.

    tokencredit build-judge-prompts --data pairs.jsonl --judge.setup rm-r1 --output questions.jsonl

`train-policy` trains on them with any algorithm, by a reward in Python that knows the answers:
`correctness_reward`. With `single.setup` the data are responses of a policy that a rule has called
right or wrong, and each prompt gives one question, as SPARK recycles its rollouts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokencredit.errors import ConfigError, DataError
from tokencredit.judge.lessons import Lesson, pair_lessons, rollout_lessons
from tokencredit.judge.setups import JudgeSetup
from tokencredit.preference.cells import Row, strength_cell
from tokencredit.preference.hf_answers import AnswerColumns, load_answers
from tokencredit.preference.hf_datasets import require_two_answers
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import pair_of_row
from tokencredit.ranges import require_positive
from tokencredit.recipes.reward_model.pair_columns import PairColumns
from tokencredit.recipes.run.left_out import beside, tell_left_out
from tokencredit.recipes.run.run_folder import jsonl_text, write_atomically, writing
from tokencredit.recipes.settings import group
from tokencredit.scorers.judge_settings import QuestionSettings


@dataclass(frozen=True)
class BuildJudgePromptsConfig:
    """One set of questions."""

    data: str
    """JSON-lines file, dataset folder or dataset id: pairs, or with `single.setup` prompts with
    `responses` and as many `scores`, above 0 where a response is right."""
    output: str
    """JSON-lines file to write, with `prompt`, `correct` and `setup`."""
    judge: QuestionSettings = group(QuestionSettings)
    """What is asked about two responses, or about each of a pair."""
    single: QuestionSettings = group(QuestionSettings)
    """What is asked about one response of a rollout; an empty set-up reads pairs."""
    single_share: float = 0.3
    """Probability that the question is about one response, where a prompt has right and wrong
    ones."""
    columns: PairColumns = group(PairColumns)
    strength: str | None = None
    """Column that says how much better the chosen response of a pair is, above 0; None for 1."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    seed: int = 0
    """Seed of what is drawn from rollouts."""

    def __post_init__(self) -> None:
        require_positive(self, "limit")
        if not self.judge.setup:
            raise ConfigError(
                "judge.setup is empty; expected a name that `tokencredit methods --kind judge` "
                "lists, or `module:function`"
            )
        if Path(self.output).suffix != ".jsonl":
            raise ConfigError(
                f"output is {self.output!r}; expected a file name that ends in .jsonl"
            )
        if self.strength is not None and self.single.setup:
            raise ConfigError(
                f"strength is {self.strength!r} with single.setup {self.single.setup!r}, whose "
                "responses are right or wrong; expected none"
            )


def build_judge_prompts(config: BuildJudgePromptsConfig) -> Path:
    """Make questions whose right answer is known.

    Args:
        config: the settings.

    Returns:
        The file; rows that could not be used lie beside it.

    Raises:
        DataError: the data are not there, or no row can be used.
        ConfigError: a set-up lacks what it asks for, or is of another kind.
        RunFolderError: the file cannot be written.
    """
    left_out = config.dataset.collecting()
    setup = config.judge.row()
    make = _of_rollouts if config.single.setup else _of_pairs
    asked = make(config, setup, left_out)
    rows: dict[str, dict[str, Any]] = {}
    for name, lesson in asked:
        prompt = str(lesson.question.messages[0]["content"])
        rows.setdefault(prompt, {"prompt": prompt, "correct": lesson.correct, "setup": name})
    path = Path(config.output)
    with writing(path):
        write_atomically(path, jsonl_text(rows.values()))
    tell_left_out(left_out, beside(path))
    if len(asked) > len(rows):
        print(f"{len(asked) - len(rows)} questions are the same as another and were left out")
    print(f"{len(rows)} questions: {path}")
    return path


def _of_pairs(
    config: BuildJudgePromptsConfig, setup: JudgeSetup, left_out: list[LeftOut] | None
) -> list[tuple[str, Lesson]]:
    columns = config.columns

    def lessons(row: Row) -> list[Lesson]:
        pair = pair_of_row(row, columns.prompt, columns.chosen, columns.rejected, "")
        require_two_answers(row, pair)
        return pair_lessons(
            setup,
            [pair.prompt],
            [pair.chosen],
            [pair.rejected],
            principle=config.judge.principle,
            rubric=config.judge.rubric,
            strengths=[strength_cell(row, config.strength)],
        )

    rows = dataset_rows(config.data, split=config.split, limit=config.limit, dataset=config.dataset)
    made = made_rows(lessons, rows, name=config.data, left_out=left_out)
    return [(config.judge.setup, lesson) for some in made for lesson in some]


def _of_rollouts(
    config: BuildJudgePromptsConfig, setup: JudgeSetup, left_out: list[LeftOut] | None
) -> list[tuple[str, Lesson]]:
    single = config.single.row()
    if config.judge.principle and config.single.principle != config.judge.principle:
        raise ConfigError(
            f"judge.principle is {config.judge.principle!r} and single.principle "
            f"{config.single.principle!r}; expected the same"
        )
    answers = load_answers(
        config.data,
        kind="lists",
        scored=True,
        columns=AnswerColumns(prompt=config.columns.prompt),
        split=config.split,
        limit=config.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    found = []
    for one in answers:
        for lesson in rollout_lessons(
            single,
            setup,
            one.prompt,
            one.responses,
            [score > 0 for score in one.scores or ()],
            seed=config.seed,
            single_share=config.single_share,
            principle=config.single.principle,
        ):
            name = config.single.setup if lesson.shown == 1 else config.judge.setup
            found.append((name, lesson))
    if not found:
        raise DataError(f"{config.data} makes no question; expected prompts with responses")
    return found
