"""What a training of several processes says when one of them dies or falls silent."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import InitProcessGroupKwargs

from tokencredit.errors import ProcessError


def process_group_settings(seconds: float) -> InitProcessGroupKwargs:
    """How long a process waits for the others, for `Accelerator(kwargs_handlers=[...])`.

    Args:
        seconds: at most, in one exchange of tensors or at one meeting point.
    """
    return InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Say in words what gloo and NCCL say by their sources.

    Raises:
        ProcessError: another process of this training died, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_a_lost_process(error):
            raise
        said = str(error).splitlines()[0]
        raise ProcessError(
            f"another process of this run died or did not answer ({said}); expected all of them "
            "until the end: look into what the others said last, then give the same command again, "
            "which goes on from the last checkpoint. Where one was only slow, raise "
            "machine.process_timeout"
        ) from error


def is_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether what went wrong is the exchange between processes.

    >>> is_of_a_lost_process(RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection reset"))
    True
    >>> is_of_a_lost_process(RuntimeError("the shapes do not fit"))
    False
    """
    # Gloo has no exception of its own.
    return isinstance(error, torch.distributed.DistError) or "gloo/" in str(error)
