"""Segments that are sentences or clauses, found by rules over punctuation.

No model, only short lists of English abbreviations and of words that often begin a sentence. Every
character belongs to exactly one piece; the spaces between two pieces belong to the first. A piece
without a letter or digit, such as a second exclamation mark, joins the piece before it.
"""
# ruff: noqa: RUF001 - the marks of many scripts look like one another

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tokencredit.errors import ConfigError, DataError
from tokencredit.text.alignment import Span, spans_of_words

_CLOSERS = "\"'”’»›)\\]}」』】）》〉"
_OPENERS = "\"'“‘«‹([{「『【（《〈"
# Marks that end nothing but sentences: no space need follow them.
_CERTAIN = "。！？｡।॥؟۔።։"
_SENTENCE_END = re.compile(
    rf"(?P<mark>[.!?…]*[{_CERTAIN}][{_CERTAIN}.!?…]*[{_CLOSERS}]*|[.!?…]+[{_CLOSERS}]*(?=\s|$)|\n)\s*"
)
_CLAUSE_END = re.compile(
    rf"(?:[，、；：،؛]+[{_CLOSERS}]*|[,;:]+[{_CLOSERS}]*(?=\s)|—|--|(?<=\S )[–-](?= ))\s*"
)
_FIRST_WORD = re.compile(rf"[{re.escape(_OPENERS)}]*([^\W\d_]+)")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
# Longer than any abbreviation; a line without an end is not read again at each of its marks.
_LOOK_BACK = 200
_WORD_CHARACTER = re.compile(r"\w")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "mr mrs ms mx dr prof st sen rep gov gen col lt sgt capt cmdr rev hon messrs mt ft "
    "e.g i.e eg ie cf vs viz approx ca al resp"
)
_BEFORE_A_NUMBER = _words(
    "no nos nr fig figs p pp vol vols ch sec eq eqs art ex jan feb aug sept oct nov dec"
)
_MAYBE_LAST = _words("etc inc ltd co corp bros jr sr ph.d dept est")
_FIRST_WORDS = _words(
    "the a an this that these those it he she they we i you there here my his her its their our "
    "in on at as for from with after before while when if but and or so yet then what who how why "
    "where not no yes all some many most one both however also"
)


def text_segments(
    spans: Sequence[Span], text: str, *, kind: Literal["sentence", "clause"]
) -> Int[Tensor, "tokens"]:
    """Segment of each token of one response, by the sentence or clause that its word stands in.

    A token belongs where its first character that is no space does. Tokens without characters,
    such as an end of sequence, belong to the segment of the token before them. Rows of a batch are
    put together by `torch.nn.utils.rnn.pad_sequence` with padding value -1, or made from ids by
    `tokencredit.text.hf_decoding`.

    Args:
        spans: character span in `text` of each token, in order.
        text: the response.
        kind: how finely to cut: see `sentence_starts` and `clause_starts`.

    Returns:
        Segment ids, beginning at 0 and rising by one.

    Raises:
        ConfigError: `kind` is neither of the two.
        DataError: a span ends outside the text, or before it starts.

    >>> text_segments([(0, 2), (2, 3), (3, 7), (7, 8), (8, 8)], "So. Yes!", kind="sentence")
    tensor([0, 0, 1, 1, 1])
    """
    if kind not in ("sentence", "clause"):
        raise ConfigError(f"kind is {kind!r}; expected 'sentence' or 'clause'")
    for start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise DataError(
                f"span ({start}, {end}) in a text of {len(text)} characters; expected spans of "
                "this text, start before end"
            )
    starts = sentence_starts(text) if kind == "sentence" else clause_starts(text)
    pieces: list[int | None] = []
    piece: int | None = None
    for start, end in spans_of_words(spans, text):
        if end > start:
            here = bisect.bisect_right(starts, start) - 1
            piece = here if piece is None else max(piece, here)
        pieces.append(piece)
    first = next((piece for piece in pieces if piece is not None), 0)
    filled = [first if piece is None else piece for piece in pieces]
    rank = {piece: position for position, piece in enumerate(sorted(set(filled)))}
    return torch.tensor([rank[piece] for piece in filled], dtype=torch.long)


def sentence_starts(text: str) -> list[int]:
    """Positions at which the sentences of a text begin, the first of them 0.

    A sentence ends at a full stop, question mark, exclamation mark or ellipsis with the quotes and
    brackets closed after it, if a space follows, and at a line break. Chinese, Japanese, Hindi,
    Arabic, Amharic and Armenian marks need no space. No sentence ends inside a number, at an
    enumerator at the start of a line ("1. "), at an initial, at an abbreviation that goes on, or
    where a small letter, or hiragana, follows an ellipsis or a closed quote.

    >>> sentence_starts("Dr. Fox paid $3.50. Was it good?")
    [0, 20]
    """
    ends = (match for match in _SENTENCE_END.finditer(text) if _ends_sentence(text, match))
    return _starts(text, (match.end() for match in ends))


def clause_starts(text: str) -> list[int]:
    """Positions at which the clauses of a text begin: its sentences, cut at inner punctuation too.

    Inner punctuation is a comma, semicolon or colon with a space after it, a dash between words,
    and their Chinese, Japanese and Arabic kin.

    >>> clause_starts("At 10:30, the film began; it was long.")
    [0, 10, 26]
    """
    starts: list[int] = []
    for start, end in itertools.pairwise([*sentence_starts(text), len(text)]):
        sentence = text[start:end]
        cuts = (match.end() for match in _CLAUSE_END.finditer(sentence))
        starts.extend(start + cut for cut in _starts(sentence, cuts))
    return starts


def _starts(text: str, cuts: Iterable[int]) -> list[int]:
    """0 and the cuts that have a letter or digit on either side."""
    places = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
    words = [bool(_WORD_CHARACTER.search(text, *ends)) for ends in itertools.pairwise(places)]
    starts, before = [0] if text else [], False
    for cut, left, right in zip(places[1:], words, words[1:], strict=False):
        before = before or left
        if before and right:
            starts.append(cut)
            before = False
    return starts


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark, after = match["mark"], text[match.end() : match.end() + 40]
    if "\n" in match[0]:
        return True
    marks = mark.rstrip(_CLOSERS)
    goes_on = after[:1].islower() or "ぁ" <= after[:1] <= "ん"
    if goes_on and (marks != mark or marks.endswith(("..", "…"))):
        return False
    before = max(0, match.start() - _LOOK_BACK)
    line = text[text.rfind("\n", before, match.start()) + 1 or before : match.start()]
    return marks != "." or not _is_abbreviated(line, after)


def _is_abbreviated(line: str, after: str) -> bool:
    """Whether the full stop after `line` belongs to its last word alone."""
    word = "" if line[-1:].isspace() else line.rpartition(" ")[-1].lstrip(_OPENERS)
    small = word.lower()
    is_enumerator = line.strip() == word and (len(word) == 1 or (word.isdigit() and len(word) < 4))
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    if small in _NEVER_LAST or is_initial or (word and is_enumerator):
        return True
    if small in _BEFORE_A_NUMBER:
        return after[:1].isdigit()
    if small in _MAYBE_LAST or _DOTTED.fullmatch(word):
        first = _FIRST_WORD.match(after)
        return not (first and first[1][0].isupper() and first[1].lower() in _FIRST_WORDS)
    return False
