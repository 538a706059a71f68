"""Losses, selections and opponents on two processes give what one process gives."""

import json
from typing import Any

import pytest
from accelerate.utils import DistributedType
from several_processes import (
    CERTAIN,
    assert_same_training,
    environment_of,
    finished,
    require_allowed_under,
)
from tiny_policy import tiny_config, write_models

from tokencredit.errors import ConfigError
from tokencredit.recipes.policy.train_policy import train_policy

pytestmark = pytest.mark.timeout(900)  # several processes, perhaps on one core
DDP, FSDP2 = environment_of("ddp.yaml"), environment_of("fsdp2.yaml")
PAIRED = {"algorithm.samples_per_prompt": 2}
KINDS: dict[str, dict[str, Any]] = {
    "chi-square": {"kl.coef": 0.0, "kl.loss_coef": 0.1, "kl.penalty": "sqrt-chi-square"},
    "divergences": {"kl.forward_coef": 0.1, "kl.entropy_coef": 0.01},
    "likelihood": {"algorithm.name": "likelihood", "selection.keep": "best", **PAIRED},
    "par": {"score.transform": "par", "references.per_prompt": 1, "kl.coef": 0.001},
    "pretraining": {"pretraining.batch_size": 2, "optimizer.critic_warmup": 1},
    "selection": {"selection.keep": "best-worst", **PAIRED},
}
WHOLE: dict[str, dict[str, Any]] = {
    "nash": {"score.transform": "nash", "algorithm.name": "reinforce", "kl.coef": 0.001},
    "soft-q": {"algorithm.name": "soft-q", "soft_q.data_batch_size": 2},
}
"""What needs whole weights, and so plain data parallelism."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every run of two processes, in one launch, and what one process makes of the same."""
    folder = tmp_path_factory.mktemp("methods")
    models = write_models(folder / "models")
    files = {"pretraining.data": "text", "soft_q.data": "completion"}
    words = ("good", "bad", "slow")
    for name, column in files.items():
        texts = (f" is {word} . the plot is {word} ." for word in words)
        rows = [{"prompt": "the film", column: text} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    jobs = []
    for kind, settings in {**KINDS, **WHOLE}.items():
        used = [name for name in files if any(one.startswith(name[:8]) for one in settings)]
        own = {**CERTAIN, **settings, **{name: str(folder / f"{name}.jsonl") for name in used}}
        train_policy(tiny_config(models, folder / f"{kind}-alone", **own))
        environment = DDP if kind in WHOLE else FSDP2
        output = {"models": str(models), "output": str(folder / kind), "environment": environment}
        jobs.append({**output, **own})
    finished(folder, jobs)
    return folder


@pytest.mark.parametrize("kind", [*KINDS, *WHOLE])
def test_two_processes_train_as_one_does(folder, kind):
    assert_same_training(folder / f"{kind}-alone", folder / kind, step=2)
    held = json.loads((folder / f"{kind}.json").read_text())["held"]
    assert held == pytest.approx(1.0 if kind in WHOLE else 0.5, abs=0.05)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
@pytest.mark.parametrize(
    "settings",
    [
        {"score.transform": "par", "kl.coef": 0.001},
        {"score.transform": "lsc"},
        {"score.normalization": "reference"},
    ],
    ids=["par", "lsc", "normalised"],
)
def test_a_reference_under_a_sharded_adapter_is_refused(tmp_path, kind, settings):
    with pytest.raises(ConfigError, match=r"the policy without its adapter.*or lora\.rank 0"):
        require_allowed_under(kind, tiny_config(tmp_path, tmp_path, lora__rank=2, **settings))
    require_allowed_under(
        DistributedType.NO, tiny_config(tmp_path, tmp_path, lora__rank=2, **settings)
    )
    require_allowed_under(kind, tiny_config(tmp_path, tmp_path, **settings))


def test_a_critic_that_learns_alone_is_refused_under_deepspeed(tmp_path):
    warmed = {"optimizer.critic_warmup": 2}
    with pytest.raises(ConfigError, match=r"critic_warmup is 2 under DeepSpeed.*or FSDP2"):
        require_allowed_under(DistributedType.DEEPSPEED, tiny_config(tmp_path, tmp_path, **warmed))
    require_allowed_under(DistributedType.FSDP, tiny_config(tmp_path, tmp_path, **warmed))
