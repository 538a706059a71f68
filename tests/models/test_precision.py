"""What is said of a precision that a processor does not have."""

import platform
import warnings

import pytest
import torch

from tokencredit.errors import TokenCreditWarning
from tokencredit.models.precision import warn_of_emulated_bfloat16


def on(monkeypatch: pytest.MonkeyPatch, machine: str, capability: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_a_processor_without_bfloat16_is_told_of(monkeypatch, capability):
    on(monkeypatch, "x86_64", capability)
    with pytest.warns(TokenCreditWarning, match="expected machine.mixed_precision 'no' for speed"):
        warn_of_emulated_bfloat16("cpu", setting="machine.mixed_precision 'no'")


@pytest.mark.parametrize(
    ("machine", "capability", "device"),
    [("aarch64", "DEFAULT", "cpu"), ("x86_64", "AVX2", "cuda"), ("x86_64", "AVX512", "cpu")],
)
def test_others_are_not(monkeypatch, machine, capability, device):
    on(monkeypatch, machine, capability)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_emulated_bfloat16(device, setting="dtype float32")
