"""What `runs/fuzz.py` feeds: things as users have them, most of them then spoilt in some places.

Every input is made from bytes, so that hypothesis, which makes bytes smaller, makes the input
smaller: 0 is the first, the shortest or the plainest choice, and behind the last byte all are 0.
"""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import MISSING
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from tokencredit.recipes.settings import all_settings

T = TypeVar("T")

WORDS = (
    "good", "the", "film", "is", "and", "a", "very", "bad", "plot", ",", "slow", ".", "Mr.", "Fox",
    ":", "why?", "user", "So.",
)  # fmt: skip
AWKWARD = (
    " ", "  ", "\n", "\r\n", "\t", "\x00", "\x85", "\u2028", "\ufeff", "\ufffd", "\u200b",
    "\u202e", "e\u0301", "\u0301", "\ud800", "\udfff\ud800", "\U0010ffff", "👩‍👩‍👧", "🏳️‍🌈",
    "👍🏽", "日本。", "שלום", "مرحبا", "ﬀ", "İ", "ß", "क्षि", "<eos>", "<bos>", "<pad>", "<unk>",
    "[SEP]", "{{ x }}", "{% raw %}", "</script>", "\ue000response\ue001", "...", "1.",
    "\n\nAssistant:", "\\ud800", "%00", "-1", "'", '"', "3.50", "e.g.", "—", "_", "0",
)  # fmt: skip
JUNK = (
    None, True, "", 0, 1, -1, 2, 7, 0.5, [], {}, False, " ", "x", "\ud800", [[]], [None], {"a": 1},
    -0.0, 1e308, float("nan"), float("inf"), 2**31, -(2**63), 10**400, [0, 1], "\x00", ["a"],
)  # fmt: skip
# How one bracket too many looks to a parser that calls itself.
DEEP = ("[" * 1200 + "]" * 1200, '{"a":' * 1200 + "1" + "}" * 1200)

# The parser of settings takes time with the square of the levels: a second for 400.
NESTED = '{"a":' * 150 + "1" + "}" * 150


