import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tokencredit.errors import DataError
from tokencredit.evaluation.heatmap import heatmap_html
from tokencredit.evaluation.report import ReportFigure, ReportTable, report_html

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
NASTY = '<script>alert("1")</script>'


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.cells, self.images, self.text = [], [], [], [], ""
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag not in {"meta", "br"}:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.cells[-1] += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    path = tmp_path / "curves.png"
    path.write_bytes(PNG)
    return report_html(
        "Quickstart",
        notes=["Two seeds.", "Again: make quickstart"],
        tables=[ReportTable("Methods", ["method", "reward"], [["ABC", 7.25], ["a < b", None]])],
        figures=[ReportFigure("Curves", path, note="Mean."), ReportFigure("Bytes", PNG)],
        heatmaps=[heatmap_html(["a", " <i>"], {"terminal": [0.0, 1.0]})],
        heatmaps_title="Tokens",
    )


def test_everything_stands_on_the_page(page: str):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.cells == ["method", "reward", "ABC", "7.25", "a < b", "None"]
    for text in ("Quickstart", "Two seeds.", "Methods", "Curves", "Mean.", "Bytes", "Tokens"):
        assert text in parsed.text
    assert [image["alt"] for image in parsed.images] == ["Curves", "Bytes"]


def test_images_are_part_of_the_page(page: str):
    for image in Page(page).images:
        kind, content = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == PNG


def test_nothing_else_is_needed(page: str):
    assert not re.search(r"https?:|url\(|<link|<script|@import|href=", page)
    assert page.startswith("<!DOCTYPE html>")
    assert '<meta charset="utf-8">' in page
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page


def test_heat_maps_are_taken_as_they_are_and_other_text_is_escaped():
    heatmap = heatmap_html([NASTY], {NASTY: [1.0]}, caption=NASTY)
    html = report_html(
        NASTY,
        notes=[NASTY],
        tables=[ReportTable(NASTY, [NASTY], [[NASTY]], note=NASTY)],
        figures=[ReportFigure(NASTY + '" onerror="x', PNG, note=NASTY)],
        heatmaps=[heatmap, NASTY],
        heatmaps_title=NASTY,
    )
    parsed = Page(html)
    assert "script" not in parsed.tags
    assert set(parsed.images[0]) == {"alt", "src"}
    assert heatmap in html


def test_an_empty_report_is_a_page():
    parsed = Page(report_html("Nothing"))
    assert parsed.open == []
    assert "section" not in parsed.tags


def test_a_row_of_the_wrong_length_raises():
    with pytest.raises(DataError, match="2 cells and the table 1 columns"):
        ReportTable("Methods", ["method"], [["a", "b"]])


def test_a_missing_image_raises(tmp_path: Path):
    with pytest.raises(DataError, match="expected the path of a PNG image"):
        ReportFigure("Curves", tmp_path / "absent.png")


def test_another_format_raises(tmp_path: Path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"<svg/>")
    for image in (path, str(path), b"GIF89a"):
        with pytest.raises(DataError, match="is not a PNG"):
            ReportFigure("Curves", image)


def test_notes_of_tables_show_code_and_escape_what_is_in_it():
    page = report_html("A", tables=[ReportTable("B", ["c"], [], note="`end` and `<b>` of 1 ` 2")])
    assert "<code>end</code> and <code>&lt;b&gt;</code> of 1 ` 2</p>" in page
