"""The names of `tokencredit`: what the package promises, and how it is documented."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import tokencredit

SOURCE = ast.parse(Path(tokencredit.__file__).with_suffix(".pyi").read_text())
functions = [
    pytest.param(getattr(tokencredit, name), id=name)
    for name in tokencredit.__all__
    if inspect.isroutine(inspect.unwrap(getattr(tokencredit, name)))
]
every_function = pytest.mark.parametrize("function", functions)


def section(docstring: str, title: str) -> str:
    """What stands indented under `title:`; empty where there is no such section."""
    found = re.search(rf"^{title}:\n((?:[ ]{{4}}.*\n?|\n)+)", docstring, flags=re.MULTILINE)
    return found[1] if found else ""


def entries(docstring: str, title: str) -> list[str]:
    """The names that a section documents."""
    return re.findall(r"^ {4}(\w+):", section(docstring, title), flags=re.MULTILINE)


def raised_by(function) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }


def test_all_is_what_is_imported():
    imported = [
        alias.name
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    ]
    assert sorted(imported) == sorted(tokencredit.__all__)
    assert tokencredit.__all__ == sorted(tokencredit.__all__)


@pytest.mark.parametrize("name", tokencredit.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    docstring = inspect.getdoc(getattr(tokencredit, name))
    assert docstring
    assert docstring.split("\n\n")[0].endswith(".")


@pytest.mark.parametrize(
    "name",
    [
        "ResponseBatch",
        "TokenScorer",
        "attention_credit",
        "gae_advantages",
        "prefix_difference_credit",
        "project_token_scores",
        "terminal_credit",
        "uniform_credit",
    ],
)
def test_names_that_must_not_go_away(name):
    assert name in tokencredit.__all__


@every_function
def test_every_function_shows_itself_at_work(function):
    assert ">>> " in inspect.getdoc(function)


@every_function
def test_options_are_keyword_only(function):
    parameters = inspect.signature(function).parameters.values()
    loose = [
        p.name for p in parameters if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY
    ]
    assert not loose


@every_function
def test_documented_arguments_are_the_arguments(function):
    documented = entries(inspect.getdoc(function), "Args")
    assert not documented or documented == list(inspect.signature(function).parameters)


@every_function
def test_whatever_is_raised_is_documented(function):
    documented = entries(inspect.getdoc(function), "Raises")
    assert raised_by(function) <= set(documented)


@every_function
def test_credits_and_losses_name_their_source_and_their_result(function):
    docstring = inspect.getdoc(function)
    if function.__name__.endswith(("_credit", "_losses")):
        assert section(docstring, "Returns")
        assert re.search(r"^Source: \S", docstring, flags=re.MULTILINE)


def test_the_checks_above_see_what_they_look_for():
    docstring = inspect.getdoc(tokencredit.attention_credit)
    assert entries(docstring, "Raises") == ["ConfigError", "ShapeError", "NumericError"]
    assert "ConfigError" in raised_by(tokencredit.attention_credit)
    assert len(functions) > 20
