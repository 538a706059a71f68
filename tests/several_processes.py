"""Trainings of several processes on the CPU: `finished(jobs)` runs them in one launch.

Accelerate takes FSDP2 for devices other than the CPU alone, while torch shards there as well. So
each process here tells Accelerate's state what it would have found out itself on GPUs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from forked import run_in_processes
from safetensors.torch import load_file
from tiny_policy import tiny_config, write_models
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaForCausalLM

from tokencredit.cli import main
from tokencredit.recipes.iteration import answers
from tokencredit.recipes.policy import opened_run, sharding
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.refusals import require_what_sharding_allows
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.run.run_folder import read_jsonl

TOLD = ("FSDP_", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_",
        "ACCELERATE_CONFIG_DS_FIELDS")  # fmt: skip
CONFIGURATIONS = Path(__file__).parents[1] / "examples" / "accelerate"


def require_allowed_under(kind: DistributedType, config: TrainPolicyConfig) -> None:
    """Ask under this kind of distribution whether such a run can be."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = kind
    try:
        require_what_sharding_allows(config, accelerator)
    finally:
        accelerator.state.distributed_type = DistributedType.NO


def environment_of(configuration: str, **arguments: str) -> dict[str, str]:
    """What `accelerate launch --config_file` tells its processes about sharding."""
    given = [text for name, value in arguments.items() for text in (f"--{name}", value)]
    file = str(CONFIGURATIONS / configuration)
    parsed = launch_command_parser().parse_args(["--config_file", file, *given, "script.py"])
    checked, defaults, _ = _validate_launch_command(parsed)
    if checked.use_deepspeed:
        checked.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(checked)[1]
    else:
        environment = prepare_multi_gpu_env(checked)
    return {name: value for name, value in environment.items() if name.startswith(TOLD)}


# The likeliest token at every step and no order of minibatches: nothing is left to chance, so the
# number of processes must not matter. Their log-probs are those of all tokens, or there would be
# nothing to learn. A large epsilon keeps Adam from magnifying the noise of gradients near zero.
CERTAIN: dict[str, Any] = {
    "sampling.top_k": 1,
    "sampling.logprobs_of": "unmasked",
    "sampling.response_lengths": "uniform",
    "sampling.min_new_tokens": 5,
    "optimizer.adam_epsilon": 1e-3,
    "credit.method": "attention",
}
# The address that stands for a server of the process itself, of which the first one's is asked.
STAND_IN = "http://stand-in"
# Responses that end where they will, one on each process.
DRAWN = {"steps": 3, "batch_size": 2, "sampling.max_new_tokens": 40, "sampling.temperature": 5.0}


def write_tied_models(folder: Path, **changes: Any) -> None:
    """Models as `write_models` makes them, the policy with tied embeddings."""
    write_models(folder, **changes)
    tied = LlamaForCausalLM.from_pretrained(folder / "policy")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(folder / "policy")


def assert_same_training(one: Path, other: Path, step: int) -> None:
    """Weights, moments and metrics alike but for the order in which numbers were added up."""
    files = sorted((one / f"checkpoints/step-{step:06d}").rglob("*.safetensors"))
    assert files
    for file in files:
        expected, found = load_file(file), load_file(other / file.relative_to(one))
        assert expected.keys() == found.keys(), file.name
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    pairs = zip(read_jsonl(one / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl"), strict=True)
    for mine, theirs in pairs:
        for name in ("step", "score", "kl", "policy_loss", "value_loss", "gradient_norm"):
            if name in mine:  # without a critic there is no loss of values
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name
        assert mine.keys() == theirs.keys()


def finished(folder: Path, jobs: list[dict[str, Any]], processes: int = 2) -> None:
    """Run jobs one after another: `models`, `output`, `environment`, settings of `tiny_config`.

    Beside each output, `<output>.json` says which modules were sharded and which part of the
    trained weights the first process held.
    """
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_in_processes(run_all, folder / "jobs.json", processes=processes, timeout=600)


def draw_in_small_files(arguments: list[str]) -> None:
    """`iterate-preferences`, with a file for each batch of its answers."""
    answers._BATCHES_PER_FILE = 1
    assert main(["iterate-preferences", *arguments]) == 0


def shard_on_the_cpu() -> None:
    """Make Accelerate's state what it is under `accelerate launch` with FSDP2 on GPUs."""
    start = AcceleratorState.__init__

    def started(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = started


def use_deepspeed_on_the_cpu() -> None:
    """Let DeepSpeed take the process group of Accelerate, without compiling one of its own."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="gloo")


def tell_what_is_sharded(path: Path) -> None:
    """Write, as soon as the model is prepared, what FSDP2 made of it."""

    def told(accelerator: Accelerator, actor_critic: Any, optimizer: Any) -> Any:
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            settings = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
            settings["stage3_param_persistence_threshold"] = 0  # part small tensors as well
        total = sum(p.numel() for p in actor_critic.parameters())
        result = sharding.prepare(accelerator, actor_critic, optimizer)
        names = [n for n, part in actor_critic.named_modules() if isinstance(part, FSDPModule)]
        held = sum(part_of(p).numel() for p in actor_critic.parameters())
        if accelerator.is_main_process:
            path.write_text(json.dumps({"modules": names, "held": held / total}))
        return result

    opened_run.prepare = told


def part_of(parameter: Any) -> Any:
    """What this process holds of a parameter under FSDP2, ZeRO-3, or neither."""
    return getattr(parameter, "ds_tensor", getattr(parameter, "_local_tensor", parameter))


def run(job: dict[str, Any]) -> None:
    """One training, by a state of Accelerate that knows nothing of the last one."""
    models, output, environment = (job.pop(name) for name in ("models", "output", "environment"))
    for name in [name for name in os.environ if name.startswith(TOLD)]:
        del os.environ[name]
    os.environ.update(environment)
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        use_deepspeed_on_the_cpu()
        job["machine.device"] = None  # `cpu` would keep Accelerate from DeepSpeed
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    tell_what_is_sharded(Path(f"{output}.json"))
    if job.get("machine.vllm_server") == STAND_IN:
        from tiny_vllm import TinyVLLM, listening

        with listening(TinyVLLM(Path(models) / "policy")) as address:
            job["machine.vllm_server"] = address
            recipe.train_policy(tiny_config(Path(models), Path(output), **job))
        return
    recipe.train_policy(tiny_config(Path(models), Path(output), **job))


def run_all(file: Path) -> None:
    """What each of the processes does."""
    Accelerator.end_training = lambda _self: None  # it ends the process group, for all jobs
    shard_on_the_cpu()
    PartialState(cpu=True)
    for job in json.loads(file.read_text()):
        run(job)
