"""What a training of a policy cannot do on several processes, said before a model is read."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from tokencredit.errors import ConfigError
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.recipes.policy.opponents import opposed_sources
from tokencredit.recipes.policy.references import compared_sources, normalised_by_reference
from tokencredit.recipes.policy.settings import TrainPolicyConfig


def require_shared_evenly(config: TrainPolicyConfig, processes: int) -> None:
    """Refuse batches that processes cannot share evenly.

    Raises:
        ConfigError: one of them is no multiple of the number of processes, or would cut a group;
            or there are dialogues.
    """
    if processes > 1 and config.dialogue.environment is not None:
        raise ConfigError(
            f"dialogue.environment is {config.dialogue.environment!r} on {processes} processes; "
            "expected one process: dialogues differ in length, and each would need another number "
            "of passes"
        )
    sizes = (config.batch_size, config.algorithm.minibatch_size or config.batch_size)
    if any(size % processes for size in sizes):
        raise ConfigError(
            f"batch_size is {sizes[0]} and algorithm.minibatch_size {sizes[1]} on {processes} "
            "processes; expected multiples of the number of processes"
        )
    others = {
        "pretraining.batch_size": (config.pretraining.data, config.pretraining.batch_size),
        "soft_q.data_batch_size": (config.soft_q.data, config.soft_q.data_batch_size),
    }
    for name, (data, size) in others.items():
        if data is not None and size % processes:
            raise ConfigError(
                f"{name} is {size} on {processes} processes; expected a multiple of the number of "
                "processes"
            )
    samples = config.algorithm.samples_per_prompt
    if sizes[0] // processes % samples:
        raise ConfigError(
            f"batch_size is {sizes[0]} on {processes} processes with algorithm.samples_per_prompt "
            f"{samples}; expected whole groups on each process: make batch_size a multiple of "
            f"{processes * samples}"
        )


def require_what_sharding_allows(config: TrainPolicyConfig, accelerator: Accelerator) -> None:
    """Refuse what needs weights that are whole, where they are not.

    Raises:
        ConfigError: the critic alone is to learn under DeepSpeed, the reference is the policy
            without its adapter, or there is an opponent or a target network, and weights are
            sharded.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED and config.optimizer.critic_warmup:
        raise ConfigError(
            f"optimizer.critic_warmup is {config.optimizer.critic_warmup} under DeepSpeed, "
            "which steps before gradients can be held back; expected 0, or FSDP2"
        )
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    if config.lora.rank and (compared_sources(config) or normalised_by_reference(config)):
        raise ConfigError(
            f"the scores of {config.sources[0].label!r} are compared with responses of the "
            "reference, which with lora.rank is the policy without its adapter, and its weights "
            "are sharded; expected whole weights (no FSDP2, no ZeRO-3), or lora.rank 0"
        )
    opposed = opposed_sources(config)
    if opposed:
        raise ConfigError(
            f"the scores of {opposed[0]!r} are compared with those of an opponent, each of whose "
            "tokens is drawn from two models at once, and weights are sharded; expected whole "
            "weights (no FSDP2, no ZeRO-3)"
        )
    if ALGORITHMS[config.algorithm.name].loss == "path-consistency":
        raise ConfigError(
            f"algorithm.name is {config.algorithm.name!r}, whose target network is a copy of whole "
            "weights, and weights are sharded; expected whole weights (no FSDP2, no ZeRO-3)"
        )
