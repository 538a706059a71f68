"""The tables of methods as the documentation shows them, made from the tables in the code.

A page has `<!-- table of KIND -->` where the table of a kind of `tokencredit methods` stands. Each
name in it leads to the entry that tells of it, where there is one. Entries of guided decoding and
of weights of tokens are made from the tables as well, but for their formulas (`method_entries`).

`PYTHONPATH=src python tests/method_tables.py` writes them into the pages.
"""

import re
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

from method_entries import GENERATED, with_entries

from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.recipes.methods import KINDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
WITH_ENTRIES = ("methods.md", "defences.md")
MARKED = re.compile(r"(<!-- table of (\w+) -->\n)(.*?)(<!-- end of the table -->\n)", re.DOTALL)
# Columns that the entries tell, or another table of the page: no table is wider than five.
LEFT_OUT = {"credit": ["needs"], "loss": ["needs", "options"], "weight": ["options"]}


@dataclass(frozen=True)
class Entry:
    """What a page says under the heading of a method."""

    title: str
    text: str
    page: str

    def said(self, what: str) -> str:
        """What stands after one of its words in bold; empty where it does not say that."""
        found = re.search(rf"\*\*{what}\*\*: (.+?)\.?(?=\. \*\*|$)", self.text, flags=re.M)
        return found[1] if found else ""

    def chosen_by(self) -> list[tuple[str, str]]:
        """The settings that choose it, each with its value."""
        found, setting = [], ""
        for quoted in re.findall(r"`(.+?)`", self.said("Setting")):
            setting, value = quoted.split(": ") if ": " in quoted else (setting, quoted)
            found.append((setting, value))
        named = "credit.method" if self.page == "methods.md" else "combine.method"
        return found + [(named, name) for name in re.findall(r"`(.+?)`", self.said("Name"))]


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def entries() -> list[Entry]:
    """Every method that has its own heading, in the order of the pages."""
    found = []
    for page in WITH_ENTRIES:
        parts = re.split(r"^#{2,4} (.+)$", (DOCS / page).read_text(), flags=re.M)[1:]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        found += [Entry(title, text, page) for title, text in pairs if "**Function**:" in text]
    return found


def method_table(kind: str, page: str) -> str:
    """One row per name of a kind, for a page of the documentation."""
    links: dict[tuple[str, str], str] = {}
    for one in entries():
        there = "" if one.page == page else relpath(one.page, Path(page).parent)
        for choice in one.chosen_by():
            links.setdefault(choice, f"{there}#{slug(one.title)}")
    if kind == "loss":
        links |= {("loss", name): f"#{name}" for name in PREFERENCE_LOSSES}
    if kind in GENERATED:
        setting, _, told = GENERATED[kind]
        links |= {(setting, name): f"#{name}" for name in told()}
    table = KINDS[kind]()
    columns = [one for one in table.columns if one.header not in LEFT_OUT.get(kind, [])]
    heads = [str(one.header).removeprefix("--") for one in columns]
    lines = [[f"`{heads[0]}`", *heads[1:]], ["---"] * len(heads)]
    for cells in zip(*(one.cells for one in columns), strict=True):
        name, *others = (str(cell).replace("|", "\\|") for cell in cells)
        link = links.get((heads[0], name))
        shown = f"[`{name}`]({link})" if link else f"`{name}`"
        lines.append([shown, *others])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(text: str, page: str) -> str:
    """A page with its tables and entries made anew."""
    tables = MARKED.sub(lambda found: found[1] + method_table(found[2], page) + found[4], text)
    return with_entries(tables, page)


if __name__ == "__main__":
    for file in DOCS.rglob("*.md"):
        made = with_tables(file.read_text(), file.relative_to(DOCS).as_posix())
        if made != file.read_text():
            file.write_text(made)
