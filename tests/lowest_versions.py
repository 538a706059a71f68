"""The lowest versions that pyproject.toml allows, as constraints for pip.

    python tests/lowest_versions.py > constraints.txt

Those of the package and of the extras that its users install beside it. torch is not among them:
its older builds on the package index bring CUDA along.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
EXTRAS = ("peft", "trl", "serve")
BOUND = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<version>[\w.]+)(,<[\w.]+)?")


def lowest_versions() -> dict[str, str]:
    """The version that each package must have at least, by its name."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    asked = [*project["dependencies"]]
    asked += [one for extra in EXTRAS for one in project["optional-dependencies"][extra]]
    found = [BOUND.fullmatch(one) for one in asked]
    return {one["name"]: one["version"] for one in found if one["name"] != "torch"}


if __name__ == "__main__":
    for name, version in lowest_versions().items():
        sys.stdout.write(f"{name}=={version}\n")
