"""A reward model that vLLM serves, asked for what its head says at every token.

The server is started with `--runner pooling` and a pooler of the task `token_classify`. Whatever
else answers at the address (one score per text, scores after a softmax, scores that were rounded to
half precision, another model later on) is an error: such scores would train, and train wrongly.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tokencredit.errors import ConfigError, DataError, NumericError, ServerError, TokenCreditError
from tokencredit.server.answers import told
from tokencredit.server.asking import Kind, RewardServer, json_answer
from tokencredit.server.exchange import Answer

Outputs = list[list[float]]
"""What a head says of a text: for each token, each of its outputs."""

SCHEME = "vllm+"
"""Stands before the address of a vLLM server where a reward model is named."""

# Of one request. vLLM makes batches of them as it likes.
_MOST_TEXTS, _MOST_TOKENS = 256, 2**16
_LARGEST_FLOAT32 = 3.4028234663852886e38
# How far the same model may be from itself in other batches, as a part of the range of its scores.
_SAME = 0.05


@dataclass(frozen=True)
class ScoringServer:
    """A vLLM server with a reward model.

    Attributes:
        server: where it is, and how patiently to ask it.
        model: the name that it goes by there.
        origin: the folder or Hub id that it was loaded from.
        max_length: tokens that it can read.
        probe: a text that is sent along with every request.
        known: what the head said of it at first; empty before the first time.
    """

    server: RewardServer
    model: str
    origin: str
    max_length: int
    probe: tuple[int, ...] = ()
    known: tuple[tuple[float, ...], ...] = ()


def is_vllm_address(name: str) -> bool:
    """Whether this names a reward model that vLLM serves.

    >>> is_vllm_address("vllm+http://localhost:8000"), is_vllm_address("http://localhost:8000")
    (True, False)
    """
    return name.startswith(SCHEME)


def vllm_address(name: str) -> tuple[str, str | None]:
    """The address of the server, and the folder or Hub id of its model where one is named.

    >>> vllm_address("vllm+http://localhost:8000")
    ('http://localhost:8000', None)
    >>> vllm_address("vllm+http://localhost:8000#my/reward")
    ('http://localhost:8000', 'my/reward')
    """
    address, _, model = name.removeprefix(SCHEME).partition("#")
    return address, model or None


def scoring_server(server: RewardServer) -> ScoringServer:
    """The model that a vLLM server has.

    Raises:
        ServerError, ConfigError: nobody answers there, or something else than a vLLM server.
    """
    models = json_answer(server, _VLLM, "GET", "/v1/models")
    try:
        model = models["data"][0]
        name, length = str(model["id"]), int(model["max_model_len"])
        return ScoringServer(server, name, str(model.get("root") or name), length)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(
            f"the vLLM server at {server.address} names no model: {str(models)[:80]!a}; expected "
            f"{_PROGRAM}"
        ) from error


def probed(scoring: ScoringServer, probe: Sequence[int], *, outputs: int) -> ScoringServer:
    """A scoring server that has shown that it says what the head says of every token.

    Args:
        scoring: of `scoring_server`.
        probe: ids of a text of some twenty different tokens.
        outputs: of the head.

    Raises:
        ConfigError: the server applies a softmax or sigmoid, or rounds to half precision.
        ServerError: it gives one score per text, other outputs, or other numbers of tokens.
    """
    (raw,), (shaped,) = (_outputs(scoring, [list(probe)], shaped) for shaped in (False, True))
    widths = sorted({len(row) for row in raw})
    if widths != [outputs]:
        raise ServerError(
            f"the vLLM server at {scoring.server.address} says {widths} numbers of each token; "
            f"expected {outputs}, as the head of {scoring.origin} has outputs: is another model "
            "served there?"
        )
    if _is_probability(raw) and all(map(_close, raw, shaped)):
        raise ConfigError(
            f"the vLLM server at {scoring.server.address} answers with probabilities although it "
            "is asked for none (use_activation); expected what the head itself says, in nats: "
            f"{_START}"
        )
    for name, survives in _HALVES.items():
        if all(survives(value) for row in raw for value in row):
            raise ConfigError(
                f"the vLLM server at {scoring.server.address} computes its head in {name}, in "
                "whose steps most tokens would earn nothing; expected a head in float32, as vLLM "
                "has it by itself: leave head_dtype out of --hf-overrides"
            )
    return replace(scoring, probe=tuple(probe), known=tuple(map(tuple, raw)))


def token_outputs(scoring: ScoringServer, texts: Sequence[Sequence[int]]) -> list[Outputs]:
    """What the head says at every token of every text.

    Args:
        scoring: of `probed`.
        texts: token ids, none empty.

    Raises:
        ServerError: the server fails, says another number of tokens, or another model answers than
            at first.
        DataError: a text is longer than the server takes, or has an id that it does not know.
        NumericError: a score is NaN or infinite.
        ConfigError: the token is not the right one.
    """
    for number, text in enumerate(texts):
        if len(text) > scoring.max_length:
            raise DataError(
                f"text {number} has {len(text)} tokens; expected at most {scoring.max_length}, "
                f"what the vLLM server at {scoring.server.address} takes: shorten or drop it, or "
                "start the server with a larger --max-model-len"
            )
    found: list[Outputs] = []
    for part in _parted(texts):
        again, *said = _outputs(scoring, [list(scoring.probe), *map(list, part)], shaped=False)
        known, now = (list(chain.from_iterable(rows)) for rows in (scoring.known, again))
        near = _SAME * max(max(known) - min(known), 1e-3)
        if any(abs(a - b) > near for a, b in zip(now, known, strict=True)):
            raise ServerError(
                f"the vLLM server at {scoring.server.address} scores a text otherwise than at "
                "first: another model is served there; expected one reward model for a whole run: "
                "serve the first one again and go on from the last checkpoint, or begin another run"
            )
        found += said
    return found


def _parted(texts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Texts in groups that one request holds; one that is longer than any goes alone."""
    first, tokens = 0, 0
    for index, text in enumerate(texts):
        full = index - first == _MOST_TEXTS or tokens + len(text) > _MOST_TOKENS
        if index > first and full:
            yield texts[first:index]
            first, tokens = index, 0
        tokens += len(text)
    if len(texts) > first:
        yield texts[first:]


