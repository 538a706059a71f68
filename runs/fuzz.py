"""Inputs that nobody should send, by the hundred thousand, into all that reads what users write.

    python runs/fuzz.py --inputs 100000 --seed 0

The law: an input succeeds, or raises an error of `tokencredit.errors` (from the server: a status of
`docs/serve.md`), and takes no more than a few seconds of one core. An input that breaks it is made
as small as hypothesis can, printed, and the script fails. No network, no GPU; models are tiny and
random.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import fuzz_inputs as given
import hypothesis
import torch
from credit_names import ONE_PASS_ALONE
from fuzz_inputs import Draws
from hypothesis import strategies as st

from tokencredit import cli
from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.settings import CreditSettings, ProbeSettings
from tokencredit.errors import TokenCreditError
from tokencredit.preference import (
    hf_comparisons,
    hf_datasets,
    hf_labels,
    hf_marked_texts,
)
from tokencredit.preference.labels import (
    LabelledSpan,
    StepLabels,
    edit_labels,
    step_segment_ids,
    token_span_labels,
)
from tokencredit.preference.marked_texts import MarkedText, marks_of_annotators
from tokencredit.preference.pairs import without_common_prompt
from tokencredit.recipes.run.run_folder import resolved_yaml
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.scorers.text_rewards import paid_texts
from tokencredit.text.alignment import project_token_scores, spans_of_words
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import token_texts
from tokencredit.text.segments import SegmentSettings, require_tiling, segment_ends
from tokencredit.text.sentences import text_segments

CONTEXT = 1024
SECONDS = 5.0


class RefusedError(Exception):
    """An answer of the server that is an error, and one of those it may give."""


class TooSlowError(BaseException):
    """An input took too long; no `except Exception` on the way stops it."""


# Settings of commands


def configuration(value: tuple[str, list[str], bytes | None]) -> None:
    """The settings of a command from its arguments, or from a YAML file."""
    command, arguments, file = value
    if file is not None:
        path = _folder() / "settings.yaml"
        path.write_bytes(file)
        arguments = ["--config", str(path)]
    resolved_yaml(cli._parsed(command, _config_class(command), arguments))


def configuration_input(draws: Draws) -> tuple[str, list[str], bytes | None]:
    command = draws.one(("score-tokens", "generate", "train-policy", "train-reward-model"))
    return command, *given.settings_of(draws, _config_class(command))


@cache
def _config_class(command: str) -> Any:
    return cli.recipe_of(command)[1]


@cache
def _folder() -> Path:
    """Where files for loaders are written; gone at the end."""
    kept = tempfile.TemporaryDirectory()
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[Any] = []

# Files of data

LOADERS: dict[str, Callable[[Path], Any]] = {
    "texts": hf_datasets.load_texts,
    "labels": hf_datasets.load_labelled_responses,
    "ratings": lambda path: hf_datasets.load_rated_responses(path, prompt_column="prompt"),
    "prompts": hf_datasets.load_prompts,
    "completions": hf_datasets.load_prompted_responses,
    "pairs": lambda path: hf_datasets.load_pairs(path, margin_column="margin"),
    "prompted pairs": lambda path: hf_datasets.load_pairs(path, left_out=[]),
    "comparisons": hf_comparisons.load_comparisons,
    "parts": hf_datasets.load_prompts,
    "sharegpt": hf_datasets.load_prompted_responses,
    "tools": hf_datasets.load_prompted_responses,
    "asked elsewhere": lambda path: hf_datasets.load_pairs(path, left_out=[]),
    "transcripts": hf_comparisons.load_comparisons,
    "edits": hf_labels.load_edits,
    "spans": hf_labels.load_labelled_spans,
    "error spans": hf_labels.load_error_spans,
    "steps": hf_labels.load_step_labels,
    "marked": hf_marked_texts.load_marked_texts,
    "annotated": hf_marked_texts.load_marked_texts,
}


def data(value: tuple[str, str, bytes]) -> None:
    """A file of data through its loader; what comes out can be written as UTF-8."""
    kind, suffix, content = value
    path = _folder() / f"data{suffix}"
    path.write_bytes(content)
    str(LOADERS[kind](path)).encode()


# Chat templates


def chats(value: tuple[str, list[Any], str]) -> None:
    """A conversation as a reward model reads it, and as a prompt of a policy."""
    template, conversation, response = value
    tokenizer = _tokenizers()["byte level"]
    tokenizer.chat_template = template
    reading = Reading(tokenizer, "chat")
    encoded = reading.encoded([conversation], [response], empty="keep")
    _require_spans(encoded.response_spans[0], response)
    reading.prompt_rows([conversation], where="the prompts")


# Spans of characters


def spans(value: tuple[str, list[Any], list[Any], str]) -> None:
    """Tokens of a text, other tokens of it, and all that goes from the one to the other."""
    text, source, target, kind = value
    scores = [float(number) for number in range(len(source))]
    match kind:
        case "overlap" | "last":
            paid = project_token_scores(scores, source, target, split=kind)  # type: ignore[arg-type]
            assert math.isclose(float(paid.sum()), sum(scores), abs_tol=1e-3), "the sum changed"
        case "sentence" | "clause":
            ids = text_segments(source, text, kind=kind)[None]  # type: ignore[arg-type]
            require_tiling(ids, torch.ones_like(ids, dtype=torch.bool))
            assert segment_ends(ids).sum() == ids.unique().numel(), "an end for every segment"
        case "labels":
            labelled = [LabelledSpan(start, end, "minor") for start, end in source]
            token_span_labels(text, labelled, target, severities=["minor"])
        case "steps":
            steps = tuple(text[start:end] for start, end in source)
            StepLabels("", steps, (True,) * len(steps))
            step_segment_ids(steps, target, step_separator="\n")
        case "marks":
            marks_of_annotators(MarkedText("", text, (tuple(source), tuple(target))))
        case "words":
            assert len(spans_of_words(source, text)) == len(source)
        case "edits":
            kept, _ = edit_labels([end for _, end in source], [end for _, end in target])
            assert len(kept) == len(target)
        case "pairs":
            one, other = text[: len(source)] + "a", text[: len(target)] + "b"
            prompt, chosen, _ = without_common_prompt(one, other)
            assert prompt + chosen == one


def spans_input(draws: Draws) -> tuple[str, list[Any], list[Any], str]:
    text = given.text(draws)
    kind = draws.one(
        ("overlap", "last", "sentence", "clause", "labels", "steps", "marks", "words", "edits",
         "pairs")
    )  # fmt: skip
    return text, given.cuts(draws, text), given.cuts(draws, text), kind


# Texts to token scores


def texts(value: tuple[str, str, str, str]) -> None:
    """What `score-tokens` does with one prompt and its response."""
    family, credit, prompt, response = value
    tokenizer = _tokenizers()[family]
    tokenizer.chat_template = None
    model, reading = _reward_model(len(tokenizer)), written_by(tokenizer)
    rewards = loaded_rewards(
        [RewardSource("own")],
        CreditSettings(credit, probe=ProbeSettings(steps=2, samples=2)),
        SegmentSettings("sentence"),
        CombinationSettings(),
        reading,
        known={"own": (model, reading)},
        micro_batch_size=32,
    )
    found = paid_texts([rewards], [prompt], [response])
    encoded, (paid,) = found.encoded, found.token_scores
    assert bool(paid.isfinite().all()), "a token is paid NaN or an infinite score"
    (names,) = token_texts(tokenizer, encoded, [response])
    _require_spans(encoded.response_spans[0], response)
    assert len(names) == len(encoded.response_spans[0]) == int(encoded.batch.response_mask.sum())


def texts_input(draws: Draws) -> tuple[str, str, str, str]:
    family, credit = draws.one(list(_tokenizers())), draws.one(ONE_PASS_ALONE)
    return family, credit, given.text(draws), given.text(draws)


def _require_spans(spans: list[tuple[int, int]], text: str) -> None:
    ends = [0, *(end for _, end in spans)]
    assert all(0 <= start <= end <= len(text) for start, end in spans), f"{spans} of {text!r}"
    assert all(one <= other for one, other in pairwise(ends)), f"{spans} are out of order"


@cache
def _tokenizers() -> dict[str, Any]:
    from tiny_tokenizers import byte_level, unigram, word_level, wordpiece

    families = (byte_level(bos=True), word_level(bos=True), unigram(bos=True), wordpiece())
    return dict(zip(("byte level", "word level", "unigram", "wordpiece"), families, strict=True))


@cache
def _reward_model(vocabulary: int) -> Any:
    from tiny_models import tiny_model

    sizes = {"num_hidden_layers": 1, "max_position_embeddings": CONTEXT}
    return tiny_model("gpt2", vocab_size=vocabulary, **sizes)


# The server

# docs/serve.md, but for those that say that the server is at fault.
STATUSES = (200, 400, 401, 403, 404, 405, 413, 415, 422)


def requests(value: tuple[str, str, bytes, dict[str, str]]) -> None:
    """One request; the answer is of the form that the documentation shows."""
    method, path, body, headers = value
    loop, client = _client()
    answer = loop.run_until_complete(
        client.request(
            method,
            path,
            content=body,
            headers={name: text.encode("latin-1") for name, text in headers.items()},
        )
    )
    assert answer.status_code in STATUSES, f"{answer.status_code}: {answer.text[:300]}"
    if answer.headers["content-type"] == "application/json" and method != "HEAD":
        told = json.loads(answer.content)
        if answer.status_code != 200:
            assert set(told) == {"error"}, told
            assert set(told["error"]) == {"type", "message"}, told
    if answer.status_code != 200:
        raise RefusedError


@cache
def _client() -> tuple[asyncio.AbstractEventLoop, Any]:
    """A client of the running application; both live as long as the process."""
    import httpx2
    from tiny_server import served_model, tiny_app

    tokenizer = _tokenizers()["byte level"]
    model = _reward_model(len(tokenizer))
    served = served_model(model, tokenizer)
    tokenizer.chat_template = given.TEMPLATES[1]
    bounds = {"max_wait_ms": 0.0, "max_body_bytes": 2**17, "max_request_tokens": 2**12}
    app = tiny_app(served, hosts=("server",), **bounds)
    transport = httpx2.ASGITransport(app=app)
    loop = asyncio.new_event_loop()
    return loop, httpx2.AsyncClient(transport=transport, base_url="http://server")


# The law


@dataclass(frozen=True)
class Surface:
    """Something that reads what users write.

    Attributes:
        share: of all inputs.
        drawn: an input from draws.
        attempt: reads one of them.
    """

    share: float
    drawn: Callable[[Draws], Any]
    attempt: Callable[[Any], None]


SURFACES = {
    "data": Surface(0.37, given.data_file, data),
    "spans": Surface(0.30, spans_input, spans),
    "chats": Surface(0.17, given.chat, chats),
    "requests": Surface(0.10, given.request, requests),
    "texts": Surface(0.05, texts_input, texts),
    # Its parser takes longer than all of what the others read.
    "configuration": Surface(0.01, configuration_input, configuration),
}
# An input is made from so many bytes.
BYTES = 400


@dataclass
class Tally:
    """What came of the inputs of one surface; seconds are those of one core."""

    inputs: int = 0
    succeeded: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def row(self, name: str) -> str:
        """A line of the table."""
        share = self.succeeded / max(1, self.inputs)
        refused = self.inputs - self.succeeded
        return (
            f"{name:<14} {self.inputs:>7} {self.succeeded:>10} {share:>5.0%} {refused:>8} "
            f"{self.seconds:>8.1f} {self.slowest:>8.2f}"
        )


HEADING = "surface         inputs  succeeded        refused  seconds  slowest"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TooSlowError in what computes for longer, or waits for much longer."""

    def ring(*_: Any) -> None:
        raise TooSlowError

    handlers = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    left, _ = signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        # The alarm that was set before goes on.
        signal.setitimer(signal.ITIMER_REAL, left)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def succeeds(surface: Surface, value: Any, *, seconds: float = SECONDS) -> bool:
    """Whether an input is taken, rather than refused as it should be; anything else is raised."""
    try:
        with time_limit(seconds), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            surface.attempt(value)
    except (TokenCreditError, RefusedError):
        return False
    except TooSlowError:
        raise AssertionError(f"more than {seconds:g} seconds") from None
    except SystemExit as end:
        if end.code not in (0, 2):
            raise AssertionError(f"exit status {end.code}") from end
        return end.code == 0
    return True


