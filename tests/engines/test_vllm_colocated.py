"""`TokenCreditGRPOTrainer` with TRL's colocated vLLM, which draws the responses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is installed by make test-engines alone")

from tiny_policy import write_models
from vllm_servers import free_port

SCRIPT = Path(__file__).resolve().parents[1] / "vllm_colocated.py"


@pytest.mark.timeout(1200)
def test_token_credit_pays_what_vllm_draws(tmp_path):
    write_models(tmp_path, hidden_size=64, head_dim=32)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(free_port())],
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 3
    for row in rows:
        assert row["sent"] == 3
        assert row["moved"]
        assert any(name.startswith("token_credit/") for name in row)
        assert row["sampling/sampling_logp_difference/mean"] < 0.1
