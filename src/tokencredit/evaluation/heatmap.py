"""Token heat maps: what every token was paid, as HTML, in the terminal and as an image.

Tokens are pieces of text, as `tokenizer.decode` gives them one by one. Whatever a browser or a
terminal might obey is escaped or written out.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unicodedata import east_asian_width

import matplotlib as mpl
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.text import Text

from tokencredit.evaluation.plots import write_figure
from tokencredit.evaluation.token_display import (
    LOW_MARK,
    THEMES,
    background,
    full_scale,
    shown_side,
    spaces_and_rest,
    visible,
)

# Tokens from which on a text is long.
_LONG = 60
# Of the image: points of the font, inches of a character and of a line, columns for names.
_POINTS, _CHARACTER, _LINE, _NAME_COLUMNS = 11, 11 / 72 * 0.602, 0.27, 22
# A piece of a token in the image: its first column, its text, its strength from -1 to 1.
_Piece = tuple[int, str, float]


def heatmap_html(
    tokens: Sequence[str],
    scores: Mapping[str, Sequence[float | int]],
    *,
    caption: str = "",
    scale: float | int | None = None,
    parts: Collection[str] = (),
) -> Markup:
    """The text once per method, every token on the colour of its score, as a piece of HTML.

    It needs nothing beside it and follows the reader's light or dark theme. What is charged is
    underlined besides its colour. Scores show on hovering; screen readers read a table. A long
    text has a bar for each token above it, up or down.

    Args:
        tokens: pieces of the text, spaces included.
        scores: name of a method to one score per token, in nats.
        caption: above the first row.
        scale: the score of the fullest colour, in nats; None takes the median over methods of
            their largest.
        parts: names of rows that are shares of the row above them, such as those of objectives.

    Returns:
        Escaped markup, which `report_html` takes as it is.

    Raises:
        DataError: there are no scores.
        ShapeError: a method does not have one score per token.
        NumericError: a score is NaN or infinite.
        ConfigError: `scale` is not above zero.

    >>> html = heatmap_html(["<b>", " good"], {"terminal": [0.0, 2.0]})
    >>> "<b>" in html, "&lt;b&gt;" in html
    (False, True)
    """
    full = full_scale(tokens, scores, scale=scale)
    rows = [
        {
            "name": name,
            "is_part": name in parts,
            "total": sum(row),
            "largest": max((abs(score) for score in row), default=0.0),
            "profile": _profile(row, full),
            "cells": [_cell(token, score, full) for token, score in zip(tokens, row, strict=True)],
        }
        for name, row in scores.items()
    ]
    return Markup(_TEMPLATE.render(rows=rows, caption=caption, full=full, style=_style()))


def heatmap_terminal(
    tokens: Sequence[str],
    scores: Sequence[float | int],
    *,
    scale: float | int | None = None,
    theme: Literal["dark", "light"] = "dark",
) -> Text:
    r"""The text with every token on the colour of its score, to print with rich.

    Args:
        tokens: pieces of the text, spaces included.
        scores: one per token, in nats.
        scale: the score of the fullest colour, in nats; None takes the largest.
        theme: what the terminal's background is nearer to.

    Returns:
        Text whose plain form is the visible form of the tokens; lines end where theirs do.

    Raises:
        ShapeError: there is not one score per token.
        NumericError: a score is NaN or infinite.
        ConfigError: `scale` is not above zero.

    >>> heatmap_terminal(["not", " \x1b[2J"], [-1.0, 0.0]).plain
    'not \\x1b[2J'
    """
    full = full_scale(tokens, {"the heat map": scores}, scale=scale)
    ink = "rgb({},{},{})".format(*THEMES[theme].text)
    text = Text()
    for token, score in zip(tokens, scores, strict=True):
        ground = "rgb({},{},{})".format(*background(score / full, theme=THEMES[theme]))
        spaces, rest = spaces_and_rest(token)
        text.append(spaces)
        # What is hardly paid keeps the terminal's own colours.
        style = {"high": f"{ink} on {ground}", "low": f"underline {ink} on {ground}", "": ""}
        text.append(rest, style=style[shown_side(score / full)])
        text.append("\n" if token.endswith("\n") else "")
    return text


def heatmap_png(
    tokens: Sequence[str],
    scores: Mapping[str, Sequence[float | int]],
    path: str | Path,
    *,
    caption: str = "",
    scale: float | int | None = None,
    columns: int = 88,
) -> Path:
    """Write the text once per method, every token on the colour of its score, as an image.

    Characters that the font lacks (emoji, Chinese) show as boxes; the HTML has them.

    Args:
        tokens: pieces of the text, spaces included.
        scores: name of a method to one score per token, in nats.
        path: of the file to write; its ending names the format.
        caption: above the first row.
        scale: as for `heatmap_html`.
        columns: characters in a line.

    Returns:
        The path.

    Raises:
        DataError: there are no scores.
        ShapeError: a method does not have one score per token.
        NumericError: a score is NaN or infinite.
        ConfigError: `scale` is not above zero.
    """
    full = full_scale(tokens, scores, scale=scale)
    blocks = {
        name: _lines(tokens, [score / full for score in row], columns=columns)
        for name, row in scores.items()
    }
    height = 1.5 + sum(len(lines) + 0.6 for lines in blocks.values())
    width = columns + _NAME_COLUMNS
    figure = Figure(figsize=(width * _CHARACTER, height * _LINE), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _write(axes, 0, 0.5, visible(caption), fontweight="bold")
    _write(axes, width, 0.5, f"full colour at {full:.3g} nats", color="#666666", ha="right")
    top = 1.5
    for name, lines in blocks.items():
        _write(axes, 0, top + 0.5, visible(name)[: _NAME_COLUMNS - 2], color="#555555")
        for line in lines:
            _draw_line(axes, top, line)
            top += 1
        top += 0.6
    # Unhinted letters are as wide as the font says, so that tokens fill their boxes.
    with mpl.rc_context({"text.hinting": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        return write_figure(figure, path)


def _cell(token: str, score: float | int, full: float | int) -> dict[str, object]:
    spaces, rest = spaces_and_rest(token)
    return {
        "spaces": spaces,
        "text": rest,
        "ends_line": token.endswith("\n"),
        "side": shown_side(score / full),
        "strength": f"{min(abs(score) / full, 1):.3g}",
        "score": score,
    }


def _profile(scores: Sequence[float | int], full: float | int) -> dict[str, str] | None:
    """Bars of all tokens from left to right as two paths, of width 1 and height up to 1.

    None for a short text, and where no bar would be seen.
    """
    if len(scores) < _LONG:
        return None
    paths = {"high": "", "low": ""}
    for place, score in enumerate(scores):
        side = shown_side(score / full)
        if side:
            height = max(-1.0, min(1.0, score / full))
            paths[side] += f"M{place} 0v{-height:.2f}h1V0z"
    return paths if any(paths.values()) else None


@cache
def _style() -> Markup:
    """The style sheet of a heat map, in the colours of both themes."""
    themes = {
        name: {part: " ".join(map(str, color)) for part, color in theme._asdict().items()}
        for name, theme in THEMES.items()
    }
    return Markup(_ENVIRONMENT.get_template("heatmap.css.html").render(**themes))


def _lines(
    tokens: Sequence[str], strengths: Sequence[float], *, columns: int
) -> list[list[_Piece]]:
    """Tokens at their columns, lines broken between tokens where they fit into one."""
    lines: list[list[_Piece]] = [[]]
    column = 0
    for token, strength in zip(tokens, strengths, strict=True):
        spaces, rest = spaces_and_rest(token)
        column += len(spaces)
        for start in range(0, len(rest), columns):
            piece = rest[start : start + columns]
            if column + _columns(piece) > columns:
                lines.append([])
                column = 0
            lines[-1].append((column, piece, strength))
            column += _columns(piece)
        if token.endswith("\n"):
            lines.append([])
            column = 0
    return lines if lines[-1] else lines[:-1]


def _columns(text: str) -> int:
    """Width in columns of a font of fixed width."""
    return len(text) + sum(east_asian_width(character) in "WF" for character in text)


def _draw_line(axes: Axes, top: float, line: Sequence[_Piece]) -> None:
    for column, piece, strength in line:
        place = (_NAME_COLUMNS + column, top + 0.06)
        color = "#{:02x}{:02x}{:02x}".format(*background(strength, theme=THEMES["light"]))
        axes.add_patch(Rectangle(place, _columns(piece), 0.88, color=color, linewidth=0))
        if shown_side(strength) == "low":
            under = (_NAME_COLUMNS + column + 0.1, top + 0.84)
            axes.add_patch(
                Rectangle(under, _columns(piece) - 0.2, 0.06, color=LOW_MARK, linewidth=0)
            )
        _write(axes, place[0], top + 0.5, piece)


def _write(axes: Axes, x: float | int, y: float, text: str, **style: Any) -> None:
    """Write text as it is, dollar signs included."""
    font = {"family": "DejaVu Sans Mono", "fontsize": _POINTS, "va": "center_baseline"}
    axes.text(x, y, text, parse_math=False, **{"color": "#1a1a1a", **font, **style})


_ENVIRONMENT = Environment(loader=PackageLoader("tokencredit.evaluation", "."), autoescape=True)
_TEMPLATE = _ENVIRONMENT.get_template("heatmap.html")
