"""Python functions that settings name."""

import sys

import pytest

from tokencredit.errors import ConfigError
from tokencredit.scorers.functions import named_function, names_function


def test_a_function_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "units_of_halves.py").write_text(
        "def halves(text):\n    return [(0, 1)]\nSEVEN = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert named_function("units_of_halves:halves")("ab") == [(0, 1)]
    assert sys.path == path
    with pytest.raises(ConfigError, match="units_of_halves:SEVEN is 7; expected a function"):
        named_function("units_of_halves:SEVEN")


@pytest.mark.parametrize("path", ["math:no_such_thing", "no_module_of_this_name:f", ":f", "math"])
def test_a_function_that_is_not_there(path):
    with pytest.raises(ConfigError, match=f"there is no function {path} .*expected `module:func"):
        named_function(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my.module:f", True),
        ("my/model", False),
        ("http://host:80", False),
        ("m:f:g", False),
        ("", False),
    ],
)
def test_what_has_the_form_of_a_name(text, expected):
    assert names_function(text) == expected
