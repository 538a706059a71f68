"""The tree of errors at the head of the module is the tree of classes."""

import inspect
import re

import pytest

from tokencredit import errors

KINDS = errors.TokenCreditError.__subclasses__()


def listed() -> dict[str, str]:
    """Each error of the tree, with what stands beside it."""
    lines = re.findall(r"^[├└]── (\w+) +(.+)$", errors.__doc__, flags=re.MULTILINE)
    return dict(lines)


def test_every_error_stands_in_the_tree():
    assert list(listed()) == [kind.__name__ for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_says_of_each_what_it_says_of_itself(kind):
    described = re.sub(r" \(also .*\)$", "", listed()[kind.__name__])
    assert f"{described[0].upper()}{described[1:]}." == inspect.getdoc(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_also_those_of_python(kind):
    """So that code which knows nothing of this package can catch them."""
    assert issubclass(kind, ValueError | ArithmeticError | RuntimeError | OSError)
    assert not issubclass(errors.TokenCreditWarning, errors.TokenCreditError)
