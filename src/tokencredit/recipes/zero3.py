"""Weights that DeepSpeed's ZeRO-3 holds in parts: what of it differs from FSDP2.

ZeRO-3 gathers a module when it is called, whoever calls it, and parts it again behind the call. Its
optimiser moves flat partitions of all parameters in float32; which belongs to what parameter only
DeepSpeed's `safe_get_*` and `safe_set_*` functions know.
"""

from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.integrations import unset_hf_deepspeed_config

from tokencredit.errors import ConfigError
from tokencredit.recipes.policy_config import TrainPolicyConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


def require_plain_zero3(accelerator: Accelerator) -> None:
    """Refuse what of DeepSpeed is not ZeRO-3 on devices alone.

    Raises:
        ConfigError: another stage, or weights or moments that wait elsewhere.
    """
    plugin = accelerator.state.deepspeed_plugin
    found = (plugin.zero_stage, plugin.offload_optimizer_device, plugin.offload_param_device)
    if found[0] != 3 or {*found[1:]} - {None, "none"}:
        raise ConfigError(
            f"Accelerate was launched with zero_stage {found[0]}, offload_optimizer_device "
            f"{found[1]} and offload_param_device {found[2]}; expected stage 3 and no offloading: "
            "use examples/accelerate/zero3.yaml"
        )


def settle(accelerator: Accelerator, config: TrainPolicyConfig) -> None:
    """Tell DeepSpeed that this recipe makes its own batches, and transformers to load as ever.

    Otherwise transformers would load frozen models in parts, too, which nobody would gather.

    Raises:
        ConfigError: weights of the policy would be read outside its forward pass.
    """
    if config.lora_rank and config.segments == "entropy":
        raise ConfigError(
            f"segments is 'entropy' with lora_rank {config.lora_rank} under ZeRO-3; expected other "
            "segments, lora_rank 0, or examples/accelerate/fsdp2.yaml"
        )
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = settings["gradient_accumulation_steps"] = 1
    settings["train_batch_size"] = accelerator.num_processes
    settings["gradient_clipping"] = config.max_grad_norm
    unset_hf_deepspeed_config()


def is_partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 holds a parameter."""
    return hasattr(tensor, "ds_id")


def _deepspeed() -> Any:
    return import_module("deepspeed")


def whole_parameter(parameter: Tensor) -> Tensor:
    """A parameter with the parts of all processes, in float32 if it is trained."""
    if parameter.requires_grad:
        whole: Tensor = _deepspeed().utils.safe_get_full_fp32_param(parameter)
        return whole
    with _deepspeed().zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def moments_of(parameter: Tensor, optimizer: Any) -> dict[str, Tensor]:
    """The whole moments of one parameter, and how many steps they have seen.

    Args:
        parameter: every process must ask for the same.
        optimizer: DeepSpeed's, around that of torch.
    """
    states = optimizer.optimizer.state
    if not parameter.requires_grad or not states:
        return {}
    steps = next(iter(states.values()))["step"]
    found = {n: _deepspeed().utils.safe_get_full_optimizer_state(parameter, n) for n in _MOMENTS}
    return {**found, "step": torch.as_tensor(steps).clone()}


def restore_moments(
    parameters: dict[str, Any], optimizer: Any, moments: dict[str, dict[str, Tensor]]
) -> None:
    """Put whole moments back, each process its part of them.

    Args:
        parameters: by name.
        optimizer: DeepSpeed's, around that of torch.
        moments: `exp_avg`, `exp_avg_sq` and `step` by the name of the parameter.
    """
    steps = next(iter(moments.values()))["step"]
    for partition in optimizer.fp32_partitioned_groups_flat:  # moments begin with the first step
        empty = {name: torch.zeros_like(partition.data) for name in _MOMENTS}
        optimizer.optimizer.state[partition] = {"step": steps.to(partition.device, copy=True)}
        optimizer.optimizer.state[partition].update(empty)
    for name, values in moments.items():
        for moment in _MOMENTS:
            # Not `safe_set_full_optimizer_state`, which cannot part a tensor that needs padding.
            part = _own_part(values[moment], parameters[name].ds_tensor.numel())
            _deepspeed().utils.safe_set_local_optimizer_state(parameters[name], part, moment)


def _own_part(value: Tensor, size: int) -> Tensor:
    """What this process holds of a whole tensor: as many numbers on each, zeros behind the last."""
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    flat = torch.nn.functional.pad(value.flatten(), (0, size * processes - value.numel()))
    return flat[size * rank : size * (rank + 1)]
