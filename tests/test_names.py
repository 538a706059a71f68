import pytest

from tokencredit.errors import ConfigError
from tokencredit.names import named, nearest, require_named


def test_nearest():
    assert nearest("atention", {"terminal": 1, "attention": 2}) == "attention"
    assert nearest("xyz", ["terminal", "attention"]) is None
    assert nearest("atention", ["attention"], cutoff=0.99) is None


def test_named_gives_the_row():
    assert named("credit", "b", {"a": 1, "b": 2}) == 2


def test_an_unknown_name_is_told_which_there_are():
    with pytest.raises(
        ConfigError,
        match=r"^credit is 'unifrom'; expected one of 'terminal', 'uniform'; "
        r"did you mean 'uniform'\?$",
    ):
        named("credit", "unifrom", {"terminal": 1, "uniform": 2})
    with pytest.raises(ConfigError, match=r"^credit is 'x'; expected one of 'terminal'$"):
        require_named("credit", "x", ("terminal",))
