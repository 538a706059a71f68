"""Every example in a docstring of the package, run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import tokencredit

modules = [
    module.name
    for module in pkgutil.walk_packages(tokencredit.__path__, "tokencredit.")
    if not module.ispkg
]


class Finder(doctest.DocTestFinder):
    """Finds examples of functions behind the annotation check, which wraps them."""

    def _from_module(self, module, candidate):
        return super()._from_module(module, inspect.unwrap(candidate))


@pytest.mark.parametrize("name", modules)
def test_examples(name):
    if ".server" in name or ".serve" in name:
        pytest.importorskip("fastapi", reason="FastAPI is an extra")
    if ".trl_" in name:
        pytest.importorskip("trl", reason="TRL is an extra")
    if ".verl_" in name:
        pytest.importorskip("verl", reason="verl is an extra")
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for examples in Finder(exclude_empty=True).find(module, name):
        runner.run(examples, out=report.append)
    assert not runner.failures, "".join(report)
    written = re.findall(r"^ +>>> ", Path(module.__file__).read_text(), flags=re.MULTILINE)
    assert runner.tries == len(written), "some examples were not found"


def test_there_are_modules():
    assert {"tokencredit.masking", "tokencredit.credit.redistribution"} <= set(modules)
