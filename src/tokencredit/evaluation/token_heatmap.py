"""Token scores of a text as an object that notebooks and terminals show as a heat map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from markupsafe import Markup
from rich.console import Group
from rich.text import Text

from tokencredit.evaluation.heatmap import heatmap_html, heatmap_terminal
from tokencredit.evaluation.token_display import full_scale, text_pieces, visible
from tokencredit.text.alignment import Span


@dataclass(frozen=True)
class TokenHeatmap:
    """Token scores of one text, shown as a heat map by notebooks and by rich.

    The last line of a notebook cell is enough to see it. `beside` shows another text next to it.

    Attributes:
        tokens: pieces of the text, spaces included.
        scores: name of a method to one score per token, in nats.
        caption: above the first row.
        parts: names of rows that are shares of the row above them, such as those of objectives.
        scale: the score of the fullest colour, in nats; None takes the median over methods of
            their largest.
        sequence_score: of the whole text, in nats, if it is known.

    Raises:
        DataError: there are no scores.
        ShapeError: a method does not have one score per token.
        NumericError: a score is NaN or infinite.
        ConfigError: `scale` is not above zero.

    >>> shown = TokenHeatmap(["not", " <b>bad"], {"mine": [-0.5, 1.5]})
    >>> shown
    TokenHeatmap(2 tokens, mine +1)
    >>> "&lt;b&gt;bad" in shown._repr_html_()
    True
    """

    tokens: Sequence[str]
    scores: Mapping[str, Sequence[float | int]]
    caption: str = ""
    parts: tuple[str, ...] = ()
    scale: float | int | None = None
    sequence_score: float | None = None

    def __post_init__(self) -> None:
        full_scale(self.tokens, self.scores, scale=self.scale)

    def beside(self, *others: "TokenHeatmap") -> "HeatmapsSideBySide":
        """This text and others next to each other, on one scale.

        Args:
            others: with the same methods, so that rows stand beside rows.

        >>> first = TokenHeatmap(["good"], {"mine": [1.0]})
        >>> first.beside(TokenHeatmap(["bad"], {"mine": [-2.0]})).scale
        2.0
        """
        return HeatmapsSideBySide((self, *others))

    def html(self) -> Markup:
        """The heat map as escaped HTML, which `report_html` takes as it is."""
        return heatmap_html(
            self.tokens, self.scores, caption=self.caption, scale=self.scale, parts=self.parts
        )

    def __repr__(self) -> str:
        totals = ", ".join(f"{name} {sum(row):+.4g}" for name, row in self.scores.items())
        return f"{type(self).__name__}({len(self.tokens)} tokens, {totals})"

    def _repr_html_(self) -> str:
        return str(self.html())

    def __rich__(self) -> Group:
        lines = [Text(visible(self.caption))] if self.caption else []
        for name, row in self.scores.items():
            lines.append(Text(f"\n{visible(name)}, sum {sum(row):+.3f}", style="bold"))
            lines.append(heatmap_terminal(self.tokens, row, scale=self.scale))
        return Group(*lines)


@dataclass(frozen=True)
class HeatmapsSideBySide:
    """Heat maps of several texts on one scale, next to each other where there is room.

    Attributes:
        heatmaps: in the order to show, at least one.
    """

    heatmaps: tuple[TokenHeatmap, ...]

    @property
    def scale(self) -> float | int:
        """The score of the fullest colour: the median over methods of their largest, in nats."""
        largest: dict[str, float] = {}
        for one in self.heatmaps:
            for name, row in one.scores.items():
                largest[name] = max([largest.get(name, 0.0), *map(abs, row)])
        return median(largest.values()) or 1.0

    def html(self) -> Markup:
        """The heat maps as escaped HTML."""
        shown = Markup("").join(replace(one, scale=self.scale).html() for one in self.heatmaps)
        rows = max(len(one.scores) for one in self.heatmaps)
        return Markup('<div class="tokencredit-compared" style="--rows:{}">{}</div>').format(
            rows, shown
        )

    def _repr_html_(self) -> str:
        return str(self.html())


def text_heatmap(
    text: str,
    spans: Sequence[Span],
    names: Sequence[str],
    scores: Mapping[str, Sequence[float]],
    *,
    caption: str = "",
    parts: tuple[str, ...] = (),
    sequence_score: float | None = None,
) -> TokenHeatmap:
    """A heat map of a text, its tokens that share a character shown as one piece.

    Args:
        text: of the response.
        spans: character span of each token.
        names: shown for a token that has no character of its own.
        scores: name of a method to one score per token, in nats.
        caption: as in `TokenHeatmap`.
        parts: likewise.
        sequence_score: likewise.

    >>> spans, scores = [(0, 1), (1, 2), (1, 2)], {"mine": [1.0, 2.0, 3.0]}
    >>> text_heatmap("a🙂", spans, ["a", "x", "y"], scores).scores
    {'mine': [1.0, 5.0]}
    """
    pieces, groups = text_pieces(text, spans, names)
    sums = {name: [sum(row[i] for i in group) for group in groups] for name, row in scores.items()}
    return TokenHeatmap(pieces, sums, caption, parts, sequence_score=sequence_score)
