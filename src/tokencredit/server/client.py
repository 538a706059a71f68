"""Scores from a running `tokencredit serve`, with the standard library alone.

    rows = post_scores("http://reward-host:9000", [{"prompt": "It is", "response": " good."}])

What may pass (a server that is down, slow or full) is asked again, later and later, so often and no
oftener. What will not (a wrong token, a text that is too long, NaN) is an error at once.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tokencredit.errors import TokenCreditError
from tokencredit.server.answers import (
    MODEL_HEADER,
    About,
    ScoredResponse,
    about_of,
    fingerprint_of,
    refusal_of,
    require_same_model,
    scored_responses,
)
from tokencredit.server.asking import Kind, json_answer
from tokencredit.server.asking import RewardServer as RewardServer
from tokencredit.server.exchange import Answer

_Texts = Sequence[Mapping[str, Any]]


def _refusal(answer: Answer, server: RewardServer) -> TokenCreditError:
    return refusal_of(answer, address=server.address, token=server.token)


_OURS = Kind("reward server", "a `tokencredit serve`", _refusal)


def post_scores(
    address: str,
    texts: _Texts,
    credit: Sequence[str] = (),
    *,
    details: Sequence[str] = (),
    token: str | None = None,
    timeout: float = 90.0,
    retries: int = 10,
    backoff: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> list[ScoredResponse]:
    """Scores of texts by a served reward model, in one request.

    Args:
        address: `http://host:port` or `https://host:port`.
        texts: each with `prompt` and `response`, as `POST /score` takes them.
        credit: names of credit methods; none for sequence scores alone.
        details: "prefix-scores", "attention" or both.
        token: as in `RewardServer`, like the rest.
        timeout: seconds for one answer.
        retries: how often to ask again.
        backoff: seconds, doubled with every time.
        sleep: waits.

    Raises:
        ServerError: no answer in time, so often; or it is not what was asked for.
        ConfigError: the address is none, or the token is not the right one.
        DataError, ModelError, NumericError: the server says so of the texts, the model, a score.
    """
    server = RewardServer(address, token, timeout, retries, backoff, sleep=sleep)
    return scored(server, texts, credit=credit, details=details)


def scored(
    server: RewardServer,
    texts: _Texts,
    *,
    credit: Sequence[str] = (),
    details: Sequence[str] = (),
    about: About | None = None,
) -> list[ScoredResponse]:
    """Scores of any number of texts, or of token ids, by a served reward model.

    Args:
        server: to ask.
        texts: each with `prompt` and `response`, or all with `response_ids` and `prompt_ids` or
            `prompt`.
        credit: names of credit methods.
        details: names of what credit is made from.
        about: what the server said of itself: more than one request can hold goes in several, and
            all answers must be of this model. None sends one request, whichever model answers.

    Raises:
        ServerError: another model answers than before, or as `post_scores`.
        ConfigError, DataError, ModelError, NumericError: as `post_scores`.
    """
    found: list[ScoredResponse] = []
    if not texts:
        return found
    parts: Iterable[_Texts] = [texts]
    if about is not None:
        parts = parted(texts, about.max_texts, about.max_body_bytes, about.max_request_tokens)
    for part in parts:
        kind = "ids" if "response_ids" in part[0] else "texts"
        asked = {kind: list(part), "credit": list(credit)}
        if details:
            asked["details"] = list(details)
        known = None if about is None else about.fingerprint
        check = None if known is None else partial(_require_known, server, known)
        answer = json_answer(server, _OURS, "POST", "/score", asked, check=check)
        if known is not None:
            found_as = fingerprint_of(answer)
            require_same_model(found_as, fingerprint=known, address=server.address)
        found += scored_responses(answer, part, credit, details)
    return found


def _require_known(server: RewardServer, fingerprint: str, answer: Answer) -> None:
    """Refuse another model; it may also refuse what the first one took."""
    found = answer.headers.get(MODEL_HEADER.lower(), fingerprint)
    require_same_model(found, fingerprint=fingerprint, address=server.address)


def about(server: RewardServer) -> About:
    """What a server serves, and how much of it one request may ask for.

    Raises:
        ServerError, ConfigError: as `post_scores`.
    """
    return about_of(json_answer(server, _OURS, "GET", "/about"))


def parted(
    texts: _Texts, most: int, most_bytes: int, most_tokens: int | None = None
) -> Iterator[_Texts]:
    """Texts in groups that a request can hold; one that is too long for any goes alone.

    Args:
        texts: of any number.
        most: texts of a group.
        most_bytes: of a group as JSON.
        most_tokens: of a group: of ids as many as there are, of texts no more than bytes; None for
            any number.

    >>> [len(group) for group in parted([{"response": "a"}] * 5, most=2, most_bytes=10_000)]
    [2, 2, 1]
    """
    first, size, tokens = 0, 0, 0
    for index, text in enumerate(texts):
        own = len(json.dumps(text)) + 2
        ids = len(text["prompt_ids"]) + len(text["response_ids"]) if "prompt_ids" in text else own
        # 300 bytes for what stands around the texts.
        full = index - first == most or size + own > most_bytes - 300
        full = full or (most_tokens is not None and tokens + ids > most_tokens)
        if index > first and full:
            yield texts[first:index]
            first, size, tokens = index, 0, 0
        size, tokens = size + own, tokens + ids
    if len(texts) > first:
        yield texts[first:]
