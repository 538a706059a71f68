"""The tree of the package with the first line of every file, as docs/architecture.md shows it.

`python tests/package_tree.py` writes it into the page.
"""

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "tokencredit"
PAGE = PROJECT / "docs" / "architecture.md"
WIDTH = 28


def drawn_tree() -> str:
    """One line per folder and file, folders after the files beside them."""
    return "\n".join(["src/tokencredit/", *_lines(PACKAGE, "  ")]) + "\n"


def _lines(folder: Path, indent: str) -> list[str]:
    lines = []
    for file in sorted(folder.glob("*.py*")):
        if file.suffix in {".py", ".pyi"} and (file.stem != "__init__" or folder == PACKAGE):
            lines.append(f"{indent + file.name:<{WIDTH}} {_first_line(file)}")
    pages = [file for kind in ("*.html", "*.js") for file in folder.glob(kind)]
    lines += [f"{indent}{file.name}" for file in sorted(pages)]
    for below in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines.append(f"{indent + below.name + '/':<{WIDTH}} {_first_line(below / '__init__.py')}")
        lines += _lines(below, indent + "  ")
    return lines


def _first_line(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text())) if file.suffix == ".py" else None
    return doc.splitlines()[0] if doc else "the list of the public names"


if __name__ == "__main__":
    page = PAGE.read_text()
    tree = re.compile(r"```text\nsrc/tokencredit/\n.*?```", re.DOTALL)
    PAGE.write_text(tree.sub(lambda _: f"```text\n{drawn_tree()}```", page))
