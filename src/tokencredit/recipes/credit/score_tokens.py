"""Score every token of the responses in a dataset: `tokencredit score-tokens`.

    tokencredit score-tokens --reward_model my/model --data answers.jsonl --output scores.jsonl

Tokens are the reward model's own. About as fast as plain scoring, by the methods that need one
forward pass per response.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError, RunFolderError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.hf_datasets import load_prompted_responses, load_texts
from tokencredit.preference.pairs import PromptedResponse
from tokencredit.scorers.evidence import (
    ONE_PASS,
    TextCredit,
    credit_numbers,
    require_text_credit,
    text_credit,
)
from tokencredit.scorers.texts import loaded_reward_model, scored_texts
from tokencredit.text.alignment import Span
from tokencredit.text.hf_rendering import Template, token_texts

# Forward passes per chunk of data: within a chunk, responses of like length go together. What asks
# the reward model again and again takes a chunk of one batch, which bounds its memory.
_PASSES_PER_CHUNK = 16


@dataclass(frozen=True)
class ScoreTokensConfig:
    """Settings of one scoring job.

    Attributes:
        reward_model: Hub id or folder of a sequence-classification model with one or two outputs.
        data: dataset id, dataset folder, or JSON-lines file.
        output: JSON-lines file to write; None prints a table.
        split: of a dataset id or folder.
        prompt_column: of the prompts, texts or lists of chat messages.
        response_column: of the responses.
        text_column: score the texts of this column, which have no prompt, instead.
        limit: use only this many first rows; None uses all.
        credit: how a score becomes token scores. Gradients, `leave-one-out`, `window` and `shapley`
            ask the reward model many times per response.
        credit_beta: share of the score that `attention` spreads; the rest stays on the last token.
        attention_layer: layer that `attention` reads; -1 is the last.
        credit_decay: share of the potential that `smoothed-prefix-difference` keeps per token.
        gradient_steps: gradients per response of `integrated-gradients`.
        window_width: most tokens that `window` reads at once.
        shapley_samples: orders of the tokens of a response that `shapley` tries out; even.
        template: `chat` renders with the reward model's chat template, a plain prompt as one
            message of the user; `plain` joins prompt and response; `auto` is `chat` where the
            reward model has a chat template and the data are not texts alone.
        batch_size: responses per forward pass.
        dtype: of the weights.
        attn_implementation: of transformers; None for its default.
        device: to compute on; None for the CPU.
        pad_token: token to pad with, where the tokenizer names none.
        seed: of the orders of `shapley`.
        trust_remote_code: run code that comes with the model; off unless you trust its author.
        progress: show a progress bar.
    """

    reward_model: str
    data: str
    output: str | None = None
    split: str = "train"
    prompt_column: str = "prompt"
    response_column: str = "response"
    text_column: str | None = None
    limit: int | None = None
    credit: TextCredit = "prefix-difference"
    credit_beta: float = 0.8
    attention_layer: int = -1
    credit_decay: float = 0.5
    gradient_steps: int = 16
    window_width: int = 3
    shapley_samples: int = 20
    template: Template = "auto"
    batch_size: int = 16
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None
    device: str | None = None
    pad_token: str | None = None
    seed: int = 0
    trust_remote_code: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        require_text_credit(self.credit)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.output is not None and Path(self.output).suffix != ".jsonl":
            raise ConfigError(
                f"output is {self.output!r}; expected a file name that ends in .jsonl, or none "
                "for a table"
            )
        if self.text_column is not None and self.template == "chat":
            raise ConfigError(
                f"text_column is {self.text_column!r} and template 'chat'; expected texts that "
                "stand alone to be read as they are: choose template 'plain', or give prompts"
            )


@dataclass(frozen=True)
class ScoredResponse:
    """One response and what each of its tokens is worth.

    Attributes:
        prompt: text or messages that it answers.
        response: its text.
        sequence_score: the reward model's score, in nats.
        tokens: the reward model's tokens of the response, as text.
        spans: character span of each token in the response.
        token_scores: of each token, in nats.
    """

    prompt: Prompt
    response: str
    sequence_score: float
    tokens: list[str]
    spans: list[Span]
    token_scores: list[float]


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
    rows = _rows(config)
    model, tokenizer = loaded_reward_model(
        config.reward_model,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device=config.device,
        pad_token=config.pad_token,
        trust_remote_code=config.trust_remote_code,
    )
    scored = track(
        _scored(config, model, tokenizer, rows),
        description="scoring",
        total=len(rows),
        console=Console(stderr=True),
        disable=not config.progress,
    )
    if config.output is None:
        _print_table(list(scored))
        return None
    path = Path(config.output)
    with _whole_file(path) as file:
        for response in scored:
            file.write(json.dumps(asdict(response), ensure_ascii=False) + "\n")
    print(f"token scores of {len(rows)} responses: {path}")
    return path


def _rows(config: ScoreTokensConfig) -> list[PromptedResponse]:
    if config.text_column is not None:
        texts = load_texts(
            config.data, split=config.split, column=config.text_column, limit=config.limit
        )
        return [PromptedResponse("", text) for text in texts]
    return load_prompted_responses(
        config.data,
        split=config.split,
        prompt_column=config.prompt_column,
        response_column=config.response_column,
        limit=config.limit,
    )


def _scored(
    config: ScoreTokensConfig,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[PromptedResponse],
) -> Iterator[ScoredResponse]:
    size = config.batch_size * (_PASSES_PER_CHUNK if config.credit in ONE_PASS else 1)
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        try:
            yield from _scored_chunk(config, model, tokenizer, chunk)
        except DataError as error:
            raise DataError(
                f"{config.data}, rows {first} to {first + len(chunk) - 1}, counted from the first "
                f"of them: {error}"
            ) from error


def _scored_chunk(
    config: ScoreTokensConfig,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[PromptedResponse],
) -> Iterator[ScoredResponse]:
    responses = [row.response for row in rows]
    encoded, scores = scored_texts(
        model,
        tokenizer,
        [row.prompt for row in rows],
        responses,
        template="plain" if config.text_column is not None else config.template,
        attention_layer=config.attention_layer if config.credit == "attention" else None,
        micro_batch_size=config.batch_size,
    )
    token_scores = text_credit(
        config.credit,
        model,
        encoded.batch,
        scores,
        attention_mask=encoded.attention_mask,
        **credit_numbers(config),
        micro_batch_size=config.batch_size,
    )
    for row, tokens, spans, score, paid in zip(
        rows,
        token_texts(tokenizer, encoded, responses),
        encoded.response_spans,
        scores.sequence_scores.tolist(),
        token_scores.tolist(),
        strict=True,
    ):
        yield ScoredResponse(row.prompt, row.response, score, tokens, spans, paid[: len(spans)])


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A file that takes its name when it is whole; if anything goes wrong there is none."""
    beside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error}); expected a folder with room and permission"
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _print_table(rows: list[ScoredResponse]) -> None:
    table = Table("row", "token", "characters", "score", title="token scores, in nats")
    for number, row in enumerate(rows):
        for token, (start, end), score in zip(row.tokens, row.spans, row.token_scores, strict=True):
            shown = Text(repr(token)[1:-1].replace(" ", "·"))
            table.add_row(str(number), shown, f"{start}-{end}", f"{score:+.3f}")
        table.add_row(str(number), "whole response", "", f"{row.sequence_score:+.3f}", style="bold")
        table.add_section()
    Console().print(table)
