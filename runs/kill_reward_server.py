"""Kill a reward server again and again while a policy trains against it.

    python runs/kill_reward_server.py --kills 10 --steps 300

A small policy on the built-in vocabulary trains in one process, with the reward model in another,
`tokencredit serve`, which is sent SIGKILL after a random time and started again after another. The
run is to go on by itself. At the end metrics and weights must equal, bit for bit, those of a run
whose server nobody killed. Prints how often scores were asked for again; exits with 1 if anything
differs.
"""

import argparse
import dataclasses
import logging
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from kill_and_resume import differences, rows_of, run_config, write_models

from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.serving.serve import ServeConfig, serve

FORK = multiprocessing.get_context("fork")


class Counted(logging.Handler):
    """Counts what the client logs, which is each time that it asks again."""

    def __init__(self, count: Any) -> None:
        super().__init__()
        self.count = count

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self.count.value += 1


def quietly(call: Any, config: Any, count: Any = None) -> None:
    sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115
    if count is not None:
        client = logging.getLogger("tokencredit.client")
        client.addHandler(Counted(count))
        client.propagate = False
    call(config)


def started(call: Any, config: Any, count: Any = None) -> Any:
    child = FORK.Process(target=quietly, args=(call, config, count))
    child.start()
    return child


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def served_run(folder: Path, port: int, output: str, steps: int) -> TrainPolicyConfig:
    address = f"http://127.0.0.1:{port}"
    return dataclasses.replace(run_config(folder, output, steps), reward_model=address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds until a kill, at most")
    parser.add_argument("--down", type=float, default=6.0, help="seconds until a start, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    draw, again = random.Random(arguments.seed), FORK.Value("i", 0)
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        write_models(folder)
        served = ServeConfig(str(folder / "reward"), port=port)
        server = started(serve, served)
        started(train_policy, served_run(folder, port, "whole", arguments.steps)).join()
        run = started(train_policy, served_run(folder, port, "killed", arguments.steps), again)
        while run.is_alive() and not rows_of(folder / "killed"):
            time.sleep(0.1)
        for kill in range(arguments.kills):
            time.sleep(draw.uniform(0.0, arguments.longest))
            if not run.is_alive():
                raise SystemExit(f"the run ended after {kill} kills: give more --steps")
            server.kill()
            server.join()
            time.sleep(draw.uniform(0.0, arguments.down))
            server = started(serve, served)
        run.join()
        server.terminate()
        server.join()
        rows = len(rows_of(folder / "killed"))
        print(f"{arguments.kills} kills, scores asked for again {again.value} times, {rows} steps")
        wrong = differences(folder) if run.exitcode == 0 else ["the run did not end"]
        print(
            f"differs from the run whose server was not killed in: {', '.join(wrong) or 'nothing'}"
        )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