class Draws:
    """Choices, read from bytes."""

    def __init__(self, data: bytes) -> None:
        self._left = iter(data)

    def below(self, count: int) -> int:
        """A number from 0."""
        first = next(self._left, 0)
        return (first if count <= 256 else 256 * first + next(self._left, 0)) % count

    def one(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[self.below(len(options))]

    def rarely(self, count: int) -> bool:
        """True once in so many draws."""
        return self.below(count) == count - 1

    def some(self, make: Callable[["Draws"], T], most: int, least: int = 0) -> list[T]:
        """So many of these."""
        return [make(self) for _ in range(least + self.below(most - least + 1))]


def text(draws: Draws, least: int = 0, most: int = 7) -> str:
    """Words with awkward characters between them, now and then very many."""
    pieces = draws.some(piece, most, least)
    joined = draws.one((" ", "", "")).join(pieces)
    return joined * draws.one((9, 300, 4000)) if draws.rarely(60) else joined


def piece(draws: Draws) -> str:
    """A word or something awkward; rarely any character at all."""
    if draws.rarely(16):
        return chr(draws.below(0x110000 >> 5) << 5 | draws.below(32))
    return draws.one(WORDS if draws.below(2) == 0 else AWKWARD)


def filled(draws: Draws) -> str:
    """A text with something visible in it."""
    return text(draws, least=1) or "a"


def junk(draws: Draws) -> Any:
    """What stands where something else is expected."""
    return piece(draws) if draws.below(4) == 1 else deepcopy(draws.one(JUNK))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value, the whole of it first."""
    parts = enumerate(value) if isinstance(value, list) else ()
    parts = value.items() if isinstance(value, dict) else parts
    return [at, *(place for key, part in parts for place in places(part, (*at, key)))]


def spoilt(draws: Draws, value: Any, *, wholes: int = 2) -> Any:
    """A JSON value, one in `wholes` as it is, the others with up to two parts changed."""
    if draws.below(wholes) == 0:
        return value
    value = json.loads(json.dumps(value))  # what stands there twice is changed once
    for _ in range(1 + draws.below(2)):
        way = draws.one(places(value))
        if not way:
            return junk(draws) if draws.rarely(4) else value
        parent = value
        for key in way[:-1]:
            parent = parent[key]
        change = draws.below(4)
        if change < 2:
            parent[way[-1]] = junk(draws)
        elif change == 2:
            del parent[way[-1]]
        elif isinstance(parent, list):
            parent.append(parent[way[-1]])
        else:
            parent[f"{way[-1]}s"] = parent[way[-1]]
    return value


def damaged(draws: Draws, whole: bytes, *, deep: Sequence[str] = DEEP) -> bytes:
    """The bytes of a file or body, with some taken out or put in."""
    at = draws.below(len(whole) + 1)
    put = (b"", b"\xff", b"\xed\xa0\x80", b"\x00", b"{", b'"', b"\n", b",", b"]", b"9" * 5000)
    inside = draws.one((*put, *map(str.encode, deep)))
    return whole[:at] + inside + whole[at + draws.below(9) :]


def as_json(value: Any) -> bytes:
    """One line, escapes as Python writes them, so that lone surrogates come through."""
    return json.dumps(value).encode()


# Settings


def setting(draws: Draws, hint: Any) -> Any:
    """A value of a type, as a dataclass of settings names it."""
    if get_origin(hint) is Literal:
        return draws.one(get_args(hint))
    if get_origin(hint) in (tuple, list):
        return draws.some(lambda draws: setting(draws, get_args(hint)[0]), 3)
    if get_args(hint):
        return setting(draws, draws.one(get_args(hint)))
    if hint is type(None):
        return None
    simple: dict[Any, Sequence[Any]] = {
        int: (1, 0, 2, 3, 4, 8, 16, -1, 10**30),
        float: (0.5, 0.0, 1.0, -1.0, 1e-5, 1e308, float("nan"), float("inf")),
        bool: (False, True),
    }
    return draws.one(simple[hint]) if hint in simple else text(draws, most=3)


def settings_of(draws: Draws, config_class: Any) -> tuple[list[str], bytes | None]:
    """Arguments of a command, or its YAML file."""
    known = list(all_settings(config_class))
    needed = {name for name, field in known if field.default is MISSING} | {"reward_model"}
    values: dict[str, Any] = {name: "a" for name, _ in known if name in needed}
    for name, field in draws.some(lambda draws: draws.one(known), 3):
        spoil = draws.rarely(6)
        values[name] = junk(draws) if spoil else setting(draws, field.type)
    if draws.rarely(8):
        values[draws.one(("lr", "step", "polcy", "", "a.b", "config", "\x00"))] = 1
    if draws.below(2) == 0:
        return [f"--{name}={_argument(value)}" for name, value in values.items()], None
    file = yaml.safe_dump(values, allow_unicode=draws.below(2) == 0).encode(errors="surrogatepass")
    if draws.rarely(3):
        bad = ("- a", "", "&", "a: &a [*a, *a]", "!!python/object:os.system x", NESTED)
        file = draws.one(bad).encode() if draws.below(2) else damaged(draws, file, deep=(NESTED,))
    return [], file


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value).removesuffix("...\n").strip()


# Rows of data


def prompt(draws: Draws) -> Any:
    """A text, or a conversation."""
    return conversation(draws) if draws.below(3) == 2 else text(draws, least=1)


def conversation(draws: Draws) -> list[dict[str, Any]]:
    """Messages, in an order that most templates take or in another."""
    if draws.below(2) == 0:
        return [{"role": "user", "content": text(draws)}]
    roles = ("user", "assistant", "system", "tool", "")
    return draws.some(lambda draws: {"role": draws.one(roles), "content": text(draws)}, 3, 1)


def answer(draws: Draws) -> Any:
    """A text, or a conversation that ends with the assistant's."""
    if draws.below(3) < 2:
        return filled(draws)
    return [*conversation(draws), {"role": "assistant", "content": filled(draws)}]


def parts(draws: Draws) -> list[dict[str, Any]]:
    """A conversation whose content stands in parts."""
    content = [{"type": draws.one(("text", "text", "image")), "text": text(draws)}]
    return [{"role": "user", "content": content}]


def sharegpt(draws: Draws) -> list[dict[str, Any]]:
    """A conversation as ShareGPT writes it, which mostly ends with the answer."""
    speakers = ("human", "gpt", "system", "tool", "function_call", "x")
    turns = draws.some(lambda draws: {"from": draws.one(speakers), "value": text(draws)}, 3)
    return [*turns, {"from": draws.one(("gpt", "gpt", "human")), "value": filled(draws)}]


def called(draws: Draws) -> list[dict[str, Any]]:
    """A conversation with a call of a tool."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    return [*conversation(draws), call, {"role": "tool", "name": "f", "content": text(draws)}]


def ends(draws: Draws) -> list[list[int]]:
    """Spans of the first characters of a text."""

    def span(draws: Draws) -> list[int]:
        start = draws.below(3)
        return [start, start + 1 + draws.below(3)]

    return draws.some(span, 3)


def labelled(draws: Draws) -> list[dict[str, Any]]:
    """The same as objects."""
    return [{"start": start, "end": end, "label": "minor"} for start, end in ends(draws)]


def errors(draws: Draws) -> list[dict[str, Any]]:
    """Spans as xCOMET writes them."""
    more = {"severity": "major", "confidence": 0.5, "text": "film"}
    return [{"start": start, "end": end, **more} for start, end in ends(draws)]


def review(draws: Draws) -> str:
    """A text that is good in every loader."""
    return draws.one(("good film", "the plot is bad", "日本 🙂 a scene"))


def one_of(*options: Any) -> Callable[[Draws], Any]:
    return lambda draws: draws.one(options)


def several(make: Callable[[Draws], Any], most: int, least: int = 1) -> Callable[[Draws], Any]:
    return lambda draws: draws.some(make, most, least)


_RATED = one_of(1.5, 0, -3, 7, 1e308)
ROWS: dict[str, dict[str, Callable[[Draws], Any]]] = {
    "texts": {"text": filled},
    "labels": {"text": filled, "label": one_of(0, 1, True, 1.0)},
    "ratings": {"prompt": prompt, "text": filled, "rating": _RATED},
    "prompts": {"prompt": prompt},
    "completions": {"prompt": prompt, "completion": answer},
    "pairs": {"chosen": answer, "rejected": answer, "margin": _RATED},
    "prompted pairs": {"prompt": prompt, "chosen": filled, "rejected": filled},
    "comparisons": {"prompt": prompt, "chosen": several(filled, 3), "rejected": several(filled, 3)},
    "parts": {"prompt": parts},
    "sharegpt": {"conversations": sharegpt},
    "tools": {"prompt": called, "completion": answer},
    "asked elsewhere": {
        "instruction": filled,
        "input": text,
        "system": text,
        "chosen": answer,
        "rejected": answer,
    },
    "transcripts": {
        "prompt": prompt,
        "response_0": answer,
        "response_1": answer,
        "better_response_id": one_of(0, 1, "1", 2),
    },
    "edits": {"rejected": filled, "edited": filled},
    "spans": {"text": review, "spans": labelled},
    "error spans": {"src": review, "mt": review, "errors": errors},
    "steps": {
        "completions": several(review, 2, 2),
        "labels": several(one_of(True, False, 0), 2, 2),
    },
    "marked": {"text": review, "spans": ends, "label": one_of(None, 0, 1)},
    "annotated": {"prompt": prompt, "response": review, "annotators": several(ends, 2)},
}
SUFFIXES = (
    ".jsonl", ".jsonl", ".jsonl", ".json", ".txt", ".jsonl.gz", ".json.xz", "", ".csv", ".csv.gz",
)  # fmt: skip


def data_file(draws: Draws) -> tuple[str, str, bytes]:
    """The kind of its rows, the end of its name, and a file."""
    kind, suffix = draws.one(list(ROWS)), draws.one(SUFFIXES)
    rows = draws.some(lambda draws: {name: make(draws) for name, make in ROWS[kind].items()}, 3, 1)
    rows = spoilt(draws, rows)
    rows = rows if isinstance(rows, list) else [rows]
    content = b"\n".join(map(as_json, rows))
    content = as_json(rows) if suffix.startswith(".json") and "l" not in suffix else content
    content = as_table(rows) if suffix.startswith(".csv") else content
    content = b"\xef\xbb\xbf" + content if draws.rarely(5) else content
    content = damaged(draws, content) if draws.rarely(5) else content
    if suffix.endswith(".gz"):
        content = gzip.compress(content, 1)
    elif suffix.endswith(".xz"):
        content = lzma.compress(content, preset=0)
    return kind, suffix, damaged(draws, content) if draws.rarely(12) else content


def as_table(rows: list[Any]) -> bytes:
    """Rows as CSV, lists and objects as JSON in their cells."""
    objects = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(str(name) for row in objects for name in row))
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(names)
    for row in objects:
        cells = [row.get(name) for name in names]
        table.writerow([one if isinstance(one, str) else json.dumps(one) for one in cells])
    return file.getvalue().encode(errors="surrogatepass")


# Chat templates

TEMPLATES = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) "
    "%}{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}[INST] "
    "{{ m['content'] | trim }} [/INST]{% else %} {{ m['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}",
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% else %}"
    "{% set first = 'be good' %}{% endif %}{{ first }}{% for m in messages %}"
    "{{ '\n' + m.role + ': ' + m.content }}{% endfor %}",
    "{%- set ns = namespace(n=0) %}{%- for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }} "
    "{{ m.content | upper if m.role == 'system' else m.content }}\n{% endfor %}",
    "{{ messages | tojson }}",
    "",
)
SCRAPS = (
    "{{", "}}", "{%", "%}", "{% endfor %}", "{{ messages[9].content }}", "{{ 1 // 0 }}", "| upper",
    "{{ x.y.z }}", "{{ ''.__class__.__mro__ }}", "{% for i in range(99) %}a{% endfor %}", "[",
    "\x00", "{{ raise_exception(1) }}", "{{ strftime_now('%Y') }}", "{% include 'a' %}", "\ud800",
    "{{ messages }}", "{{ m.content[::-1] }}", "{% break %}", "{{ 10 ** 5000 }}", "{{ 'a' * 999 }}",
)  # fmt: skip


def chat(draws: Draws) -> tuple[str, list[dict[str, Any]], str]:
    """A chat template, one in three with something put in or cut out; messages and an answer."""
    template = draws.one(TEMPLATES)
    if draws.rarely(3):
        at = draws.below(len(template) + 1)
        template = template[:at] + draws.one(SCRAPS) + template[at + draws.below(5) :]
    return template, conversation(draws), text(draws)


# Spans


def cuts(draws: Draws, text: str) -> list[tuple[int, int]]:
    """Tokens of a text: a partition, in one of two cases with gaps, doubles or worse in it."""
    borders = sorted(draws.some(lambda draws: draws.below(len(text) + 1), 8))
    spans = list(zip([0, *borders], [*borders, len(text)], strict=True))
    if draws.below(2) == 0:
        return spans
    odd = (0, -1, 1, 5, len(text), len(text) + 1, 2**40)
    for _ in range(1 + draws.below(2)):
        at = draws.below(len(spans) + 1)
        doubled = [(draws.one(odd), draws.one(odd)) if draws.below(2) else spans[at - 1]]
        spans[at : at + draws.below(2)] = doubled
    return spans


# Requests

CREDITS = ("uniform", "terminal", "attention", "prefix-difference")


def score_body(draws: Draws) -> Any:
    """What `POST /score` takes."""

    def row(draws: Draws) -> Any:
        return {"prompt": prompt(draws), "response": text(draws)}

    def ids(draws: Draws) -> Any:
        known = several(lambda draws: draws.below(300), 20)
        return {"prompt_ids": known(draws), "response_ids": known(draws)}

    body = {"ids": draws.some(ids, 2, 1)} if draws.rarely(3) else {"texts": draws.some(row, 3, 1)}
    credit = draws.some(lambda draws: draws.one(CREDITS), 2)
    return body | ({"credit": credit} if draws.below(2) == 0 else {})


def reward_body(draws: Draws) -> Any:
    """What `POST /get_reward` takes."""
    body = {"query": draws.some(filled, 3, 1)}
    return body | ({"prompts": ["a"], "labels": [junk(draws)]} if draws.below(2) else {})


PATHS = ("/score", "/score", "/score", "/get_reward", "/", "/health", "/ready", "/metrics", "/no")
HEADERS: tuple[dict[str, str], ...] = (
    {}, {}, {}, {"content-length": "0"}, {"content-length": "-1"}, {"content-length": "9" * 5000},
    {"content-length": "x"}, {"content-length": "99999999999"}, {"content-type": "text/plain"},
    {"content-type": "application/json; charset=utf-16"}, {"authorization": "Bearer \xff"},
    {"authorization": ""}, {"expect": "100-continue"}, {"transfer-encoding": "chunked"},
    {"content-type": ""}, {"origin": "null"}, {"origin": "http://\xff"}, {"host": "evil.example"},
)  # fmt: skip


def request(draws: Draws) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers."""
    path = draws.one(PATHS)
    if path == "/":
        body = b"prompt=a&response=" + text(draws).encode(errors="surrogatepass")
    else:
        made = reward_body(draws) if path == "/get_reward" else score_body(draws)
        body = as_json(spoilt(draws, made))
    body = damaged(draws, body) if draws.rarely(6) else body
    known = "POST" if path in ("/score", "/get_reward", "/") else "GET"
    method = draws.one(("GET", "HEAD", "PUT", "OPTIONS")) if draws.rarely(20) else known
    return method, path, body, {"content-type": "application/json"} | draws.one(HEADERS)
