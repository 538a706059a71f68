"""ZeRO-3 on two processes gives what one process gives. DeepSpeed is not among our extras."""

import json

import pytest
from several_processes import (
    CERTAIN,
    DRAWN,
    STAND_IN,
    assert_same_training,
    environment_of,
    finished,
    write_tied_models,
)
from tiny_policy import tiny_config, write_models

from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

pytestmark = pytest.mark.timeout(900)  # several processes, perhaps on one core
LORA = {"lora.rank": 2, "credit.method": "generator-attention"}
APART = {"algorithm.critic": "separate", "machine.offload_frozen": True}
KINDS = {
    "plain": {},
    "accumulating": {"algorithm.micro_batch_size": 1},
    "served": {"machine.vllm_server": STAND_IN},
    "lora": LORA,
    "tied": APART,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every run of two processes, in one launch, and what one process makes of the same."""
    folder = tmp_path_factory.mktemp("zero3")
    write_models(folder / "models")
    write_tied_models(folder / "tied-models")
    train_policy(tiny_config(folder / "models", folder / "begun-by-one", **CERTAIN, steps=1))
    runs = {name: {**CERTAIN, **settings} for name, settings in KINDS.items()}
    runs["begun-by-one"] = CERTAIN
    runs["begun-by-two"] = {**CERTAIN, "steps": 1}
    runs["drawn"] = DRAWN
    runs["bf16"] = {"machine.mixed_precision": "bf16", "steps": 1}
    finished(
        folder,
        [
            {
                "models": str(folder / ("tied-models" if name == "tied" else "models")),
                "output": str(folder / name),
                "environment": environment_of("zero3.yaml"),
                **settings,
            }
            for name, settings in runs.items()
        ],
    )
    for name, settings in {"plain": {}, "lora": LORA, "tied": APART}.items():
        models = folder / ("tied-models" if name == "tied" else "models")
        train_policy(tiny_config(models, folder / f"{name}-alone", **{**CERTAIN, **settings}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_does(folder, kind):
    alone = folder / f"{kind if kind in ('lora', 'tied') else 'plain'}-alone"
    assert_same_training(alone, folder / kind, step=2)
    assert json.loads((folder / f"{kind}.json").read_text())["held"] == pytest.approx(0.5, abs=0.05)


def test_two_processes_go_on_where_one_was(folder):
    assert_same_training(folder / "plain-alone", folder / "begun-by-one", step=2)


def test_one_process_goes_on_where_two_were(folder):
    train_policy(tiny_config(folder / "models", folder / "begun-by-two", **CERTAIN))
    assert_same_training(folder / "plain-alone", folder / "begun-by-two", step=2)


def test_processes_whose_responses_differ_in_length_keep_step(folder):
    rows = read_jsonl(folder / "drawn" / "metrics.jsonl")
    assert len(rows) == 3
    assert any(row["length"] < 40 for row in rows)


def test_bfloat16_trains_close_to_its_reference(folder):
    assert abs(read_jsonl(folder / "bf16" / "metrics.jsonl")[0]["kl"]) < 0.1
