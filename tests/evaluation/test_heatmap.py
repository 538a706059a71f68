import io
import math
import re
from pathlib import Path

import pytest
from contrast import contrast
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from parsed_heatmap import Page
from rich.console import Console

from tokencredit.errors import ConfigError, DataError, NumericError, ShapeError
from tokencredit.evaluation.heatmap import heatmap_html, heatmap_png, heatmap_terminal
from tokencredit.evaluation.token_display import LOW_MARK, THEMES, background, full_scale, visible

TOKENS = ["The", " plot", " is", " not", " dull", ".\n", "Gut", "ä", " 日本", " 👩\u200d👧"]
SCORES = [0.0, 0.0, 0.0, -1.0, 2.0, 0.5, 0.0, -0.25, 0.1, 0.0]
NASTY = ["<script>alert(1)</script>", ' "><img src=x onerror=alert(1)>', "&amp;", "'"]
FUNCTIONS = [
    lambda tokens, scores, path, **options: heatmap_html(tokens, scores, **options),
    lambda tokens, scores, path, **options: heatmap_png(tokens, scores, path, **options),
    lambda tokens, scores, path, **options: heatmap_terminal(tokens, *scores.values(), **options),
]


@pytest.mark.parametrize("theme", THEMES.values(), ids=list(THEMES))
@pytest.mark.parametrize("strength", [step / 20 for step in range(-20, 21)])
def test_text_is_readable_on_every_colour(theme, strength: float):
    assert contrast(theme.text, background(strength, theme=theme)) >= 4.5


@pytest.mark.parametrize("theme", THEMES.values(), ids=list(THEMES))
def test_colours_diverge_from_the_page(theme):
    assert background(0.0, theme=theme) == theme.page
    assert background(1.0, theme=theme) == background(7.0, theme=theme) == theme.high
    assert background(-1.0, theme=theme) == background(-7.0, theme=theme) == theme.low


def test_html_shows_every_token_once_per_method():
    page = Page(heatmap_html(TOKENS, {"true": SCORES, "uniform": [0.1] * 10}, caption="A <b>"))
    assert page.open == []
    assert len(page.rows) == 2
    shown = [token.lstrip(" ").replace("\n", "↵") for token in TOKENS]
    assert [[cell["text"] for cell in row] for row in page.rows] == [shown, shown]
    assert "".join(TOKENS).replace("\n", "↵") in page.text
    assert "A <b>" in page.text
    assert page.tags.count("br") == 2


def test_html_colours_by_sign_and_size():
    (row,) = Page(heatmap_html(TOKENS, {"true": SCORES})).rows
    assert [row[i]["class"] for i in (3, 4, 5)] == ["low", "high", "high"]
    assert [row[i]["style"] for i in (3, 4, 5)] == ["--a:0.5", "--a:1", "--a:0.25"]
    assert "class" not in row[2]
    assert [row[i]["title"] for i in (3, 4)] == ["-1", "+2"]


def test_html_escapes_tokens_names_and_captions():
    html = heatmap_html(NASTY, {NASTY[0]: [1.0] * 4}, caption=NASTY[1])
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert [cell["text"] for cell in page.rows[0]] == [token.lstrip() for token in NASTY]


def test_what_is_charged_is_underlined_besides_its_colour():
    style = heatmap_html(["a"], {"m": [1.0]}).split("</style>")[0]
    low = re.search(r"\.low \{(.*?)\}", style, re.DOTALL)[1]
    high = re.search(r"\.high \{(.*?)\}", style, re.DOTALL)[1]
    assert "text-decoration: underline" in low
    assert "underline" not in high
    marks = re.findall(r"--mark: #(\w\w)(\w\w)(\w\w)", style)
    for mark, theme in zip(marks, ("light", "dark"), strict=True):
        line = tuple(int(part, 16) for part in mark)
        # WCAG asks 3 of what is no text.
        assert contrast(line, THEMES[theme].page) >= 3
    assert "".join(marks[0]) == LOW_MARK.removeprefix("#")


def test_small_letters_are_readable_in_both_themes():
    style = heatmap_html(["a"], {"m": [1.0]}).split("</style>")[0]
    faint = re.findall(r"--faint: #(\w\w)(\w\w)(\w\w)", style)
    for color, theme in zip(faint, ("light", "dark"), strict=True):
        assert contrast(tuple(int(part, 16) for part in color), THEMES[theme].page) >= 4.5


def test_screen_readers_get_a_table_with_the_numbers():
    html = heatmap_html(["not", " bad"], {"m": [-1.0, 2.0]}, caption="A film")
    assert html.count('role="table" aria-label="A film"') == 1
    assert html.count('role="row"') == html.count('role="rowheader"') == 1
    assert re.findall(r'role="cell"[^>]* title="([^"]*)"', html) == ["-1", "+2"]


def test_a_long_text_has_a_bar_for_each_token():
    scores = [1.0, -0.5, 0.0, 0.01] * 25
    html = heatmap_html(["a"] * 100, {"m": scores, "nothing": [0.0] * 100}, scale=1.0)
    paths = re.findall(r'<path class="(\w+)" d="([^"]*)"', html)
    assert [name for name, _ in paths] == ["up", "down"]
    assert paths[0][1].startswith("M0 0v-1.00h1V0zM4 0v-1.00h1V0z")
    assert paths[1][1].startswith("M1 0v0.50h1V0zM5 0v0.50h1V0z")
    assert [path.count("M") for _, path in paths] == [25, 25]
    assert "<path" not in heatmap_html(["a"] * 20, {"m": scores[:20]})


