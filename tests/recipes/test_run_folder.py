import json
import os
import signal
from dataclasses import dataclass, field
from multiprocessing import get_context

import pytest
import yaml
from tiny_policy import tiny_config, write_models

from tokencredit.errors import RunFolderError, TokenCreditWarning
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import (
    append_jsonl,
    held,
    keep_rows_before,
    open_run_folder,
    read_jsonl,
    write_atomically,
)


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    steps: int = 3
    names: tuple[str, ...] = ("a", "b")


def test_first_opening_writes_settings_and_versions(tmp_path):
    folder = open_run_folder(tmp_path / "deep" / "run", Settings())
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings == {"rate": 0.1, "steps": 3, "names": ["a", "b"]}
    assert '"torch"' in (folder / "versions.json").read_text()


def test_same_settings_reopen(tmp_path):
    open_run_folder(tmp_path / "run", Settings())
    assert open_run_folder(tmp_path / "run", Settings()).is_dir()


def test_other_settings_are_refused_and_named(tmp_path):
    open_run_folder(tmp_path / "run", Settings())
    with pytest.raises(RunFolderError, match=r"another run \(rate: 0.1 -> 0.2\)"):
        open_run_folder(tmp_path / "run", Settings(rate=0.2))
    assert "0.2" not in (tmp_path / "run" / "config.yaml").read_text()


def test_free_settings_may_change(tmp_path):
    open_run_folder(tmp_path / "run", Settings())
    open_run_folder(tmp_path / "run", Settings(steps=9), free=["steps"])
    assert "steps: 9" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_folder_older_than_a_setting_has_it_at_its_default(tmp_path):
    folder = open_run_folder(tmp_path / "run", Settings())
    (folder / "config.yaml").write_text("rate: 0.1\nsteps: 3\n")
    with pytest.raises(RunFolderError, match=r"names: \['a', 'b'\] -> \['c'\]"):
        open_run_folder(folder, Settings(names=("c",)))
    assert open_run_folder(folder, Settings()) == folder


@dataclass(frozen=True)
class Room:
    size: int = 1
    colour: str = "red"


@dataclass(frozen=True)
class House:
    room: Room = field(default_factory=lambda: Room(size=2))
    plan: dict = field(default_factory=lambda: {"walls": 4})


def test_settings_of_groups_are_compared_one_by_one(tmp_path):
    folder = open_run_folder(tmp_path / "run", House())
    with pytest.raises(RunFolderError, match=r"another run \(room.size: 2 -> 3\)"):
        open_run_folder(folder, House(Room(3)))
    assert open_run_folder(folder, House(Room(3)), free=["room.size"]) == folder
    assert open_run_folder(folder, House(Room(4, "blue")), free=["room"]) == folder
    with pytest.raises(RunFolderError, match=r"room.colour: 'blue' -> 'red'"):
        open_run_folder(folder, House(Room(4)), free=["room.size"])
    with pytest.raises(RunFolderError, match=r"plan: {'walls': 4} -> {'doors': 1}"):
        open_run_folder(folder, House(Room(4, "blue"), {"doors": 1}))


def test_a_folder_older_than_a_group_has_it_at_its_defaults(tmp_path):
    folder = open_run_folder(tmp_path / "run", House())
    (folder / "config.yaml").write_text("room: {colour: red}\n")
    with pytest.raises(RunFolderError, match=r"another run \(room.size: 2 -> 3\)"):
        open_run_folder(folder, House(Room(3)))
    assert open_run_folder(folder, House()) == folder


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.txt").write_text("x")
    with pytest.raises(RunFolderError, match="not empty"):
        open_run_folder(tmp_path, Settings())


@pytest.mark.parametrize(
    "name", [".lock", ".config.yaml.writing", "versions.json", ".versions.json.writing"]
)
def test_what_a_killed_opening_leaves_is_not_in_the_way(tmp_path, name):
    (tmp_path / name).write_text("{")
    assert open_run_folder(tmp_path, Settings()) == tmp_path
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 3


@pytest.mark.parametrize("content", [b"steps: [3", b"", b"steps: \xff", b"- steps"])
def test_settings_that_are_damaged_are_refused(tmp_path, content):
    folder = open_run_folder(tmp_path / "run", Settings())
    (folder / "config.yaml").write_bytes(content)
    with pytest.raises(RunFolderError, match="cannot be read as the settings of a run"):
        open_run_folder(folder, Settings())


