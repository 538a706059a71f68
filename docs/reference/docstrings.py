"""How the package becomes its reference: what is shown, examples as code, names as links.

An extension of griffe, which reads the package for mkdocstrings. The docstrings themselves stay
free of Markdown, so that they can be read in a tooltip.
"""

import re
from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """Shows the names that the package exports, and nothing else of their modules."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:  # noqa: ARG002
        """Hide what is not exported, and rewrite the docstrings of the rest."""
        paths = {str(name): pkg[str(name)].target_path for name in pkg.exports or ()}
        for path in paths.values():
            entry = pkg[path.removeprefix(f"{pkg.path}.")]
            module = entry.parent
            for one in (module, entry, *entry.members.values()):
                if one.docstring is not None:
                    one.docstring.value = page_text(one.docstring.value, paths)
            for name, member in module.members.items():
                member.public = paths.get(name) == f"{module.path}.{name}"


def page_text(docstring: str, paths: dict[str, str]) -> str:
    """The docstring with its `>>>` examples fenced and public names in backticks linked."""
    parts = re.split(r"(^>>> .*(?:\n.+)*)", docstring, flags=re.MULTILINE)
    return "".join(
        f"```pycon\n{part}\n```" if part.startswith(">>> ") else _linked(part, paths)
        for part in parts
    )


def _linked(text: str, paths: dict[str, str]) -> str:
    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}][{paths[found[1]]}]" if found[1] in paths else found[0]

    return re.sub(r"(?<!\[)`(\w+)`", link, text)