def test_shares_stand_below_what_they_are_of():
    html = heatmap_html(["a"], {"m": [1.0], "m: 1 short": [1.0]}, parts=("m: 1 short",))
    assert re.findall(r'class="([^"]*)" role="row"', html) == ["row", "row part"]


def test_html_names_no_other_resource():
    html = heatmap_html(TOKENS, {"true": SCORES})
    assert not re.search(r"https?:|url\(|src=|href=|@import", html)


@given(st.lists(st.text('a& <>"\n\t\x1b\x9b\u202e\u2028\ud800日👩', max_size=6), max_size=8))
def test_any_text_gives_balanced_html_and_a_terminal_line_without_controls(tokens):
    scores = [float(i % 3 - 1) for i in range(len(tokens))]
    page = Page(heatmap_html(tokens, {"a": scores}))
    assert page.open == []
    assert page.tags.count("span") == len(tokens) + 2
    plain = heatmap_terminal(tokens, scores).plain
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\ud800-\udfff]", plain)
    page.text.encode("utf-8")


def test_terminal_does_not_obey_tokens():
    tokens = ["\x1b[2J", "\x1b]0;title\x07", "\r", "\x9b31m", "[red]", "\u202e"]
    stream = io.StringIO()
    console = Console(file=stream, color_system=None, width=200)
    console.print(heatmap_terminal(tokens, [1.0] * 6))
    expected = r"\x1b[2J\x1b]0;title\x07\r\x9b31m[red]\u202e"
    assert stream.getvalue() == expected + "\n"


def test_terminal_colours():
    text = heatmap_terminal(["a", " b", "c"], [2.0, -2.0, 0.01])
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    dark = THEMES["dark"]
    ink = "rgb({},{},{})".format(*dark.text)
    assert styles == {
        "a": "{} on rgb({},{},{})".format(ink, *dark.high),
        "b": "underline {} on rgb({},{},{})".format(ink, *dark.low),
    }
    light = heatmap_terminal(["a"], [2.0], theme="light")
    assert "on rgb({},{},{})".format(*THEMES["light"].high) in str(light.spans[0].style)


def test_terminal_lines_end_where_tokens_end_them():
    assert heatmap_terminal(["a\n", "b", "c\nd"], [0.0] * 3).plain == "a↵\nbc↵d"


def test_png_draws_the_tokens_as_they_are(tmp_path: Path, monkeypatch):
    written = []
    draw = Axes.text
    monkeypatch.setattr(
        Axes,
        "text",
        lambda self, x, y, s, **style: (written.append((x, y, s)), draw(self, x, y, s, **style))[1],
    )
    tokens = ["cost", " $x^$", " \\frac{", "\x1b[1m\n", " end"]
    path = heatmap_png(tokens, {"name": [1.0, -1.0, 0.0, 0.5, 0.0]}, tmp_path / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = [text for _, _, text in written]
    assert shown[-6:] == ["name", "cost", "$x^$", "\\frac{", "\\x1b[1m↵", "end"]
    assert written[-1][1] == written[-2][1] + 1


def test_png_breaks_lines_and_long_tokens(tmp_path: Path, monkeypatch):
    written = []
    draw = Axes.text
    monkeypatch.setattr(
        Axes,
        "text",
        lambda self, x, y, s, **style: (written.append((y, s)), draw(self, x, y, s, **style))[1],
    )
    heatmap_png(["aaaa", " bbbb", " cc", "d" * 23], {"": [1.0] * 4}, tmp_path / "m.png", columns=10)
    top = written[3][0]
    lines = [(y - top, text) for y, text in written[3:]]
    assert lines == [(0, "aaaa"), (0, "bbbb"), (1, "cc"), (2, "d" * 10), (3, "d" * 10), (4, "ddd")]


def test_emoji_and_empty_texts_are_drawn_without_a_warning(tmp_path: Path, recwarn):
    heatmap_png(TOKENS, {"true": SCORES}, tmp_path / "map.png", caption="日本")
    heatmap_png([], {"true": []}, tmp_path / "empty.png")
    assert not list(recwarn)


def test_the_scale_is_the_median_of_the_largest():
    scores = {"terminal": [0.0, -9.0], "uniform": [0.5, 0.5], "mine": [2.0, 1.0]}
    assert full_scale(["a", "b"], scores, scale=None) == 2.0
    assert full_scale(["a", "b"], scores, scale=4.0) == 4.0
    assert full_scale(["a"], {"zero": [0.0]}, scale=None) == 1.0


def test_joined_emoji_stay_whole():
    assert visible("👩\u200d👧 \u0645\u06cc\u200c") == "👩\u200d👧 \u0645\u06cc\u200c"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_scores_raise_and_leave_no_file(function, tmp_path: Path):
    path = tmp_path / "map.png"
    with pytest.raises(ShapeError, match="1 scores for 2 tokens"):
        function(["a", "b"], {"m": [1.0]}, path)
    with pytest.raises(NumericError, match="NaN or infinite"):
        function(["a"], {"m": [math.nan]}, path)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="expected a score above zero"):
            function(["a"], {"m": [1.0]}, path, scale=scale)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", FUNCTIONS[:2])
def test_no_methods_raise(function, tmp_path: Path):
    with pytest.raises(DataError, match="at least one method"):
        function(["a"], {}, tmp_path / "map.png")
