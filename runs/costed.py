"""Run a command and add to a JSON-lines file what it cost.

    python runs/costed.py costs.jsonl NAME command ...

A row holds `name`, `cpu_seconds` (user and system), `seconds` by the clock, `peak_gb` of memory,
and the exit `status`, which is also that of this script. A command that was stopped and run again
leaves several rows, whose processor seconds add up.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    costs, name, *command = sys.argv[1:]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    # Stopping this script stops the command, whose cost so far is kept.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "name": name,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gb": round(used.ru_maxrss / 1024**2, 2),  # Linux counts in kilobytes
        "status": status,
    }
    with Path(costs).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
