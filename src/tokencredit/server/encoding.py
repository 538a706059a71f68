"""Bodies to requests and texts to rows, in pieces that each take a fraction of a second.

What costs nothing to see is looked at first: the number of texts, of ids, of characters.
"""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from tokencredit.errors import DataError, ModelError
from tokencredit.server.messages import PromptAndResponse
from tokencredit.server.refusals import RefusedError
from tokencredit.server.rows import TokenRow

Text = TypeVar("Text")
Request = TypeVar("Request", bound=BaseModel)

# Characters of a piece, as if all its texts were as long as the longest.
PIECE = 2**16
# No text of more characters for each token that a row may have is cut into tokens.
_LONGEST_TOKEN = 16


def parsed_request(
    kind: type[Request], body: bytes, *, expected: str, most_texts: int, most_tokens: int
) -> Generator[None, None, Request]:
    """A body as the request that it is.

    Args:
        kind: of the request.
        body: as it came.
        expected: what it should have been, in words.
        most_texts: that one request may hold.
        most_tokens: likewise; ids alone are counted here.

    Raises:
        RefusedError: it is no JSON, or holds too much.
        ValidationError: it is another object.
    """
    try:
        value = from_json(body)
    except ValueError as error:
        message = f"the body: Invalid JSON ({error}). Expected {expected}"
        raise RefusedError(422, "RequestError", message) from error
    yield
    entries = value if isinstance(value, dict) else {}
    for key in ("texts", "ids", "query"):
        number = len(entries[key]) if isinstance(entries.get(key), list) else 0
        if number > most_texts:
            raise RefusedError(
                422,
                "RequestError",
                f"{number} texts in one request; expected at most {most_texts}, what the queue "
                "holds: send several requests",
            )
    for text in entries["ids"] if isinstance(entries.get("ids"), list) else ():
        if isinstance(text, dict):
            lists = (each for each in text.values() if isinstance(each, list))
            most_tokens -= sum(map(len, lists))
    if most_tokens < 0:
        raise too_many_tokens()
    return kind.model_validate(value)


def too_many_tokens() -> RefusedError:
    """The answer to a request of too many tokens."""
    return RefusedError(
        413,
        "TooManyTokens",
        "the texts of the request have more tokens than limits.max_request_tokens; expected at "
        "most that, as /about says it: send several requests",
    )


def encoded_rows(
    encode: Callable[[Sequence[Text]], list[TokenRow]],
    texts: Sequence[Text],
    *,
    size: Callable[[Text], int],
    longest: int | None,
    vocabulary: int,
    most_tokens: int,
) -> Generator[None, None, list[TokenRow]]:
    """Texts as rows, those of like length together.

    Args:
        encode: texts to rows.
        texts: of one request.
        size: of a text, in characters; what takes as long to read counts as many.
        longest: size of a text that is looked at; None looks at all.
        vocabulary: ids that the model knows.
        most_tokens: of all rows.

    Returns:
        One row per text.

    Raises:
        DataError: a text cannot be scored, or has tokens that the model does not know.
        RefusedError: there are too many tokens.
    """
    sizes = [size(text) for text in texts]
    for number, length in enumerate(sizes):
        if longest is not None and length > longest:
            raise DataError(
                f"text {number} has {length} characters; expected at most {longest}, more than fit "
                "the tokens that a row may have: shorten or drop it"
            )
    yield
    rows: dict[int, TokenRow] = {}
    for numbers in pieces(sizes, PIECE):
        try:
            found = encode([texts[number] for number in numbers])
        except (DataError, ModelError) as error:
            raise _renumbered(error, numbers) from error
        for number, row in zip(numbers, found, strict=True):
            _require_known(row, number, vocabulary)
            rows[number] = row
            most_tokens -= row.length
        if most_tokens < 0:
            raise too_many_tokens()
        yield
    return [rows[number] for number in range(len(texts))]


def pieces(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Texts of like length in groups, given by their places, the shortest first.

    Args:
        sizes: of the texts.
        most: of a group, counted as if all were as long as its longest; a longer text goes alone.

    >>> list(pieces([9, 1, 2, 10, 2], 20))
    [[1, 2, 4], [0, 3]]
    """
    group: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: sizes[number]):
        if group and (len(group) + 1) * sizes[number] > most:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def characters(text: PromptAndResponse) -> int:
    """How many characters a prompt has with its response, all that a template may show included."""
    if isinstance(text.prompt, str):
        return len(text.prompt) + len(text.response)
    shown: Any = ([*vars(message).values(), message.model_extra] for message in text.prompt)
    return len(text.response) + sum(len(str(values)) for values in shown)


def longest_text(max_tokens: int) -> int:
    """Characters beyond which no text fits a row of so many tokens."""
    return max(PIECE, _LONGEST_TOKEN * max_tokens)


def _require_known(row: TokenRow, number: int, vocabulary: int) -> None:
    """Raise DataError for an id that the model has no embedding of."""
    ids = (*row.prompt_ids, *row.response_ids, *row.closing_ids)
    if ids and max(ids) >= vocabulary:
        raise DataError(
            f"text {number} has a token of the id {max(ids)}, which its tokenizer knows and the "
            f"reward model does not; expected ids below {vocabulary}: drop what is written like a "
            "special token from the text, or serve the model with the tokenizer that it learnt with"
        )


def _renumbered(error: DataError | ModelError, numbers: Sequence[int]) -> DataError | ModelError:
    """An error about a text of a piece, with its place in the request."""
    return type(error)(
        re.sub(r"^text (\d+)", lambda found: f"text {numbers[int(found[1])]}", str(error))
    )
