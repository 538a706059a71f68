"""Where weights live that are too many for one device: in parts, or waiting on the CPU.

FSDP2 shards a module in place. Between forward passes its parameters are DTensors, of which each
process holds a part; they are gathered when the forward of that module begins. Therefore nothing
below the root may be called but from within the root's forward (`ActorCritic.policy_alone`), every
process must make the same passes, and what is written to disk is gathered first.

DeepSpeed's ZeRO-3 gathers a module when it is called, whoever calls it, and parts it again after
the call. Its optimiser moves flat partitions of all parameters in float32; which belongs to what
parameter only DeepSpeed's `safe_get_*` and `safe_set_*` functions know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_canonicalize_names
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import unset_hf_deepspeed_config

from tokencredit.errors import ConfigError
from tokencredit.policy.hf_models import ActorCritic
from tokencredit.recipes.policy.settings import TrainPolicyConfig

_ONE_COPY_EACH = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU,
          DistributedType.MULTI_XPU)  # fmt: skip


def require_known_distribution(accelerator: Accelerator) -> None:
    """Refuse what Accelerate can launch and this recipe cannot run.

    Raises:
        ConfigError: FSDP1, ZeRO-2 and the like; or each model would be loaded in one process.
    """
    kind = accelerator.distributed_type
    if kind in _ONE_COPY_EACH:
        return
    if kind == DistributedType.DEEPSPEED:
        require_plain_zero3(accelerator)
        return
    if kind != DistributedType.FSDP:
        raise ConfigError(
            f"Accelerate was launched with {kind.value}; expected a configuration of "
            "examples/accelerate: plain data parallelism, FSDP2 or ZeRO-3"
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"Accelerate was launched with fsdp_version {plugin.fsdp_version}; expected 2: use "
            "examples/accelerate/fsdp2.yaml"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "Accelerate was launched with fsdp_cpu_ram_efficient_loading, under which transformers "
            "reads the reference and the reward model in the first process alone; expected false"
        )


def gathers_for_every_token(module: nn.Module, *, kept: bool) -> bool:
    """Whether generation gathers layers again and again, so that processes must keep in step.

    Args:
        module: what is trained.
        kept: whether layers of FSDP2 stay gathered; those of ZeRO-3 never do.
    """
    partitioned = any(map(is_partitioned, module.parameters()))
    return partitioned or (isinstance(module, FSDPModule) and not kept)


def prepare(
    accelerator: Accelerator, actor_critic: ActorCritic, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """Model and optimiser as Accelerate wraps or shards them."""
    model, wrapped_optimizer = accelerator.prepare(actor_critic, optimizer)
    register_fsdp_forward_method(actor_critic, "policy_alone")
    return model, wrapped_optimizer


@contextmanager
def without_step(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Backward passes in here add up gradients; the one after them is the last of its step."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        with accelerator.no_sync(model):
            yield
        return
    state = accelerator.gradient_state  # DeepSpeed steps in its backward pass, unless told so
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(True)


@contextmanager
def kept_gathered(accelerator: Accelerator, actor_critic: ActorCritic) -> Iterator[None]:
    """Layers that are called in here stay gathered for the next call, and are sharded after it."""
    below = list(actor_critic.modules())[1:]
    layers = [module for module in below if isinstance(module, FSDPModule)]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for layer in layers:
            reshard = accelerator.state.fsdp_plugin.reshard_after_forward
            layer.set_reshard_after_forward(reshard, recurse=False)
            layer.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes; every process must ask for it."""
    if is_partitioned(tensor):
        return whole_parameter(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of a parameter of that shape."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    # Every process has read the whole from disk, so nothing needs to be sent.
    return distribute_tensor(
        value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None
    )


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module by the names that they have without Accelerate's wrappers."""
    return fsdp2_canonicalize_names(dict(module.named_parameters()))


@torch.no_grad()
def whole_weights(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a module with whole tensors; those that share memory do so in the result.

    Args:
        module: sharded or not; every process must call this at the same time.
        keep: whether this process wants the result; others get an empty one.
    """
    gathered: dict[int, Tensor | None] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in gathered:
            value = whole(tensor).detach()
            gathered[id(tensor)] = value.cpu() if keep else None
        if (kept := gathered[id(tensor)]) is not None:
            found[name] = kept
    return found


def whole_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool
) -> dict[str, Tensor]:
    """The moments of an optimiser, named `parameter.moment`, with whole tensors.

    Args:
        module: whose parameters it moves; every process must call this at the same time.
        optimizer: without Accelerate's wrapper.
        keep: whether this process wants the result; others get an empty one.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in named_parameters(module).items():
        in_zero3 = is_partitioned(parameter)
        moments = (
            moments_of(parameter, optimizer) if in_zero3 else optimizer.state.get(parameter, {})
        )
        for moment, tensor in moments.items():
            value = whole(tensor)
            if keep:
                found[f"{name}.{moment}"] = value.cpu().contiguous()
    return found


@contextmanager
def on_device(device: torch.device | None, *models: Any | None) -> Iterator[None]:
    """Frozen models brought from the CPU for a while; None leaves them where they are."""
    present = [] if device is None else [model for model in models if isinstance(model, nn.Module)]
    for model in present:
        model.to(device)
    try:
        yield
    finally:
        for model in present:
            model.to("cpu")


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


def configure_deepspeed(accelerator: Accelerator, config: TrainPolicyConfig) -> None:
    """Tell DeepSpeed that this recipe makes its own batches, and transformers to load as ever.

    Otherwise transformers would load frozen models in parts, too, which nobody would gather.

    Raises:
        ConfigError: weights of the policy would be read outside its forward pass.
    """
    if config.lora.rank and config.segments.kind == "entropy":
        raise ConfigError(
            f"segments.kind is 'entropy' with lora.rank {config.lora.rank} under ZeRO-3; expected "
            "another kind, lora.rank 0, or examples/accelerate/fsdp2.yaml"
        )
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = settings["gradient_accumulation_steps"] = 1
    settings["train_batch_size"] = accelerator.num_processes
    settings["gradient_clipping"] = config.optimizer.max_grad_norm
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
    """What this process holds of a whole tensor: as many numbers on each, zeros after the last."""
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    flat = torch.nn.functional.pad(value.flatten(), (0, size * processes - value.numel()))
    return flat[size * rank : size * (rank + 1)]
