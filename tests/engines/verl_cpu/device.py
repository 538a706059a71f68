"""The CPU as one of verl's platforms, two processes of which speak by gloo."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from verl.plugin.platform import PlatformBase, PlatformRegistry


class CPUModule:
    """What verl asks `torch.cuda` for; `torch.cpu` has the rest."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def is_available(self) -> bool:
        return False  # else verl would measure a GPU's capability and pin memory

    def empty_cache(self) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def memory_allocated(self, *_: Any) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return 1 << 33, 1 << 34

    def reset_peak_memory_stats(self, *_: Any) -> None:
        pass

    def get_device_name(self, *_: Any) -> str:
        return "CPU"


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """Its `ray_resource_name` and `communication_backend_name` mean more than they say."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CPUModule()

    def ray_resource_name(self) -> str:
        """Places in Ray are counted as GPUs, which are no more than a number to it."""
        return "GPU"

    def communication_backend_name(self) -> str:
        """Gloo, and the process group with it.

        verl asks for the name right before it opens its group with "cpu:gloo,cpu:gloo" (the CPU's
        backend and the device's), and torch refuses a device that stands there twice. A group that
        is open already is left as it is.
        """
        place = {"RANK", "WORLD_SIZE", "MASTER_ADDR"}
        if place <= os.environ.keys() and not dist.is_initialized():
            dist.init_process_group(
                "gloo",
                init_method=os.environ.get("DIST_INIT_METHOD"),
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                timeout=timedelta(minutes=20),
            )
        return "gloo"

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
