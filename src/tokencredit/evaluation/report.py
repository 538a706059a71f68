"""One page for one comparison: notes, tables, figures and token heat maps in a single file."""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from tokencredit.errors import DataError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ReportTable:
    """A table, its first column naming the rows.

    Attributes:
        title: above the table.
        columns: heads, with units.
        rows: one cell per column each, shown as `str` gives them; round numbers before.
        note: below the table; what stands between backticks is shown as code.

    Raises:
        DataError: a row does not have one cell per column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(
                    f"a row of table {self.title!r} has {len(row)} cells and the table "
                    f"{len(self.columns)} columns; expected one cell per column"
                )


@dataclass(frozen=True)
class ReportFigure:
    """An image that becomes part of the page.

    Attributes:
        title: above the image, and its text for readers who do not see it.
        png: the image, or the path of its file.
        note: below the image.

    Raises:
        DataError: the file is not there, or the image is not a PNG.
    """

    title: str
    png: bytes | str | Path
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.png, bytes) and not Path(self.png).is_file():
            raise DataError(f"no file {str(self.png)!r}; expected the path of a PNG image")
        if not self._content.startswith(_PNG_SIGNATURE):
            raise DataError(f"the image of figure {self.title!r} is not a PNG; expected one")

    @property
    def _content(self) -> bytes:
        return self.png if isinstance(self.png, bytes) else Path(self.png).read_bytes()

    @property
    def base64(self) -> str:
        """The image as the text that a data URL holds."""
        return b64encode(self._content).decode("ascii")


def report_html(
    title: str,
    *,
    notes: Sequence[str] = (),
    tables: Sequence[ReportTable] = (),
    figures: Sequence[ReportFigure] = (),
    heatmaps: Sequence[str] = (),
    heatmaps_title: str = "Token by token",
) -> str:
    """A whole page that needs no other file and no network, legible in light and dark.

    Args:
        title: of the page.
        notes: paragraphs below the title: what was run, how to run it again.
        tables: in the order to show.
        figures: in the order to show.
        heatmaps: what `heatmap_html` returned; anything else is escaped.
        heatmaps_title: above the heat maps.

    Returns:
        HTML; all text in it is escaped.

    >>> runs = ReportTable("Runs", ["method", "reward"], [["terminal", 5.2], ["attention", 7.3]])
    >>> page = report_html("A < B", tables=[runs])
    >>> "<h1>A &lt; B</h1>" in page
    True
    """
    return _TEMPLATE.render(
        title=title,
        notes=notes,
        tables=tables,
        figures=figures,
        heatmaps=heatmaps,
        heatmaps_title=heatmaps_title,
    )


def _with_code(text: str) -> Markup:
    """Text, escaped, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


_ENVIRONMENT = Environment(loader=PackageLoader("tokencredit.evaluation", "."), autoescape=True)
_ENVIRONMENT.filters["with_code"] = _with_code
_TEMPLATE = _ENVIRONMENT.get_template("report.html")
