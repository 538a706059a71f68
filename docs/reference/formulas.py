"""Formulas between dollars become MathML when the site is built: browsers draw it without a script.

A hook of MkDocs. The pages themselves keep the dollars, which other readers of Markdown know too.
Source maps, which only developers of the theme read, are left out of the site: a megabyte.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_kwargs: Any) -> str:
    """The page with every formula drawn."""
    return _FORMULA.sub(_drawn, content)


def on_post_build(config: Any, **_kwargs: Any) -> None:
    """The site without source maps."""
    for file in Path(config["site_dir"]).rglob("*.map"):
        file.unlink()


def _drawn(found: re.Match[str]) -> str:
    alone = found["tag"] == "div"
    display = "block" if alone else "inline"
    drawn = convert(html.unescape(found["latex"]).strip(), display=display)
    return f'<div class="formula">{drawn}</div>' if alone else drawn
