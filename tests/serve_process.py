"""`tokencredit serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys

TOKEN = "open-sesame-42"


class Server:
    """A server on a free port ; `--token_variable REWARD_TOKEN` makes it ask for TOKEN."""

    def __init__(self, model: str, *settings: str) -> None:
        command = [sys.executable, "-m", "tokencredit.cli", "serve", "--reward_model", model]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "REWARD_TOKEN": TOKEN},
        )
        self.said = ""
        while not (found := re.search(r"at (http://\S+)\n", self.said)):
            line = self.process.stdout.readline()
            assert line, self.said
            self.said += line
        self.address = found[1]

    def stop(self) -> str:
        """Everything it said, once it has stopped."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        return self.said + said
