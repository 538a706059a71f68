"""`tokencredit serve` in a process of its own."""

import re
import signal
import time

from forked import ForkedCommand

TOKEN = "open-sesame-42"


class Server:
    """A server on a free port; `--token_variable REWARD_TOKEN` makes it ask for TOKEN."""

    def __init__(self, model: str, *settings: str) -> None:
        command = ["serve", "--reward_model", model, "--port", "0", *settings]
        self.process = ForkedCommand(*command, together=True, env={"REWARD_TOKEN": TOKEN})
        while not (found := re.search(r"at (http://\S+)\n", self.process.stdout)):
            assert self.process.returncode is None, self.process.stdout
            time.sleep(0.01)
        self.address = found[1]

    def stop(self) -> str:
        """Everything it said, once it has stopped."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return self.process.stdout
