"""How one token is shown: its text made visible and the colour behind it.

Blue is paid, orange and underlined is charged, nothing is nothing: the page shows through. The
text keeps a contrast of 4.5 to 1 on every colour, on light pages and dark ones.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median
from typing import Literal, NamedTuple

from tokencredit.errors import ConfigError, DataError, NumericError, ShapeError
from tokencredit.text.alignment import Span

Color = tuple[int, int, int]


class Theme(NamedTuple):
    """Colours from 0 to 255: of the text, the page, and tokens paid and charged the most."""

    text: Color
    page: Color
    high: Color
    low: Color


THEMES = {
    "light": Theme((26, 26, 26), (255, 255, 255), (99, 169, 219), (247, 146, 72)),
    "dark": Theme((236, 236, 236), (24, 26, 30), (30, 96, 158), (160, 72, 12)),
}
LOW_MARK = "#9c3d00"
"""The colour of the line under what is charged, on a light page."""
# They hold emoji and Persian words together and move nothing.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""The text with everything written out that would move a cursor or turn a line around.

    Line ends become an arrow, other control characters their escapes.

    >>> print(visible("a\n\x1b[31m\u202eb"))
    a↵\x1b[31m\u202eb
    """
    return "".join(_visible_character(character) for character in text)


def spaces_and_rest(token: str) -> tuple[str, str]:
    """The spaces that a token begins with, which are not coloured, and the rest made visible.

    >>> spaces_and_rest(" film")
    (' ', 'film')
    >>> spaces_and_rest("  ")
    ('', '  ')
    """
    rest = token.lstrip(" ") or token
    return token[: len(token) - len(rest)], visible(rest)


def text_pieces(
    text: str, spans: Sequence[Span], names: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """Pieces of a text and the tokens of each, so that no character stands in two pieces.

    Args:
        text: of the response.
        spans: character span of each token.
        names: shown for a token that has no character of its own.

    >>> text_pieces("a🙂", [(0, 1), (1, 2), (1, 2), (2, 2)], ["a", "x", "y", "<eos>"])
    (['a', '🙂', '<eos>'], [[0], [1, 2], [3]])
    """
    groups: list[list[int]] = []
    reached = 0
    for index, (start, end) in enumerate(spans):
        if groups and start < min(end, reached):
            groups[-1].append(index)
        else:
            groups.append([index])
        reached = max(reached, end)
    shown = [text[spans[group[0]][0] : max(spans[i][1] for i in group)] for group in groups]
    return [piece or names[group[0]] for piece, group in zip(shown, groups, strict=True)], groups


def background(strength: float | int, *, theme: Theme) -> Color:
    """The colour behind a token: the page at 0, the theme's extremes at 1 and -1 and beyond.

    >>> background(0.0, theme=THEMES["light"])
    (255, 255, 255)
    """
    extreme = theme.high if strength >= 0 else theme.low
    share = min(abs(strength), 1.0)
    red, green, blue = (
        round(page + share * (full - page)) for page, full in zip(theme.page, extreme, strict=True)
    )
    return red, green, blue


def shown_side(strength: float | int) -> Literal["high", "low", ""]:
    """Whether a token shows as paid or as charged; neither where it is hardly paid.

    >>> shown_side(0.3), shown_side(-0.3), shown_side(0.049)
    ('high', 'low', '')
    """
    if abs(strength) < 0.05:
        return ""
    return "high" if strength > 0 else "low"


def full_scale(
    tokens: Sequence[str], scores: Mapping[str, Sequence[float | int]], *, scale: float | int | None
) -> float | int:
    """The score of the fullest colour, the same for all methods, in nats.

    Without a `scale` it is the median over methods of their largest scores: then equal colours are
    equal rewards, and neither a method that pays one token nor one that pays all alike sets it.

    Raises:
        DataError: there are no scores.
        ShapeError: a method does not have one score per token.
        NumericError: a score is NaN or infinite.
        ConfigError: `scale` is not above zero.

    >>> full_scale(["a", "b"], {"terminal": [0, 4], "uniform": [2, 2], "mine": [3, 1]}, scale=None)
    3
    """
    if not scores:
        raise DataError("no scores to show; expected those of at least one method")
    for name, row in scores.items():
        if len(tokens) != len(row):
            raise ShapeError(
                f"{name!r} has {len(row)} scores for {len(tokens)} tokens; expected one per token"
            )
        if not all(isfinite(score) for score in row):
            raise NumericError(f"{name!r} has a NaN or infinite score; expected finite ones")
    if scale is not None and not 0 < scale < float("inf"):
        raise ConfigError(f"scale is {scale}; expected a score above zero, or None")
    return scale or median(max(map(abs, row), default=0.0) for row in scores.values()) or 1.0


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵"
    category = unicodedata.category(character)
    is_harmless = character in _JOINERS or category not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return character if is_harmless else ascii(character)[1:-1]


def objective_shares(
    method: str, objectives: Mapping[str, tuple[float | None, Sequence[float] | None]]
) -> dict[str, list[float]]:
    """What each objective of a reward model adds to the token scores of a method, by row's name.

    Args:
        method: name of the credit method.
        objectives: by its name, the weight of each in the score and its own token scores; None
            where these do not add up, and such an objective has no row.

    >>> objective_shares("attention", {"helpful": (0.5, [2.0, 4.0]), "short": (None, None)})
    {'attention: 0.5 helpful': [1.0, 2.0]}
    """
    return {
        f"{method}: {weight:.3g} {name}": [weight * score for score in scores]
        for name, (weight, scores) in objectives.items()
        if weight is not None and scores is not None
    }
