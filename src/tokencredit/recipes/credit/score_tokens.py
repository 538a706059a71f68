"""Score every token of the responses in a dataset: `tokencredit score-tokens`.

    tokencredit score-tokens --reward_model my/model --data answers.jsonl --output scores.jsonl

Tokens are the reward model's own. About as fast as plain scoring, by the methods that need one
forward pass per response.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import Prompt
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError
from tokencredit.models.hf_loading import context_length, quiet_transformers
from tokencredit.preference.cells import Row, ended_cell, text_cell
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import row_answer
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.run.left_out import beside, tell_left_out
from tokencredit.recipes.run.run_folder import whole_file, writing
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import LoadingSettings, group, setting
from tokencredit.scorers.cutting import cut_to_fit
from tokencredit.scorers.rewards import PaidObjective, Rewards
from tokencredit.scorers.source_settings import RewardSource, required_sources
from tokencredit.scorers.text_rewards import loaded_text_rewards, paid_texts, reader_of
from tokencredit.text.alignment import Span
from tokencredit.text.hf_token_rows import Truncation, token_texts
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

# Forward passes per chunk of data: within a chunk, responses of like length go together. What asks
# the reward model again and again takes a chunk of one batch, which bounds its memory.
_PASSES_PER_CHUNK = 16


@dataclass(frozen=True)
class ResponseColumns:
    """Where prompts and responses stand in the data."""

    prompt: str = setting("prompt", was="prompt_column")
    """Column of the prompts, texts or lists of chat messages."""
    response: str = setting("response", was="response_column")
    """Column of the responses."""
    text: str | None = setting(None, was="text_column")
    """Column of texts without a prompt, which are scored instead."""


@dataclass(frozen=True)
class ScoreTokensConfig:
    """Settings of one scoring job."""

    data: str
    """Dataset id, dataset folder, or JSON-lines file."""
    reward_model: str | None = None
    """Hub id or folder of a sequence-classification model with one or two outputs, or the address,
    `vllm+http(s)://...`, of a vLLM server that serves one."""
    rewards: tuple[RewardSource, ...] = ()
    """Several sources of reward instead of `reward_model`, as in `train-policy`. Tokens are those
    of the first model among them."""
    combine: CombinationSettings = group(CombinationSettings)
    """How several sources become one reward."""
    output: str | None = None
    """JSON-lines file to write; None prints a table."""
    split: str = "train"
    """Split of a dataset id or folder."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    max_length: int | None = None
    """Most tokens of prompt and response; None takes what the reward model can read."""
    truncation: Truncation | None = None
    """What a row that is too long loses: `prompt-start`, the start of its prompt and, if that is
    not enough, the end of its response; or `response-end`. The output then shows what was scored.
    None cuts nothing: the row cannot be used."""
    columns: ResponseColumns = group(ResponseColumns)
    """Where prompts and responses stand."""
    credit: CreditSettings = group(CreditSettings)
    """How a score becomes token scores. Some methods ask the reward model many times."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut, for methods that need segments or to pay at their ends."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    batch_size: int = 16
    """Responses per forward pass."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    show_example: bool = False
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = None
    """Device to compute on, such as `cuda`; None for the CPU."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "max_length")
        require_at_least(self, 1, "batch_size")
        required_sources(self.reward_model, self.rewards, combine=self.combine)
        if self.output is not None and Path(self.output).suffix != ".jsonl":
            raise ConfigError(
                f"output is {self.output!r}; expected a file name that ends in .jsonl, or none "
                "for a table"
            )


@dataclass(frozen=True)
class ScoredResponse:
    """One response and what each of its tokens is worth.

    Attributes:
        prompt: text or messages that it answers.
        response: its text.
        sequence_score: the reward model's score, in nats; of several sources, combined.
        tokens: the reward model's tokens of the response, as text.
        spans: character span of each token in the response.
        token_scores: of each token, in nats.
        source_scores: of each source by its name, where there are several.
        objectives: of a reward model with several, of each by its name: `weight`, that of its score
            in the reward, `sequence_score` and `token_scores`, both without the weight. Where
            weighted token scores do not add up to `token_scores` there are none.
    """

    prompt: Prompt
    response: str
    sequence_score: float
    tokens: list[str]
    spans: list[Span]
    token_scores: list[float]
    source_scores: dict[str, float] | None = None
    objectives: dict[str, dict[str, Any]] | None = None

    def as_row(self) -> dict[str, Any]:
        """One line of the file."""
        row = asdict(self)
        for key in ("source_scores", "objectives"):
            if row[key] is None:
                del row[key]
        return row


@quiet_transformers()
def score_tokens(config: ScoreTokensConfig) -> Path | None:
    """Score the tokens of every response; write them to a file or print them as a table.

    Args:
        config: the settings.

    Returns:
        The file that was written; it appears when it is whole. None where there is none.

    Raises:
        DataError: the data are not there, or a row cannot be scored.
        ModelError: the reward model or its tokenizer is not there or lacks what is needed.
        NumericError: a score is NaN or infinite.
        RunFolderError: the output cannot be written.
    """
    left_out = config.dataset.collecting()
    rows = _rows(config, left_out)
    rewards = loaded_text_rewards(
        required_sources(config.reward_model, config.rewards, combine=config.combine),
        config.credit,
        config.segments,
        combine=config.combine,
        reading=config.reading,
        micro_batch_size=config.batch_size,
        loading={**vars(config.loading), "device": config.device},
    )
    first, rows = _first(rows)
    example = (first.prompt, first.response) if config.show_example and first else None
    print_reading("reward model", reader_of(rewards)[1], example=example)
    scored = track(
        _scored(config, rewards, rows, left_out),
        description="scoring",
        total=len(rows) if isinstance(rows, list) else None,
        console=Console(stderr=True),
        disable=not config.progress,
    )
    if config.output is None:
        found = list(scored)
        _require_some(config, len(found), left_out)
        _print_table(found)
        tell_left_out(left_out, None)
        return None
    count = 0
    path = Path(config.output)
    with writing(path), whole_file(path) as file:
        for response in scored:
            file.write(json.dumps(response.as_row(), ensure_ascii=False) + "\n")
            count += 1
        _require_some(config, count, left_out)
    tell_left_out(left_out, beside(path))
    print(f"token scores of {count} responses: {path}")
    return path


@dataclass(frozen=True)
class _Asked:
    """One row of the data: its number from 1, its prompt, its response and whether that ended."""

    number: int
    prompt: Prompt
    response: str
    ended: bool = True


def _rows(config: ScoreTokensConfig, left_out: list[LeftOut] | None) -> Iterable[_Asked]:
    """The rows of the data: all of them, or as they come where they are streamed."""
    columns = config.columns

    def asked(row: Row) -> _Asked:
        if columns.text is not None:
            return _Asked(row.number, "", text_cell(row, columns.text))
        answer = row_answer(row, columns.prompt, columns.response)
        return _Asked(row.number, *answer, ended=ended_cell(row))

    rows = dataset_rows(config.data, split=config.split, limit=config.limit, dataset=config.dataset)
    made = made_rows(asked, rows, name=config.data, left_out=left_out)
    return made if config.dataset.streaming else list(made)


def _first(rows: Iterable[_Asked]) -> tuple[_Asked | None, Iterable[_Asked]]:
    """The first row, and all of them, in a list as before or as they come."""
    if isinstance(rows, list):
        return next(iter(rows), None), rows
    coming = iter(rows)
    first = next(coming, None)
    return first, coming if first is None else chain([first], coming)


def _scored(
    config: ScoreTokensConfig,
    rewards: Rewards,
    rows: Iterable[_Asked],
    left_out: list[LeftOut] | None,
) -> Iterator[ScoredResponse]:
    one_pass = credit_method(config.credit.method).one_pass
    size = config.batch_size * (_PASSES_PER_CHUNK if one_pass else 1)
    waiting = iter(rows)
    while chunk := list(islice(waiting, size)):
        try:
            yield from _scored_chunk(config, rewards, chunk)
        except DataError as error:
            if left_out is None:
                raise DataError(
                    f"{config.data}, one of the rows {chunk[0].number} to {chunk[-1].number}: "
                    f"{error}"
                ) from error
            yield from _scored_apart(config, rewards, chunk, left_out)


def _scored_apart(
    config: ScoreTokensConfig, rewards: Rewards, rows: Iterable[_Asked], left_out: list[LeftOut]
) -> Iterator[ScoredResponse]:
    """Rows one by one, so that one which cannot be scored takes no other with it."""
    for row in rows:
        try:
            yield from _scored_chunk(config, rewards, [row])
        except DataError as error:
            left_out.append(LeftOut(row.number, f"{config.data}, row {row.number}: {error}"))


def _scored_chunk(
    config: ScoreTokensConfig, rewards: Rewards, rows: Iterable[_Asked]
) -> list[ScoredResponse]:
    kept = [_fitted(config, rewards, row) for row in rows]
    responses, ended = [row.response for row in kept], [row.ended for row in kept]
    found = paid_texts([rewards], [row.prompt for row in kept], responses, ended=ended)
    tokens = token_texts(rewards.credited.tokenizer, found.encoded, responses)
    several = len(found.source_scores) > 1
    scored = []
    for at, (row, spans) in enumerate(zip(kept, found.encoded.response_spans, strict=True)):
        sources = {name: float(scores[at]) for name, scores in found.source_scores.items()}
        one = ScoredResponse(
            row.prompt,
            row.response,
            float(found.sequence_scores[at]),
            tokens[at],
            spans,
            found.token_scores[0][at, : len(spans)].tolist(),
            sources if several else None,
            _objectives(found.objectives[0], at, len(spans)) or None,
        )
        scored.append(one)
    return scored


def _objectives(
    found: Mapping[str, PaidObjective], row: int, tokens: int
) -> dict[str, dict[str, Any]]:
    """What each objective says of one response."""
    said: dict[str, dict[str, Any]] = {}
    for name, one in found.items():
        said[name] = {"sequence_score": float(one.sequence_scores[row])}
        weight = one.weight_of(row)
        if weight is not None:
            said[name]["weight"] = weight
        if one.token_scores is not None:
            said[name]["token_scores"] = one.token_scores[row, :tokens].tolist()
    return said


def _fitted(config: ScoreTokensConfig, rewards: Rewards, row: _Asked) -> _Asked:
    """The row, cut as the settings say."""
    if config.max_length is None and config.truncation is None:
        return row
    model, reading = reader_of(rewards)
    lengths = (config.max_length, context_length(model, reading.tokenizer))
    prompt, response = cut_to_fit(
        reading,
        row.prompt,
        row.response,
        max_length=min((length for length in lengths if length is not None), default=None),
        truncation=config.truncation,
    )
    return replace(row, prompt=prompt, response=response)


def _require_some(config: ScoreTokensConfig, count: int, left_out: list[LeftOut] | None) -> None:
    """Raise DataError if all rows were left out."""
    if not count and left_out:
        raise DataError(f"no row of {config.data} can be scored; the first: {left_out[0].reason}")


def _print_table(rows: list[ScoredResponse]) -> None:
    table = Table("row", "token", "characters", "score", title="token scores, in nats")
    for number, row in enumerate(rows):
        for token, (start, end), score in zip(row.tokens, row.spans, row.token_scores, strict=True):
            shown = Text(repr(token)[1:-1].replace(" ", "·"))
            table.add_row(str(number), shown, f"{start}-{end}", f"{score:+.3f}")
        table.add_row(str(number), "whole response", "", f"{row.sequence_score:+.3f}", style="bold")
        table.add_section()
    Console().print(table)
