"""Several processes, weights sharded or not, give what one process gives, and go on from it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from several_processes import (
    CERTAIN,
    CONFIGURATIONS,
    DRAWN,
    STAND_IN,
    assert_same_training,
    environment_of,
    finished,
    write_tied_models,
)
from tiny_policy import tiny_config, write_models

from tokencredit.errors import ConfigError, RunFolderError
from tokencredit.recipes.policy import sharding
from tokencredit.recipes.policy.sharding import configure_deepspeed
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.checksums import seal
from tokencredit.recipes.run.run_folder import read_jsonl

LORA = {"lora.rank": 2, "credit.method": "generator-attention", "segments.kind": "entropy"}
# Advantages whose mean and deviation are those of all processes, and such as need whole groups.
WHITENED = {"algorithm.name": "reinforce++"}
GROUPS = {"algorithm.name": "leave-one-out-to-go", "algorithm.samples_per_prompt": 2}
ALONE = {
    "plain": {},
    "lora": LORA,
    "tied": {"algorithm.critic": "separate"},
    "whitened": WHITENED,
    "groups": GROUPS,
}
pytestmark = pytest.mark.timeout(900)  # several processes, perhaps on one core
DDP, FSDP2 = environment_of("ddp.yaml"), environment_of("fsdp2.yaml")
RECOMPUTING = environment_of("fsdp2.yaml", fsdp_activation_checkpointing="true")
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"environment": DDP},
    "fsdp2": {"environment": FSDP2},
    "layer-by-layer": {
        "environment": FSDP2,
        "machine.gather_for_generation": False,
        "algorithm.micro_batch_size": 1,
    },
    "recomputing": {"environment": RECOMPUTING},
    "served": {"environment": FSDP2, "machine.vllm_server": STAND_IN},
    "lora": {"environment": FSDP2, **LORA},
    "whitened": {"environment": FSDP2, **WHITENED},
    "groups": {"environment": DDP, **GROUPS},
    "tied": {"environment": FSDP2, "algorithm.critic": "separate", "machine.offload_frozen": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every run of two processes, in one launch, and what one process makes of the same."""
    folder = tmp_path_factory.mktemp("sharding")
    write_models(folder / "models")
    write_tied_models(folder / "tied-models")
    runs = {name: {**CERTAIN, **settings} for name, settings in KINDS.items()}
    runs["begun-by-two"] = {**CERTAIN, "steps": 1}
    runs["begun-by-one"] = CERTAIN
    runs["drawn-ddp"] = {"environment": DDP, **DRAWN}
    runs["drawn-fsdp2"] = DRAWN
    runs["drawn-layer-by-layer"] = {"machine.gather_for_generation": False, **DRAWN}
    runs["bf16"] = {"machine.mixed_precision": "bf16", "steps": 1}
    train_policy(tiny_config(folder / "models", folder / "begun-by-one", **CERTAIN, steps=1))
    finished(
        folder,
        [
            {
                "models": str(models_of(folder, name)),
                "output": str(folder / name),
                "environment": FSDP2,
                **settings,
            }
            for name, settings in runs.items()
        ],
    )
    for name, settings in ALONE.items():
        output = folder / f"{name}-alone"
        train_policy(tiny_config(models_of(folder, name), output, **{**CERTAIN, **settings}))
    return folder


def models_of(folder: Path, name: str) -> Path:
    return folder / ("tied-models" if name == "tied" else "models")


