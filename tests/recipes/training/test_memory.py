"""What is freed between tensors that stay goes back to the system."""

import os
import subprocess
import sys

import pytest

MEASURED = """
import sys
import torch
from tokencredit.recipes.training.memory import return_large_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def left():
    before = resident()
    blocks = [torch.ones(2**21) for _ in range(40)]  # 8 MiB each
    kept = blocks[1::2]
    del blocks
    return resident() - before, kept

larger = torch.ones(7 * 2**20)
del larger
print(*(round(left()[0]) for told in (False, True) if not told or return_large_blocks()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_blocks_between_kept_ones_go_back():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": ""}
    del environment["MALLOC_MMAP_THRESHOLD_"]
    found = subprocess.run(
        [sys.executable, "-c", MEASURED],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )

    before, after = map(int, found.stdout.split())
    assert before > 300
    assert 150 < after < 200
