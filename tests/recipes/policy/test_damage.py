"""Checkpoints that are damaged, disks that are full, runs that are stopped or started twice."""

import io
import json
import os
import resource
import shutil
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import PROMPTS, tiny_config, write_models

from tokencredit import cli
from tokencredit.errors import RunFolderError, TokenCreditWarning
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.checkpoints import checkpoints_in, last_checkpoint
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import held, read_jsonl


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A run of three steps, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    train_policy(three_steps(models, folder))
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def three_steps(models, output, **changes):
    return tiny_config(models, output, **{"steps": 3, "record.keep_checkpoints": 3, **changes})


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def assert_same_policy(one: Path, other: Path) -> None:
    expected, found = (load_file(run / "policy" / "model.safetensors") for run in (one, other))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


DAMAGES = {
    "a flipped byte": lambda one: flip_a_byte(one / "policy" / "model.safetensors"),
    "a moment cut short": lambda one: cut(one / "optimizer.safetensors"),
    "a file that is gone": lambda one: (one / "value_head.safetensors").unlink(),
    "a state of other JSON": lambda one: (one / "state.json").write_text("[]"),
    "checksums cut short": lambda one: cut(one / "checksums.json"),
    "no checksums": lambda one: (one / "checksums.json").unlink(),
    "a file in the place of the folder": lambda one: (shutil.rmtree(one), one.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_taken(run, damage):
    damage(run / "checkpoints" / "step-000003")
    with pytest.warns(
        TokenCreditWarning, match=r"step-000003 is damaged .* goes on from step-00000"
    ):
        assert last_checkpoint(run) == run / "checkpoints" / "step-000002"
    assert names(run) == {"step-000001", "step-000002", "step-000003.damaged"}


def test_after_a_flipped_byte_the_run_comes_to_the_same_end(models, whole, run):
    flip_a_byte(run / "checkpoints" / "step-000003" / "policy" / "model.safetensors")
    shutil.rmtree(run / "policy")
    with pytest.warns(TokenCreditWarning, match="step-000003 is damaged"):
        train_policy(three_steps(models, run))
    assert_same_policy(whole, run)
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [0, 1, 2]


def test_where_all_checkpoints_are_damaged_the_run_does_not_begin_anew(models, run):
    for checkpoint in checkpoints_in(run).values():
        flip_a_byte(checkpoint / "optimizer.safetensors")
    before = names(run)
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"step-000001 is damaged .*put its files back"):
            train_policy(three_steps(models, run, steps=4))
    assert names(run) == before


def test_folders_of_other_names_are_no_checkpoints(models, run):
    shutil.copytree(run / "checkpoints" / "step-000001", run / "checkpoints" / "step-000003.bak")
    shutil.copytree(run / "checkpoints" / "step-000001", run / "checkpoints" / "step-9")
    assert last_checkpoint(run) == run / "checkpoints" / "step-000003"
    train_policy(three_steps(models, run, steps=4, record__keep_checkpoints=1))
    assert names(run) == {"step-000004", "step-000003.bak", "step-9"}


def test_steps_are_counted_and_not_spelled(tmp_path):
    for step in (999_999, 1_000_000, 2):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert list(checkpoints_in(tmp_path)) == [2, 999_999, 1_000_000]


def test_fewer_steps_than_are_done_are_refused(models, run):
    with pytest.raises(RunFolderError, match="has done 3 steps, and steps is 2; expected at least"):
        train_policy(three_steps(models, run, steps=2))


def test_other_prompts_are_refused(models, run):
    kept = (models / "prompts.jsonl").read_text()
    try:
        (models / "prompts.jsonl").write_text(kept.replace(PROMPTS[0], "the plot was"))
        with pytest.raises(
            RunFolderError, match=r"prompts.jsonl.* are not those with which the run"
        ):
            train_policy(three_steps(models, run, steps=4))
    finally:
        (models / "prompts.jsonl").write_text(kept)


def test_other_versions_are_told(models, run):
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps({**versions, "torch": "1.0"}))
    with pytest.warns(TokenCreditWarning, match=r"other versions than it had \(torch 1.0 -> "):
        train_policy(three_steps(models, run))
    assert json.loads((run / "versions.json").read_text()) == versions


