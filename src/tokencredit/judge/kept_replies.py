"""Replies of a judge kept in a file, so that no question is asked twice.

The file is an SQLite database: several processes may share it, and one that is killed leaves it
whole. Replies are stored in groups while a long list of questions is being answered.
"""

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from tokencredit.errors import DataError
from tokencredit.judge.questions import Question
from tokencredit.judge.verdicts import Reply

_VERSION = 0x7C01  # of a file of this form, in its header
_WAIT = 60.0  # seconds for another process that is writing
_GROUP = 64  # questions that are asked before their replies are stored
_MOST_KEYS = 500  # of one look into the file


def kept_replies(
    judge: Callable[[Sequence[Question]], Sequence[Reply]], path: str | Path, *, identity: str
) -> Callable[[Sequence[Question]], list[Reply]]:
    """A judge that asks another one only what no file has an answer to.

    A reply is found by the identity of the judge, the messages, the answers asked for and the
    draw. Errors are not kept; replies that cannot be read are. Where two processes ask the same,
    both give the reply that was stored first.

    Args:
        judge: that is asked.
        path: of the file; made where there is none.
        identity: of the judge: its model, and how it draws. Whoever leaves something out that
            replies depend on gets those of another judge.

    Returns:
        A function from questions to replies.

    Raises:
        DataError: when it is asked: the file is damaged, is something else or cannot be written, or
            the judge does not give one reply per question.

    >>> from tempfile import TemporaryDirectory
    >>> asked = [Question(({"role": "user", "content": "Yes or no?"},))]
    >>> with TemporaryDirectory() as folder:
    ...     once = kept_replies(lambda _: [Reply("yes")], f"{folder}/kept.db", identity="a")(asked)
    ...     again = kept_replies(lambda _: [Reply("no")], f"{folder}/kept.db", identity="a")(asked)
    >>> once[0].text, again[0].text
    ('yes', 'yes')
    """
    place = Path(path)

    def asked(questions: Sequence[Question]) -> list[Reply]:
        keys = [_key(identity, question) for question in questions]
        with _opened(place) as file:
            found = _stored(file, keys)
        missing = {
            key: question for key, question in zip(keys, questions, strict=True) if key not in found
        }
        rows = list(missing.items())
        for start in range(0, len(rows), _GROUP):
            some = dict(rows[start : start + _GROUP])
            replies = list(judge(list(some.values())))
            if len(replies) != len(some):
                raise DataError(
                    f"the judge gives {len(replies)} replies to {len(some)} questions; expected "
                    "one for each"
                )
            with _opened(place) as file:
                _store(file, dict(zip(some, replies, strict=True)))
                found |= _stored(file, list(some))
        return [found[key] for key in keys]

    return asked


def _key(identity: str, question: Question) -> str:
    asked = [identity, list(question.messages), list(question.answers), question.draw]
    text = json.dumps(asked, sort_keys=True)  # ASCII: lone surrogates are escaped
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, checked; what is wrong with it is a DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_WAIT)) as file:
            if _version(file) != _VERSION:
                with file:
                    file.execute("BEGIN IMMEDIATE")  # another process may be making it
                    _make(file, path)
            yield file
    except (sqlite3.Error, OSError) as error:
        raise DataError(
            f"the cache {str(path)!r} cannot be used ({error}); expected a file that keeps "
            "replies: if it is damaged, remove it, and everything is asked anew"
        ) from error


def _version(file: sqlite3.Connection) -> int:
    return int(file.execute("PRAGMA user_version").fetchone()[0])


def _make(file: sqlite3.Connection, path: Path) -> None:
    version, table = _version(file), file.execute("SELECT 1 FROM sqlite_master").fetchone()
    if version == 0 and table is None:
        file.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT)")
        file.execute(f"PRAGMA user_version = {_VERSION}")
    elif version != _VERSION:
        raise DataError(
            f"the cache {str(path)!r} is another database; expected a file that keeps replies, or "
            "none yet: name another file"
        )


def _stored(file: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), _MOST_KEYS):
        some = distinct[start : start + _MOST_KEYS]
        marks = ", ".join("?" * len(some))
        rows = file.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some)
        found |= {key: _reply(text) for key, text in rows}
    return found


def _store(file: sqlite3.Connection, replies: Mapping[str, Reply]) -> None:
    rows = [(key, json.dumps(asdict(reply))) for key, reply in replies.items()]
    with file:
        file.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)


def _reply(text: str) -> Reply:
    try:
        values = json.loads(text)
        reply = Reply(**values)
        numbers = [*reply.logprobs.values(), reply.bound]
        whole = isinstance(reply.text, str) and isinstance(reply.problem, str)
        if not whole or any(math.isnan(float(number)) for number in numbers):
            raise ValueError("not what was stored")
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"the cache holds {text[:80]!a} in the place of a reply; expected what was stored: "
            "remove the file, and everything is asked anew"
        ) from error
    return reply
