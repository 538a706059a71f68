"""YAML that unfolds without end is refused before anything unfolds it."""

import time

import pytest

from tokencredit.cli import main
from tokencredit.errors import ConfigError
from tokencredit.recipes.settings_files import require_few_aliases, require_small_file

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a, *a]", "a: &a {b: *a}"])
def test_what_unfolds_without_end(text):
    with pytest.raises(ConfigError, match="repeats parts of itself by YAML aliases"):
        require_few_aliases(text, "settings.yaml")


@pytest.mark.parametrize("text", ["a: &a [1, 2]\nb: *a", "Q&A *", "a: 3", "[", "a: *b & c"])
def test_what_does_not(text):
    require_few_aliases(text, "settings.yaml")


def test_commands_refuse_it_at_once(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(BOMB)
    began = time.process_time()
    assert main(["score-tokens", "--config", str(path)]) == 1
    assert main(["score-tokens", f"--config={path}"]) == 1
    assert main(["train-policy", "--rewards", "{" + ", ".join(BOMB.splitlines()) + "}"]) == 1
    learning = ["compare-learning", "--settings", str(path), "--output", str(tmp_path / "out")]
    assert main(learning) == 1
    assert capsys.readouterr().err.count("YAML aliases") == 4
    assert time.process_time() - began < 30


def test_a_file_larger_than_settings_are(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="1,000,001 bytes"):
        require_small_file(path)
    require_small_file(tmp_path / "absent.yaml")