def _outputs(scoring: ScoringServer, texts: list[list[int]], shaped: bool) -> list[Outputs]:
    """The answer to one request, checked for its shape; `shaped` asks for probabilities."""
    asked = {"model": scoring.model, "task": "token_classify", "use_activation": shaped}
    answer = json_answer(scoring.server, _VLLM, "POST", "/pooling", asked | {"input": texts})
    at = f"the vLLM server at {scoring.server.address}"
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != len(texts):
        raise ServerError(
            f"{at} answers {len(texts)} texts with {str(rows)[:60]!a}; expected one entry for each"
        )
    width = len(scoring.known[0]) if scoring.known else None
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        said = row.get("data") if isinstance(row, dict) else None
        if not isinstance(said, list) or not said or not isinstance(said[0], list):
            raise ServerError(
                f"{at} answers text {number} with {str(said)[:60]!a}; expected a list for each of "
                f"its {len(text)} tokens, not one score for the text: {_START}"
            )
        if len(said) != len(text):
            raise ServerError(
                f"{at} answers text {number} of {len(text)} tokens with scores of {len(said)}; "
                "expected one for each token: prefix caching or another pooler leaves some out"
            )
        for values in said:
            _require_numbers(values, width, at=at, number=number)
    return [[list(map(float, values)) for values in row["data"]] for row in rows]


def _require_numbers(values: Any, width: int | None, *, at: str, number: int) -> None:
    """Finite numbers, as many as outputs."""
    plain = isinstance(values, list) and bool(values) and width in (None, len(values))
    if not plain or not all(value is None or type(value) in (int, float) for value in values):
        raise ServerError(
            f"{at} answers text {number} with {str(values)[:60]!a} for a token; expected "
            f"{'numbers' if width is None else f'{width} numbers'}"
        )
    if not all(value is not None and abs(value) <= _LARGEST_FLOAT32 for value in values):
        raise NumericError(
            f"{at} answers text {number} with NaN, an infinite number or null; expected finite "
            "ones: look for NaN weights, or serve the model in float32 or bfloat16"
        )


def _is_probability(rows: Outputs) -> bool:
    """Whether these may be probabilities: of one output from 0 to 1, of several adding up to 1."""
    flat = [value for row in rows for value in row]
    inside = all(-1e-6 <= value <= 1 + 1e-6 for value in flat)
    return inside and all(len(row) == 1 or abs(sum(row) - 1) < 1e-2 for row in rows)


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) < 1e-4 for a, b in zip(one, other, strict=True))


def _is_bfloat16(value: float) -> bool:
    """Whether bfloat16 can hold a number that came in float32: its lower half is zero."""
    return struct.pack(">f", value)[2:] == b"\0\0"


def _is_float16(value: float) -> bool:
    """Whether float16 can hold a number."""
    try:
        return struct.unpack("e", struct.pack("e", value))[0] == value
    except OverflowError:
        return False


_HALVES = {"bfloat16": _is_bfloat16, "float16": _is_float16}
_START = (
    "start it with --runner pooling and --pooler-config "
    '\'{"task":"token_classify","use_activation":false}\''
)
_PROGRAM = f"a vLLM server with a reward model: {_START}"


def _refusal(answer: Answer, server: RewardServer) -> TokenCreditError:
    said = f"the vLLM server at {server.address} answered {told(answer, token=server.token)}"
    if answer.status in (401, 403):
        return ConfigError(
            f"{said}; expected the key that it was started with, in the environment variable that "
            "server.token_variable names"
        )
    if answer.status == 400 and "out of vocabulary" in said:
        return DataError(
            f"{said}; expected ids that the reward model knows: is it the model of that tokenizer?"
        )
    return ServerError(f"{said}; expected {_PROGRAM}")


_VLLM = Kind("vLLM server", _PROGRAM, _refusal)
