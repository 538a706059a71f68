"""Servers of vLLM, each in a process of its own on this machine's CPU."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",  # no compiling, which would take minutes
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
ARGUMENTS = ("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16")
WRITING = ("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs")
SCORING = ("--runner", "pooling", "--pooler-config",
           '{"task":"token_classify","use_activation":false}')  # fmt: skip
PATIENCE = 900.0  # seconds; it takes 30 to 60 where the machine has nothing else to do


def started(model: Path, port: int, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A server that is up, or an error with the end of its log."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--port", str(port), *ARGUMENTS, *arguments]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    end = time.monotonic() + PATIENCE
    while not is_up(f"http://127.0.0.1:{port}"):
        if process.poll() is not None or time.monotonic() > end:
            stop(process)
            raise RuntimeError(f"vLLM did not start: {log.read_text()[-4000:]}")
        time.sleep(0.5)
    return process


def is_up(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server with its workers, also those that it has left behind; they are one session."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """The address of a server of this model."""
    port = free_port()
    process = started(model, port, log, *arguments)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)
