"""The page of the server in Chromium: how long a long answer takes to show, and its picture.

    python benchmarks/page.py measure
    python benchmarks/page.py picture docs/assets/page.png

With the quickstart's reward model, which `tokencredit quickstart` leaves in `output/`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

from chromium import Chromium, chromium_path  # noqa: E402
from tiny_server import listening  # noqa: E402

from tokencredit.recipes.serving.serve import ServeConfig, application_of  # noqa: E402
from tokencredit.text.segments import SegmentSettings  # noqa: E402

METHODS = (
    *("terminal", "uniform", "attention", "prefix-difference", "smoothed-prefix-difference"),
    *("held-prefix-difference", "segment", "utterance"),
)
SCORED = "document.getElementById('status').textContent.endsWith('Scored.')"
FRAME = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
# From the answer of the server to the frame that shows it; then ten tokens, each with its numbers.
TIMED = f"""(async () => {{
  const body = new URLSearchParams(new FormData(document.querySelector("form")));
  const started = performance.now();
  const text = await (await fetch("/", {{method: "POST", body}})).text();
  const answered = performance.now();
  document.querySelector("form button").click();
  const status = document.getElementById("status");
  while (!status.textContent.endsWith("Scored.")) await {FRAME};
  await {FRAME};
  const shown = performance.now();
  const cells = [...document.querySelectorAll("[role=gridcell]")];
  const hovers = [];
  for (let at = 0; at < 10; at++) {{
    const before = performance.now();
    cells[at * 97].dispatchEvent(new MouseEvent("mouseover", {{bubbles: true}}));
    document.body.offsetHeight;
    hovers.push(performance.now() - before);
  }}
  hovers.sort((a, b) => a - b);
  return {{server: answered - started, whole: shown - answered, hover: hovers[5],
           cells: cells.length, bytes: text.length}};
}})()"""
COMPARED = {
    "prompt": "this comedy about two brothers",
    "response": " is slow at first, but the photography is superb. the ending is not dull, and "
    "the dialogue is a treat!",
    "other": " slightly drags. the pacing feels somewhat plain from start to end, and the ending "
    "is an awful catastrophe.",
    "credit": ["terminal", "attention", "prefix-difference"],
}


@contextmanager
def browser_at(reward_model: str, methods: tuple[str, ...]) -> Iterator[tuple[Chromium, str]]:
    """A browser, and the address of a server of this reward model."""
    program = chromium_path()
    if program is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    config = ServeConfig(
        reward_model=reward_model, methods=methods, segments=SegmentSettings("ngram", length=8)
    )
    with (
        listening(application_of(config)) as address,
        tempfile.TemporaryDirectory() as folder,
    ):
        browser = Chromium(program, Path(folder))
        try:
            yield browser, address
        finally:
            browser.close()


def shown(browser: Chromium, address: str, state: dict[str, object]) -> None:
    """Go to the page of a link and wait for its answer."""
    browser.call("Page.navigate", url=f"{address}/#{urlencode(state, doseq=True)}")
    browser.wait(SCORED)


def measure(reward_model: str, *, tokens: int, repeats: int) -> None:
    """Print the medians of a few times, in milliseconds."""
    with browser_at(reward_model, METHODS) as (browser, address):
        browser.show(width=1280)
        state = {"response": " good bad" * (tokens // 2), "credit": list(METHODS)}
        shown(browser, address, state)
        times = [browser.value_of_promise(TIMED) for _ in range(repeats)]
    # A click costs a request as well: what is left is the browser's own work.
    drawn = [one["whole"] - one["server"] for one in times]
    server, hover = (median(one[key] for one in times) for key in ("server", "hover"))
    print(json.dumps({key: times[0][key] for key in ("cells", "bytes")}))
    print(f"server {server:.0f} ms, browser {median(drawn):.0f} ms, numbers {hover:.1f} ms")


def picture(reward_model: str, path: Path) -> None:
    """Write what the page shows of two responses, one token under the mouse."""
    methods = ("terminal", "uniform", "attention", "prefix-difference")
    with browser_at(reward_model, methods) as (browser, address):
        # As tall as the page, so that nothing scrolls away from under the mouse.
        browser.show(width=1120, height=1200)
        shown(browser, address, COMPARED)
        browser.hover(".row:last-of-type .tokens span:nth-of-type(8)")
        browser.wait("document.getElementById('numbers').checkVisibility()")
        browser.screenshot(path, whole=True)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("measure", "picture"))
    parser.add_argument("path", nargs="?", type=Path, default=PROJECT / "docs/assets/page.png")
    parser.add_argument("--reward-model", default="output/quickstart/reward-model")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    if asked.command == "measure":
        measure(asked.reward_model, tokens=asked.tokens, repeats=asked.repeats)
    else:
        picture(asked.reward_model, asked.path)


if __name__ == "__main__":
    main()
