"""Processes forked from one that has imported every command already, and has done nothing else.

An import of PyTorch and transformers takes some five seconds of a processor, and dozens of tests
start processes. The server that these come from is Python's own, one for each worker of pytest.
Nothing checks annotations in them, as nothing does for users.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokencredit.cli import COMMANDS, main

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["pytest", "hypothesis", "accelerate.commands.launch", "transformers.models.llama"]
    + [f"tokencredit.recipes.{module}" for module, _ in COMMANDS.values()]
)


class ForkedCommand:
    """`tokencredit <arguments>` in a process of its own.

    Args:
        arguments: the words after `tokencredit`.
        together: what goes to standard error stands in `stdout` too, in the order of writing.
        env: what is added to the environment.
    """

    def __init__(
        self, *arguments: str, together: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        out, err = self._files
        self._process = _SERVER.Process(
            target=_command,
            args=(arguments, out, out if together else err, {**os.environ, **(env or {})}),
            daemon=True,  # none outlives the tests
        )
        self._process.start()

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._said(0)

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self._said(1)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; less than zero for the signal that ended it, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit status, once it has ended.

        Raises:
            TimeoutExpired: it has not, after so many seconds; it is killed.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired("tokencredit", timeout, self.stdout, self.stderr)
        return self.returncode

    def _said(self, which: int) -> str:
        file = self._files[which]
        return file.read_bytes().decode(errors="replace") if file.exists() else ""


def _command(arguments: tuple[str, ...], out: Path, err: Path, env: dict[str, str]) -> None:
    _become(out, err, env)
    sys.argv = ["tokencredit", *arguments]
    sys.exit(main(list(arguments)))


def _become(out: Path, err: Path, env: dict[str, str]) -> None:
    """What an interpreter does with its environment and its outputs when it starts."""
    import torch

    os.environ.clear()
    os.environ.update(env)
    streams = {1: (sys.stdout, out, "strict"), 2: (sys.stderr, err, "backslashreplace")}
    for number, (stream, file, errors) in streams.items():
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
        encoding = env.get("PYTHONIOENCODING", "utf-8")
        stream.reconfigure(encoding=encoding, errors=errors)
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # as in the tests' own process


def run_in_processes(
    function: Callable[..., Any], *arguments: Any, processes: int = 2, timeout: float = 240
) -> None:
    """A function of a helper module in several processes, which find each other as by torchrun.

    Where one fails, the others are ended.

    Raises:
        AssertionError: one of them failed, or was not ready in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    with TemporaryDirectory() as folder:
        said = [Path(folder, str(rank)) for rank in range(processes)]
        started = []
        for rank, file in enumerate(said):
            own = {**launched, "RANK": rank, "LOCAL_RANK": rank}
            env = {**os.environ, **{name: str(value) for name, value in own.items()}}
            started.append(
                _SERVER.Process(target=_called, args=(function, arguments, file, env), daemon=True)
            )
            started[-1].start()
        end = time.monotonic() + timeout
        while any(one.is_alive() for one in started) and not any(one.exitcode for one in started):
            alive = [one.sentinel for one in started if one.is_alive()]
            if not connection.wait(alive, max(end - time.monotonic(), 0)):
                break
        for one in started:
            one.kill()
            one.join()
        errors = "\n".join(file.read_text(errors="replace")[-6000:] for file in said)
        assert [one.exitcode for one in started] == [0] * processes, errors


def run_script(file: Path, *arguments: object) -> None:
    """Run a file of Python as if its path and its arguments stood on the command line."""
    sys.argv = [str(file), *map(str, arguments)]
    runpy.run_path(str(file), run_name="__main__")


def _called(
    function: Callable[..., Any], arguments: tuple[Any, ...], file: Path, env: dict[str, str]
) -> None:
    _become(file, file, env)
    function(*arguments)
