"""Every page of the site in a real browser, narrow and wide, light and dark: nothing is cut off,
and on a laptop no table needs a scroll bar.

TOKENCREDIT_SCREENSHOTS=folder keeps a picture of every page as it was looked at, and
TOKENCREDIT_SITE=folder takes a site that was just built.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from chromium import Chromium, chromium_or_skip

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
WIDTHS, HEIGHT, SCHEMES = (1280, 390), 900, ("light", "dark")
SETTLED = 2.0  # seconds
MEGABYTES = 15
PAGES = sorted(
    page.relative_to(DOCS).with_suffix("").as_posix().removesuffix("index").rstrip("/")
    for page in DOCS.rglob("*.md")
)

# What lies outside the box that shows it, where nobody can scroll to it.
CUT_OFF = """
(() => {
  const scrolls = (style) => ["auto", "scroll"].includes(style);
  const clips = (style) => ["hidden", "clip"].includes(style);
  const words = (element) => element.textContent.trim().replace(/\\s+/g, " ").slice(0, 60);
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth + 1) found.push("the page is too wide");
  const boxes = "table, .md-typeset__scrollwrap, .formula, pre, code, math, img, svg, input";
  const shown = `${boxes}, p, li, h1, h2, h3, h4, dt, dd`;
  for (const element of document.querySelectorAll(shown.replace(/(^|, )/g, "$1article "))) {
    const box = element.getBoundingClientRect();
    const own = getComputedStyle(element);
    if (!box.width || !box.height || own.visibility === "hidden") continue;
    if (clips(own.overflowX) && element.scrollWidth > element.clientWidth + 1)
      found.push(`inside ${element.tagName}: ${words(element)}`);
    for (let outer = element.parentElement; outer; outer = outer.parentElement) {
      const style = getComputedStyle(outer), frame = outer.getBoundingClientRect();
      const last = outer === document.documentElement;
      const right = last ? innerWidth : frame.right, left = last ? 0 : frame.left;
      if (scrolls(style.overflowX) && !last) break;
      if ((last || clips(style.overflowX)) && (box.right > right + 1 || box.left < left - 1)) {
        found.push(`${element.tagName}: ${words(element)}`);
        break;
      }
    }
    if (element.tagName === "IMG" && !element.naturalWidth) found.push(`empty: ${element.src}`);
  }
  return found;
})()
"""

# Tables that are wider than the box that they stand in.
SCROLLED = """
[...document.querySelectorAll("article table")]
  .filter((table) => {
    const box = table.closest(".md-typeset__scrollwrap") ?? table.parentElement;
    return box.scrollWidth > box.clientWidth + 1;
  })
  .map((table) => table.textContent.trim().replace(/\\s+/g, " ").slice(0, 60))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    browser = chromium_or_skip(tmp_path_factory.mktemp("profile"))
    browser.call("Network.enable")  # every page would build the index of the search again
    browser.call("Network.setBlockedURLs", urls=["*/search_index.json"])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation, built as for its readers."""
    if "TOKENCREDIT_SITE" in os.environ:
        return Path(os.environ["TOKENCREDIT_SITE"])
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def problems(browser: Chromium, address: str, page: str) -> dict[tuple[int, str], list[str]]:
    """What is cut off, by width and scheme."""
    kept, found = os.environ.get("TOKENCREDIT_SCREENSHOTS"), {}
    browser.show(width=WIDTHS[0], height=HEIGHT, scheme=SCHEMES[0])
    browser.open(f"{address}/{page}/" if page else f"{address}/")
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.show(width=width, height=HEIGHT, scheme=scheme)
            named = {"light": "default", "dark": "slate"}[scheme]
            browser.wait(f"document.body.dataset.mdColorScheme === '{named}'")
            if kept:
                name = f"{page.replace('/', '-') or 'home'}-{width}-{scheme}.png"
                browser.screenshot(Path(kept) / name, whole=True)
            end = time.monotonic() + SETTLED  # the navigation slides to its place
            while (cut := browser.value(CUT_OFF)) and time.monotonic() < end:
                time.sleep(0.1)
            if cut:
                found[width, scheme] = cut
    return found


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_cut_off(page, browser, address):
    assert problems(browser, address, page) == {}


@pytest.mark.parametrize("page", PAGES)
def test_no_table_needs_a_scroll_bar_on_a_laptop(page, browser, address):
    browser.show(width=WIDTHS[0], height=HEIGHT, scheme=SCHEMES[0])
    browser.open(f"{address}/{page}/" if page else f"{address}/")
    assert browser.value(SCROLLED) == []


def test_the_site_is_small(site):
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    assert size < MEGABYTES * 1_000_000


def test_the_site_loads_nothing_from_elsewhere(site):
    there = r"""=["']?(?:https?:)?//"""
    loaded = re.compile(
        rf"<(?:script|img|iframe)\b[^>]*\bsrc{there}"
        rf"|<link\b[^>]*\brel=[\"']?stylesheet[^>]*\bhref{there}"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)  # and the one for addresses that lead nowhere
    for page in pages:
        assert not loaded.search(page.read_text()), page
