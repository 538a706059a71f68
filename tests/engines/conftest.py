"""verl's configuration under the examples, with tiny models; imports verl where it is asked for."""

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "verl"


@pytest.fixture(scope="session")
def verl_models(tmp_path_factory) -> Path:
    """A policy and a reward model on disk."""
    from tiny_policy import write_models

    return write_models(tmp_path_factory.mktemp("verl"))


@pytest.fixture(scope="session")
def verl_configs(verl_models) -> dict[str, Any]:
    """verl's defaults under the two examples, as its own command line composes them."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    places = {
        "POLICY": str(verl_models / "policy"),
        "REWARD_MODEL": str(verl_models / "reward"),
        "AGENT_LOOPS": str(EXAMPLES / "agent_loops.yaml"),
        "TRAIN_FILES": "train.parquet",
        "VAL_FILES": "val.parquet",
        "SHARED_OUTPUT": "out",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in places.items():
            patch.setenv(name, value)
        path = ["hydra.searchpath=[pkg://verl.trainer.config]"]
        with initialize_config_dir(str(EXAMPLES), version_base=None):
            configs = {
                name: compose(name, overrides=path) for name in ("one_node", "several_nodes")
            }
        for config in configs.values():
            for part in ("reward.reward_kwargs", "actor_rollout_ref.model", "trainer", "data"):
                OmegaConf.resolve(OmegaConf.select(config, part))
            OmegaConf.resolve(config.actor_rollout_ref.rollout.agent)
    return configs


@pytest.fixture
def verl_config(verl_configs) -> Any:
    """One node, the reward model in full precision."""
    config = verl_configs["one_node"].copy()
    config.reward.reward_kwargs.dtype = "float32"
    return config
