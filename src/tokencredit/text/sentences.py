"""Segments that are sentences, clauses or phrases, found by rules over punctuation and words.

No model, only short lists of English abbreviations, of words that often begin a sentence and of
those that begin a phrase. Every character belongs to exactly one piece; the spaces between two
pieces belong to the first. A piece without a letter or digit, such as a second exclamation mark,
joins the piece before it. Pieces that something else finds, a parser for example, come in as spans.
"""
# ruff: noqa: RUF001 - the marks of many scripts look like one another

import bisect
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
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
_UNBROKEN = re.compile(r"\S+")
_OUTER_MARKS = re.compile(r"^\W+|\W+$")

TextKind = Literal["sentence", "clause", "phrase", "spans"]

SpanFunction = Callable[[str], Sequence[Span]]
"""From a text to the character spans of its units, in order and apart from each other."""


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

_BEGIN_A_PHRASE = _words(
    # prepositions
    "about above across after against along amid among around as at before behind below beneath "
    "beside besides between beyond by despite down during except for from in inside into like near "
    "of off on onto out outside over past per since than through throughout till to toward towards "
    "under until unto up upon via with within without "
    # conjunctions
    "and or nor but so yet because although though while whereas if unless once whether "
    # determiners
    "the a an this that these those my your his her its our their each every either neither some "
    "any no all both such another "
    # auxiliaries
    "am is are was were be been being do does did have has had having will would shall should can "
    "could may might must isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't "
    "won't wouldn't shan't shouldn't can't cannot couldn't mightn't mustn't "
    # relative pronouns
    "which who whom whose where when why"
)


def text_segments(
    spans: Sequence[Span],
    text: str,
    *,
    kind: TextKind,
    length: int = 5,
    function: SpanFunction | None = None,
) -> Int[Tensor, "tokens"]:
    """Segment of each token of one response, by the sentence or other unit that its word stands in.

    A token belongs where its first character that is no space does. Tokens without characters,
    such as an end of sequence, belong to the segment of the token before them. Rows of a batch are
    put together by `torch.nn.utils.rnn.pad_sequence` with padding value -1, or made from ids by
    `tokencredit.text.hf_decoding`.

    Args:
        spans: character span in `text` of each token, in order.
        text: the response.
        kind: how to cut: see `sentence_starts`, `clause_starts`, `phrase_starts` and, for "spans",
            `span_starts`.
        length: the most words of a phrase; other kinds do not read it.
        function: finds the units of "spans".

    Returns:
        Segment ids, beginning at 0 and rising by one.

    Raises:
        ConfigError: `kind` is none of these, `length` is not positive, there is no function for
            "spans", or one for another kind.
        DataError: a span ends outside the text, or before it starts; of those that `function`
            finds, as in `span_starts`.

    >>> text_segments([(0, 2), (2, 3), (3, 7), (7, 8), (8, 8)], "So. Yes!", kind="sentence")
    tensor([0, 0, 1, 1, 1])
    """
    for start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise DataError(
                f"span ({start}, {end}) in a text of {len(text)} characters; expected spans of "
                "this text, start before end"
            )
    starts = _unit_starts(text, kind, length, function)
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


def text_segments_when_shown(
    ends: Sequence[int],
    text: str,
    *,
    kind: TextKind,
    length: int = 5,
    function: SpanFunction | None = None,
) -> Int[Tensor, "tokens"]:
    """Segments of one response that close at the token after which the text shows their end.

    After each token the text so far is cut, from where its open unit begins. Where another unit has
    begun, the segment ends with this token, whatever the text will say later: a word that goes on
    may turn out to begin no phrase. So a segment never depends on what comes after it. Units of
    "spans" are looked for in the whole text so far, which calls the function once for each token.

    Args:
        ends: how many characters of `text` are whole after each token, as `DecodedResponse` has
            them.
        text: the response.
        kind: how to cut, as in `text_segments`.
        length: the most words of a phrase; other kinds do not read it.
        function: finds the units of "spans".

    Returns:
        Segment ids, beginning at 0 and rising by one.

    Raises:
        ConfigError: as in `text_segments`.
        DataError: an end lies outside the text or before the one before it; of the spans that
            `function` finds, as in `span_starts`.

    >>> text_segments_when_shown([2, 3, 7, 8], "So. Yes!", kind="sentence")
    tensor([0, 0, 0, 1])
    """
    ids, number, begin = [], 0, 0
    for before, end in itertools.pairwise([0, *ends]):
        if not before <= end <= len(text):
            raise DataError(
                f"{end} characters of a text of {len(text)} are whole after a token, and {before} "
                "after the one before it; expected numbers that rise up to the length of the text"
            )
        ids.append(number)
        first = 0 if kind == "spans" else begin
        starts = _unit_starts(text[first:end], kind, length, function)
        if starts and first + starts[-1] > begin:
            number, begin = number + 1, first + starts[-1]
    return torch.tensor(ids, dtype=torch.long)


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


