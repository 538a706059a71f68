import io
import math
import re

import pytest
from parsed_heatmap import Page
from rich.console import Console

from tokencredit.errors import ConfigError, DataError, NumericError, ShapeError
from tokencredit.evaluation.heatmap import heatmap_html
from tokencredit.evaluation.token_heatmap import TokenHeatmap, text_heatmap

EVIL = "<script>alert(1)</script>"
FIRST = TokenHeatmap(["not", " bad"], {"mine": [-1.0, 4.0], "even": [1.5, 1.5]}, "first")
SECOND = TokenHeatmap(["dull"], {"mine": [-8.0], "even": [-8.0]}, "second")


def test_a_notebook_shows_what_explain_draws():
    drawn = heatmap_html(FIRST.tokens, FIRST.scores, caption="first")
    assert FIRST._repr_html_() == str(drawn) == str(FIRST.html())


def test_its_words_are_short():
    assert repr(FIRST) == "TokenHeatmap(2 tokens, mine +3, even +3)"


def test_everything_is_escaped():
    evil = TokenHeatmap([EVIL], {EVIL: [1.0]}, caption=EVIL, parts=(EVIL,))
    for html in (evil._repr_html_(), evil.beside(evil)._repr_html_()):
        assert not {"script", "img"} & set(Page(html).tags)
        assert "&lt;script&gt;" in html


def test_texts_side_by_side_share_their_scale():
    both = FIRST.beside(SECOND)
    assert both.scale == 8.0
    html = both._repr_html_()
    page = Page(html)
    assert page.figures == 2
    assert page.open == []
    strengths = [float(cell["style"].removeprefix("--a:")) for row in page.rows for cell in row]
    assert strengths == [0.125, 0.5, 0.188, 0.188, 1, 1]
    assert "--rows:2" in html
    assert html.index("first") < html.index("second")


def test_the_scale_of_nothing_is_one():
    nothing = TokenHeatmap(["a"], {"m": [0.0]})
    assert nothing.beside(nothing).scale == 1.0


def test_rich_prints_every_row():
    stream = io.StringIO()
    Console(file=stream, color_system=None, width=80).print(FIRST)
    assert stream.getvalue() == "first\n\nmine, sum +3.000\nnot bad\n\neven, sum +3.000\nnot bad\n"


def test_rich_obeys_nothing():
    stream = io.StringIO()
    evil = TokenHeatmap(["\x1b[2J"], {"[red]\x1b[2J": [1.0]}, caption="[bold]\x07")
    Console(file=stream, color_system=None, width=80).print(evil)
    assert not re.search("[\x00-\x09\x0b-\x1f]", stream.getvalue())
    assert "[red]" in stream.getvalue()


def test_tokens_of_one_character_are_one_piece():
    shown = text_heatmap("a🙂", [(0, 1), (1, 2), (1, 2)], ["a", "x", "y"], {"m": [1.0, 2.0, 3.0]})
    assert shown.tokens == ["a", "🙂"]
    assert shown.scores == {"m": [1.0, 5.0]}


@pytest.mark.parametrize(
    ("scores", "options", "error"),
    [
        ({}, {}, DataError),
        ({"m": [1.0]}, {}, ShapeError),
        ({"m": [1.0, math.nan]}, {}, NumericError),
        ({"m": [1.0, 2.0]}, {"scale": 0.0}, ConfigError),
    ],
)
def test_bad_scores_are_refused_at_once(scores, options, error):
    with pytest.raises(error):
        TokenHeatmap(["a", "b"], scores, **options)