def alone(folder: Path, name: str) -> Path:
    return folder / (f"{name}-alone" if name in ALONE else "plain-alone")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_does(folder, kind):
    assert_same_training(alone(folder, kind), folder / kind, step=2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sharded_is_the_policy_and_its_layers(folder, kind):
    told = json.loads((folder / f"{kind}.json").read_text())
    if KINDS[kind]["environment"] is DDP:
        assert told == {"modules": [], "held": 1.0}
        return
    layers = [name for name in told["modules"] if name.endswith(("layers.0", "layers.1"))]
    assert len(layers) == (4 if kind == "tied" else 2)
    assert "" in told["modules"]  # the root, which holds the rest
    assert told["held"] == pytest.approx(0.5, abs=0.05)


def test_one_process_goes_on_where_two_were(folder):
    train_policy(tiny_config(folder / "models", folder / "begun-by-two", **CERTAIN))
    assert_same_training(folder / "plain-alone", folder / "begun-by-two", step=2)


def test_two_processes_go_on_where_one_was(folder):
    assert [row["step"] for row in read_jsonl(folder / "begun-by-one" / "metrics.jsonl")] == [0, 1]
    assert_same_training(folder / "plain-alone", folder / "begun-by-one", step=2)


def test_tied_embeddings_are_written_once(folder):
    names = load_file(folder / "tied" / "policy" / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize("kind", ["drawn-ddp", "drawn-fsdp2", "drawn-layer-by-layer"])
def test_processes_whose_responses_differ_in_length_keep_step(folder, kind):
    rows = read_jsonl(folder / kind / "metrics.jsonl")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert any(row["length"] < 40 for row in rows)  # of two responses, one on each process
    first = read_jsonl(folder / "drawn-ddp" / "metrics.jsonl")
    assert [row["length"] for row in rows] == [row["length"] for row in first]


def test_sharded_bfloat16_trains_close_to_its_reference(folder):
    row = read_jsonl(folder / "bf16" / "metrics.jsonl")[0]
    assert abs(row["kl"]) < 0.1


def test_moments_of_other_parameters_are_refused(folder, tmp_path):
    config = tiny_config(folder / "models", tmp_path, steps=1)
    train_policy(config)
    moments = tmp_path / "checkpoints" / "step-000001" / "optimizer.safetensors"
    save_file({"0.exp_avg": torch.zeros(2)}, moments)
    seal(moments.parent)  # as another version would have written it
    with pytest.raises(RunFolderError, match="moments of '0'; expected a parameter"):
        train_policy(replace(config, steps=2))


def test_nothing_is_pickled(folder):
    files = {path.suffix for path in (folder / "fsdp2").rglob("*") if path.is_file()}
    assert not files & {".bin", ".pt", ".pth", ".pkl", ".distcp"}


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [("ddp.yaml", "MULTI_GPU"), ("fsdp2.yaml", "FSDP"), ("zero3.yaml", "DEEPSPEED")],
)
def test_configurations_are_those_of_accelerate(configuration, kind):
    loaded = load_config_from_file(str(CONFIGURATIONS / configuration))
    assert loaded.distributed_type == DistributedType[kind]
    assert loaded.mixed_precision == "no"  # a setting of the recipe, which would overrule it


def test_every_configuration_is_tested():
    names = {path.name for path in CONFIGURATIONS.iterdir()}
    assert names == {"ddp.yaml", "fsdp2.yaml", "zero3.yaml"}


def launched(kind: DistributedType, **plugin: Any) -> Any:
    accelerator = Accelerator.__new__(Accelerator)
    settings = SimpleNamespace(**plugin)
    accelerator.state = SimpleNamespace(
        distributed_type=kind, fsdp_plugin=settings, deepspeed_plugin=settings
    )
    return accelerator


def launched_with_deepspeed(stage: int = 3, weights: str = "none") -> Any:
    return launched(
        DistributedType.DEEPSPEED,
        zero_stage=stage,
        offload_optimizer_device="none",
        offload_param_device=weights,
    )


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        (launched(DistributedType.MEGATRON_LM), "launched with MEGATRON_LM; expected a config"),
        (launched_with_deepspeed(stage=2), "zero_stage 2, .* expected stage 3 and no offloading"),
        (launched_with_deepspeed(weights="cpu"), "offload_param_device cpu; expected stage 3"),
        (launched(DistributedType.FSDP, fsdp_version=1), "fsdp_version 1; expected 2"),
        (
            launched(DistributedType.FSDP, fsdp_version=2, cpu_ram_efficient_loading=True),
            "in the first process alone",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(accelerator, message):
    with pytest.raises(ConfigError, match=message):
        sharding.require_known_distribution(accelerator)


def test_zero3_reads_no_head_outside_a_pass(tmp_path):
    config = tiny_config(tmp_path, tmp_path, lora__rank=2, segments__kind="entropy")
    with pytest.raises(
        ConfigError, match=r"segments\.kind is 'entropy' with lora\.rank 2 under ZeRO-3"
    ):
        configure_deepspeed(launched_with_deepspeed(), config)


def test_frozen_models_come_only_while_they_are_called():
    class Model(torch.nn.Module):
        def to(self, device):
            told.append((self, device))
            return self

    told: list[Any] = []
    first, second, device = Model(), Model(), torch.device("cuda")
    with sharding.on_device(device, first, None, second):
        assert told == [(first, device), (second, device)]
    assert told[2:] == [(first, "cpu"), (second, "cpu")]
    with sharding.on_device(None, first):
        pass
    assert len(told) == 4


def test_offloading_changes_no_number(tmp_path):
    models = write_models(tmp_path / "models")
    runs = {}
    for offload in (False, True):
        output = tmp_path / str(offload)
        held_out = str(models / "held-out")
        train_policy(
            tiny_config(
                models, output, machine__offload_frozen=offload, held_out_reward_model=held_out
            )
        )
        runs[offload] = load_file(output / "policy" / "model.safetensors")
    assert all(torch.equal(value, runs[True][name]) for name, value in runs[False].items())