def phrase_starts(text: str, *, length: int = 5) -> list[int]:
    """Positions at which phrases of a text begin: its clauses, cut before English function words.

    A phrase begins with a clause, at a preposition, conjunction, determiner, auxiliary or relative
    pronoun whose word before is none of these ("of the" stays together), and wherever the phrase
    would have more than `length` words. A word is what stands between two spaces.

    This is no parser. It knows some 150 words and no grammar: a subject and its main verb share a
    phrase, "that" always begins one, and phrases are not nested. In other languages only marks and
    `length` cut, and in scripts without spaces marks alone. For constituents let a parser find the
    spans (`span_starts`).

    Args:
        text: any text.
        length: the most words of a phrase.

    Raises:
        ConfigError: `length` is not positive.

    Source: in the place of the parsing-based termination of Chai et al. 2024, arXiv 2410.02743,
    where a node of a constituency tree with fewer than C tokens is one macro action; their code
    gives no C. Here the bound is on words, so that none of them is cut in two.

    >>> phrase_starts("The old man sat on the bench, and it rained.")
    [0, 16, 30]
    """
    if length < 1:
        raise ConfigError(f"length is {length}; expected phrases of at least 1 word")
    starts: list[int] = []
    for start, end in itertools.pairwise([*clause_starts(text), len(text)]):
        starts.append(start)
        words, after_function_word = 0, False
        for unbroken in _UNBROKEN.finditer(text, start, end):
            word = _OUTER_MARKS.sub("", unbroken[0]).lower().replace("’", "'")
            if not word:
                continue
            is_function_word = word in _BEGIN_A_PHRASE
            begins = is_function_word and not after_function_word
            if words and (begins or words == length):
                starts.append(unbroken.start())
                words = 0
            words, after_function_word = words + 1, is_function_word
    return starts


def span_starts(text: str, spans: Sequence[Span]) -> list[int]:
    """Positions at which units of a text begin that something else has found, the first of them 0.

    Characters outside all spans belong to the span before them, and those before the first span to
    the first.

    Args:
        text: that the spans are about.
        spans: characters of each unit, end exclusive, in the order of the text; they may leave
            gaps but do not overlap. None at all makes the whole text one unit.

    Raises:
        DataError: a span is no pair of whole numbers, holds no character, lies outside the text,
            or begins before the one before it has ended.

    >>> span_starts("It was, I think, good.", [(0, 6), (8, 15), (17, 21)])
    [0, 8, 17]
    """
    starts, reached = [], 0
    for span in spans:
        start, end = _whole_numbers(span)
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"the span ({start}, {end}) of a unit in a text of {len(text)} characters; "
                "expected 0 <= start < end, the end exclusive and inside the text"
            )
        if start < reached:
            raise DataError(
                f"the span ({start}, {end}) of a unit begins before the one before it has ended, "
                f"at {reached}; expected spans in the order of the text that do not overlap"
            )
        starts.append(start)
        reached = end
    return [0, *starts[1:]] if text else []


def _whole_numbers(span: Span) -> Span:
    try:
        start, end = map(operator.index, span)
    except (TypeError, ValueError) as error:
        raise DataError(f"{span!r} is no span of a unit; expected (start, end)") from error
    return start, end


def _unit_starts(text: str, kind: str, length: int, function: SpanFunction | None) -> list[int]:
    if (kind == "spans") != (function is not None):
        raise ConfigError(
            f"kind is {kind!r} with{'out' if function is None else ''} a function; expected a "
            "function that finds spans for kind 'spans', and for no other"
        )
    match kind:
        case "sentence":
            return sentence_starts(text)
        case "clause":
            return clause_starts(text)
        case "phrase":
            return phrase_starts(text, length=length)
        case "spans":
            assert function is not None
            return span_starts(text, function(text))
    raise ConfigError(f"kind is {kind!r}; expected 'sentence', 'clause', 'phrase' or 'spans'")


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
