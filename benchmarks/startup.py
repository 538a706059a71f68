"""How long a bare import and `--help` take, against the import of PyTorch.

    python benchmarks/startup.py

New processes in turn, processor time, which on an idle machine is that of the clock, medians and
quartiles.
"""

import argparse
import os
import statistics
import subprocess
import sys

WAYS = {
    "`python -c pass`": [sys.executable, "-c", "pass"],
    "`import tokencredit`": [sys.executable, "-c", "import tokencredit"],
    "`tokencredit --help`": [sys.executable, "-m", "tokencredit.cli", "--help"],
    "`tokencredit train-policy --help`": [
        sys.executable, "-m", "tokencredit.cli", "train-policy", "--help"
    ],
    "`import torch`": [sys.executable, "-c", "import torch"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(repeats + 1):
        for name, command in WAYS.items():
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"{name} ended with status {status}")
            if repeat:  # the first one fills the caches of the file system
                seconds[name].append(used.ru_utime + used.ru_stime)
    print("| what | CPU s, median | quartiles | of `import torch` |")
    print("|---|---:|---:|---:|")
    torch = statistics.median(seconds["`import torch`"])
    for name, taken in seconds.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {middle / torch:.2f} |")


if __name__ == "__main__":
    main()