def test_other_versions_are_told(tmp_path):
    folder = open_run_folder(tmp_path / "run", Settings())
    versions = json.loads((folder / "versions.json").read_text())
    (folder / "versions.json").write_text(json.dumps({**versions, "python": "2.7", "lost": "1"}))
    expected = rf"python 2.7 -> {versions['python']}, lost 1 -> None\)"
    with pytest.warns(TokenCreditWarning, match=expected):
        open_run_folder(folder, Settings())
    (folder / "versions.json").write_text("[")
    assert open_run_folder(folder, Settings()) == folder


def test_a_folder_is_held_by_one(tmp_path):
    with (
        held(tmp_path / "deep" / "run") as folder,
        pytest.raises(RunFolderError, match=rf"run is in use by process {os.getpid()} on \w"),
        held(folder),
    ):
        raise AssertionError("it was held twice")
    assert not (tmp_path / "deep").exists(), "what nothing was put into goes again"
    with held(tmp_path / "run") as folder:
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def hold_until_killed(folder, told) -> None:
    with held(folder):
        told.send("held")
        signal.pause()


def test_a_process_that_is_killed_lets_go(tmp_path):
    fork = get_context("fork")
    heard, told = fork.Pipe()
    child = fork.Process(target=hold_until_killed, args=(tmp_path, told))
    child.start()
    assert heard.recv() == "held"
    with pytest.raises(RunFolderError, match=f"in use by process {child.pid}"), held(tmp_path):
        pass
    child.kill()
    child.join()
    assert (tmp_path / ".lock").exists()
    with held(tmp_path):
        pass


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be written"):
        open_run_folder(tmp_path / "file" / "run", Settings())


def test_a_row_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 0, "text": "naïve\u2028line"})
    with path.open("a") as file:
        file.write('{"step": 1, "te')
    assert read_jsonl(path) == [{"step": 0, "text": "naïve\u2028line"}]


def test_a_row_cut_inside_a_character_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 0})
    with path.open("ab") as file:
        file.write('{"step": 1, "text": "naï'.encode()[:-1])
    assert read_jsonl(path) == [{"step": 0}]
    keep_rows_before(path, 5)
    append_jsonl(path, {"step": 1})
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]


@pytest.mark.parametrize("line", [b"\0\0\0", b"\xff", b"7", b'{"step": 1}{"step": 2}'])
def test_a_line_that_is_damaged_is_left_out_and_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 3}\n')
    with pytest.warns(TokenCreditWarning, match="line 2 of .*metrics.jsonl is no JSON object"):
        assert read_jsonl(path) == [{"step": 0}, {"step": 3}]


def test_half_characters_can_be_written(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [{"step": 0, "text": "caf\u00e9 \ud83d"}, {"step": 1, "text": "\x00\x1b[31m\u2028"}]
    for row in rows:
        append_jsonl(path, row)
    assert read_jsonl(path) == rows
    keep_rows_before(path, 1)
    assert read_jsonl(path) == rows[:1]


def test_rows_of_steps_to_be_repeated_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(4):
        append_jsonl(path, {"step": step})
    keep_rows_before(path, 2)
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]


def test_writing_replaces_whole_files(tmp_path):
    write_atomically(tmp_path / "a.txt", "one")
    write_atomically(tmp_path / "a.txt", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"


def test_a_run_writes_into_its_folder_alone(tmp_path):
    """Whatever settings, data and models are called, nothing appears beside the folder."""
    inside = tmp_path / "inside"
    models = write_models(inside / "models")
    (inside / "prompts.jsonl").write_text(
        json.dumps({"prompt": "../../the plot", "id": "../../x", "subset": "/x"}) + "\n"
    )
    before = set(tmp_path.rglob("*"))
    output = inside / "models" / ".." / "run"
    config = tiny_config(models, output, prompts=str(inside / "prompts.jsonl"), steps=1)
    train_policy(config)
    for written in set(tmp_path.rglob("*")) - before:
        assert written.is_relative_to(inside / "run")
        assert not written.is_symlink()
