"""What processes of a training exchange, and what is said when one dies or falls silent."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor

from tokencredit.errors import ProcessError

Result = TypeVar("Result")


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


def by_the_first(accelerator: Accelerator, call: Callable[[], Result]) -> Result:
    """What a function returns in the first process, or raises there, told to all of them.

    Args:
        accelerator: of the processes; every one of them must ask for it.
        call: returns what can be pickled.
    """
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = call()
        except Exception as error:
            told[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    result, failure = told
    if failure is not None:
        raise failure
    return result


def rows_of_all(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The rows of all processes in their order, all as wide as the widest.

    Args:
        accelerator: of the processes; every one of them must ask for it.
        values: (batch) or (batch, time), as many rows on each process.
    """
    # Padding turns truth values into numbers, but on the processes alone that need it.
    numbers = values.long() if values.dtype == torch.bool else values
    gathered: Tensor = accelerator.gather(accelerator.pad_across_processes(numbers, dim=1))
    return gathered.to(values.dtype)


def largest_of_all(accelerator: Accelerator, number: int) -> int:
    """The largest of the numbers that the processes have.

    Args:
        accelerator: of the processes; every one of them must ask for it.
        number: of this process.
    """
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def own_rows(accelerator: Accelerator, everywhere: Tensor, own: Tensor) -> Tensor:
    """The part of `rows_of_all` that belongs to this process, as wide as it was.

    Args:
        accelerator: of the processes.
        everywhere: rows of all of them.
        own: a tensor of the shape that this process had.
    """
    rows, time = own.shape
    start = accelerator.process_index * rows
    return everywhere[start : start + rows, :time]


def end_processes(accelerator: Accelerator) -> None:
    """Leave the group of processes, once its threads have let go of their last exchange.

    A thread of gloo frees the tensors of an exchange after the exchange has ended, and needs the
    interpreter for it. A group that is freed in between waits for its threads and keeps the
    interpreter: neither ends, in about one run of seven on two CPU processes.

    Args:
        accelerator: of the processes, whose exchanges are over.
    """
    if accelerator.num_processes > 1:
        time.sleep(0.2)  # lets go of the interpreter, which is all that such a thread waits for
    accelerator.end_training()


def is_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether what went wrong is the exchange between processes.

    >>> is_of_a_lost_process(RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection reset"))
    True
    >>> is_of_a_lost_process(RuntimeError("the shapes do not fit"))
    False
    """
    # Gloo has no exception of its own.
    return isinstance(error, torch.distributed.DistError) or "gloo/" in str(error)
