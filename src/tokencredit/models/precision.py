"""Whether a processor computes in the precision that it is asked for."""

import platform
import warnings

import torch

from tokencredit.errors import TokenCreditWarning

_WITHOUT_BFLOAT16 = ("DEFAULT", "AVX2")


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 run without vector instructions for them.

    PyTorch has fast bfloat16 products on x86 from AVX-512 on. Below that they take several times as
    long as those in float32.

    Args:
        device: to compute on.

    >>> emulates_bfloat16(torch.device("cuda"))
    False
    """
    on_x86 = device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
    return on_x86 and torch.backends.cpu.get_cpu_capability() in _WITHOUT_BFLOAT16


def warn_of_emulated_bfloat16(device: torch.device | str, *, setting: str) -> None:
    """Warn where bfloat16 costs time in place of saving it.

    Args:
        device: to compute on.
        setting: what asks for bfloat16, with the value that does not.
    """
    if emulates_bfloat16(torch.device(device)):
        warnings.warn(
            "this processor has no fast products in bfloat16, which take several times as long as "
            f"in float32 here; expected {setting} for speed",
            TokenCreditWarning,
            stacklevel=3,
        )
