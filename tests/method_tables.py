"""The table of credit methods as docs/methods.md shows it, made from the table in the code.

`PYTHONPATH=src python tests/method_tables.py` writes it into the page.
"""

import re
from pathlib import Path

from tokencredit.credit.methods import CREDIT_METHODS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
START, END = "<!-- table of credit methods -->\n", "<!-- end of the table -->\n"


def credit_table() -> str:
    """One row per name: what it pays, what it needs, what it conserves."""
    lines = ["| `credit.method` | pays | needs | a row sums to | causal | passes |"]
    lines.append("|---|---|---|---|---|---|")
    for name, method in CREDIT_METHODS.items():
        needs = ", ".join(need.replace("_", " ") for need in method.needs)
        causal = "yes" if method.causal else "no"
        cells = (f"`{name}`", method.text, needs, method.conserves, causal, method.passes)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown_table() -> str:
    """What the page shows."""
    return PAGE.read_text().split(START)[1].split(END)[0]


if __name__ == "__main__":
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: START + credit_table() + END, PAGE.read_text()))
