"""The tables of credit methods as docs/methods.md shows them, made from the table in the code.

Each name of the table leads to the entry of the page that tells of it.

`PYTHONPATH=src python tests/method_tables.py` writes it into the page.
"""

import re
from pathlib import Path

from tokencredit.credit.methods import CREDIT_METHODS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
START, END = "<!-- table of credit methods -->\n", "<!-- end of the table -->\n"


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def entries() -> dict[str, str]:
    """The text under each heading of a method, by its title."""
    parts = re.split(r"^#### (.+)$", PAGE.read_text(), flags=re.M)[1:]
    found = zip(parts[::2], parts[1::2], strict=True)
    return {title: re.split(r"^#+ ", text, flags=re.M)[0] for title, text in found}


def said_of(text: str, what: str) -> str:
    """What an entry says after one of its words in bold; empty where it does not say that."""
    found = re.search(rf"\*\*{what}\*\*: (.+?)\.?(?=\. \*\*|$)", text, flags=re.M)
    return found[1] if found else ""


def credit_table() -> str:
    """One row per name: what it pays, what that sums to, whether it is causal, what it costs."""
    anchors = {
        name: slug(title)
        for title, text in entries().items()
        for name in re.findall(r"`(.+?)`", said_of(text, "Name"))
    }
    lines = ["| `credit.method` | pays | a row sums to | causal | passes |"]
    lines.append("|---|---|---|---|---|")
    for name, method in CREDIT_METHODS.items():
        causal = "yes" if method.causal else "no"
        shown = f"[`{name}`](#{anchors[name]})"
        cells = (shown, method.text, method.conserves, causal, method.passes)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown_table() -> str:
    """What the page shows."""
    return PAGE.read_text().split(START)[1].split(END)[0]


if __name__ == "__main__":
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: START + credit_table() + END, PAGE.read_text()))