def fuzzed(surface: Surface, *, inputs: int, seed: int) -> Tally:
    """The inputs of one surface, each of which keeps the law.

    Raises:
        Exception: the smallest input that breaks it stands in its notes.
    """
    tally, began = Tally(), time.process_time()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.binary(min_size=BYTES, max_size=BYTES))
    def every(data: bytes) -> None:
        value = surface.drawn(Draws(data))
        start = time.process_time()
        try:
            tally.succeeded += succeeds(surface, value)
        except Exception as error:
            error.add_note(f"input: {value!a:.2000}")
            raise
        tally.inputs += 1
        tally.slowest = max(tally.slowest, time.process_time() - start)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        succeeds(surface, surface.drawn(Draws(b"")), seconds=60.0)  # imports and models
        every()
    tally.seconds = time.process_time() - began
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(SURFACES), help="all inputs to this surface")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADING, flush=True)
    total = Tally()
    for name, surface in SURFACES.items():
        if arguments.only not in (None, name):
            continue
        count = arguments.inputs if arguments.only else round(arguments.inputs * surface.share)
        tally = fuzzed(surface, inputs=count, seed=arguments.seed)
        print(tally.row(name), flush=True)
        total.inputs += tally.inputs
        total.succeeded += tally.succeeded
        total.seconds += tally.seconds
        total.slowest = max(total.slowest, tally.slowest)
    print(total.row("all"))


if __name__ == "__main__":
    main()