def test_rows_cut_inside_a_character_are_done_again(models, whole, run):
    shutil.rmtree(run / "checkpoints" / "step-000003")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("ab") as file:
            file.write('{"step": 2, "text": "naï'.encode()[:-1])
    train_policy(three_steps(models, run))
    assert_same_policy(whole, run)
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [0, 1, 2]


def train_on_a_disk_with_room_for(size: int, config, said: Path) -> None:
    """Train in a process whose files may not be longer than this; the system refuses to write."""
    sys.stdout = sys.stderr = io.StringIO()  # what is said stands in a file of the test elsewhere
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        train_policy(config)
        ended = "trained"
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    os.write(os.open(said, os.O_WRONLY), ended.encode()[:size])
    os._exit(0)


@pytest.mark.parametrize("size", [200, 4_000, 20_000], ids="{} bytes".format)
def test_a_disk_that_is_full_leaves_whole_checkpoints_and_nothing_else(
    models, whole, run, tmp_path, size
):
    """Nothing is mocked: safetensors, tokenizers and Python meet a write that is refused."""
    shutil.rmtree(run / "checkpoints" / "step-000003")
    (run / "metrics.jsonl").unlink()
    said = tmp_path / "said.txt"
    said.touch()
    config = three_steps(models, run)
    child = get_context("fork").Process(
        target=train_on_a_disk_with_room_for, args=(size, config, said)
    )
    child.start()
    child.join(120)
    assert said.read_text().startswith("RunFolderError"), said.read_text()
    assert names(run) == {"step-000001", "step-000002"}
    assert not [path for path in run.rglob(".*") if "writing" in path.name]
    train_policy(config)
    assert_same_policy(whole, run)


def test_a_disk_that_is_full_at_the_first_opening_is_not_in_the_way_later(models, tmp_path):
    said = tmp_path / "said.txt"
    said.touch()
    config = tiny_config(models, tmp_path / "deep" / "run", steps=1)
    child = get_context("fork").Process(
        target=train_on_a_disk_with_room_for, args=(60, config, said)
    )
    child.start()
    child.join(120)
    assert said.read_text().startswith("RunFolderError: ")
    train_policy(config)
    assert names(tmp_path / "deep" / "run") == {"step-000001"}


def test_a_second_process_is_refused_at_once(models, run):
    before = (run / "metrics.jsonl").read_text()
    with held(run), pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} on"):
        train_policy(three_steps(models, run, steps=4))
    assert (run / "metrics.jsonl").read_text() == before
    assert not (run / ".lock").exists()


def run_the_command(config, said: Path) -> None:
    """`tokencredit train-policy` with its exit status, what it says on standard error in a file."""
    os.dup2(os.open(said, os.O_WRONLY), 2)
    cli._parsed = lambda *_: config
    try:
        status = cli.main(["train-policy"])
    except SystemExit as ended:
        status = ended.code
    os._exit(status)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_ends_the_run_with_a_checkpoint(models, tmp_path, number, status):
    folder, said = tmp_path / "run", tmp_path / "said.txt"
    said.touch()
    steps = 10_000
    config = tiny_config(models, folder, steps=steps, record__checkpoint_every=1000)
    child = get_context("fork").Process(target=run_the_command, args=(config, said))
    child.start()
    deadline = time.monotonic() + 120
    while len(read_jsonl(folder / "metrics.jsonl")) < 2 and child.is_alive():
        assert time.monotonic() < deadline, "the run never reached its second step"
        time.sleep(0.02)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == status, said.read_text()
    assert f"{number.name}: the run ends after this step, with a checkpoint" in said.read_text()
    done = len(read_jsonl(folder / "metrics.jsonl"))
    assert done < steps
    assert names(folder) == {f"step-{done:06d}"}
    assert not (folder / ".lock").exists()
    train_policy(tiny_config(models, folder, steps=done + 1))
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(done + 1))


def test_what_a_signal_interrupts_comes_to_the_same_end(models, whole, tmp_path, monkeypatch):
    take_step = recipe._train_step

    def stopped(run, state):
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(run, state)

    monkeypatch.setattr(recipe, "_train_step", stopped)
    config = three_steps(models, tmp_path / "run", record__checkpoint_every=50)
    with pytest.raises(SystemExit) as ended:
        train_policy(config)
    assert ended.value.code == 143
    assert names(tmp_path / "run") == {"step-000002"}
    assert not (tmp_path / "run" / "policy").exists()
    monkeypatch.undo()
    train_policy(config)
    assert_same_policy(whole, tmp_path / "run")
