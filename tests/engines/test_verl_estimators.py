"""Our estimators of advantages as verl's trainers call them."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl is installed by make test-engines alone")

from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from tokencredit.engines.verl_estimators import (
    VERL_ESTIMATORS,
    register_estimators,
    verl_estimator,
)
from tokencredit.errors import ConfigError, ShapeError
from tokencredit.policy.estimators import reinforce_advantages
from tokencredit.policy.methods import ESTIMATOR_NAMES, named_advantages

GROUPS = torch.tensor([0, 1, 0, 1, 0, 2])
UIDS = np.array([f"uid-{9 - group}" for group in GROUPS.tolist()], dtype=object)
SHAPE = (6, 5)


@pytest.fixture
def data() -> DataProto:
    """Ragged responses to three prompts, in no order; one row is verl's padding."""
    lengths = torch.tensor([5, 3, 1, 4, 2, 1])
    mask = torch.arange(SHAPE[1]) < lengths[:, None]
    mask[0, 2] = False
    mask[5] = False
    rewards = torch.randn(SHAPE) * mask
    batch = {"token_level_rewards": rewards, "response_mask": mask.long()}
    return DataProto(
        batch=TensorDict(batch, batch_size=SHAPE[0]), non_tensor_batch={"uid": UIDS.copy()}
    )


def advantages_of(data: DataProto, name: str, **config: object) -> tuple[torch.Tensor, ...]:
    algorithm = OmegaConf.create({"gamma": 1.0, "norm_adv_by_std_in_grpo": True, **config})
    result = compute_advantage(
        data[:],
        adv_estimator=name,
        gamma=algorithm.gamma,
        norm_adv_by_std_in_grpo=algorithm.norm_adv_by_std_in_grpo,
        config=algorithm,
    )
    return result.batch["advantages"], result.batch["returns"]


def test_the_names_are_all_there():
    assert tuple(f"tokencredit-{name}" for name in ESTIMATOR_NAMES) == VERL_ESTIMATORS
    for name in VERL_ESTIMATORS:
        assert get_adv_estimator_fn(name).__name__ == name


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("name", ESTIMATOR_NAMES)
def test_through_verls_own_dispatch(name, gamma, data):
    if gamma != 1 and name in ("rloo", "grpo"):
        with pytest.raises(ConfigError, match=r"gamma is 0\.9"):
            advantages_of(data, f"tokencredit-{name}", gamma=gamma)
        return
    rewards, mask = data.batch["token_level_rewards"], data.batch["response_mask"].bool()
    advantages, returns = advantages_of(data, f"tokencredit-{name}", gamma=gamma)
    expected = named_advantages(name, rewards, mask, GROUPS, gamma=gamma)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, reinforce_advantages(rewards, mask, gamma=gamma))
    assert advantages.dtype == torch.float32
    assert not advantages[~mask].any()
    again = compute_advantage_for_multi_trajectories(
        data[:],
        batch_keys=[f"{uid}_{i}_0" for i, uid in enumerate(UIDS)],
        adv_estimator=f"tokencredit-{name}",
        config=AlgoConfig(gamma=gamma, adv_estimator=f"tokencredit-{name}"),
    )
    torch.testing.assert_close(again.batch["advantages"], expected)


def test_garbage_where_nothing_counts(data):
    mask = data.batch["response_mask"].bool()
    clean, _ = advantages_of(data, "tokencredit-leave-one-out-to-go")
    data.batch["token_level_rewards"] = data.batch["token_level_rewards"].masked_fill(
        ~mask, torch.nan
    )
    dirty, _ = advantages_of(data, "tokencredit-leave-one-out-to-go")
    torch.testing.assert_close(dirty, clean)


@pytest.mark.parametrize(("verls", "ours"), [("grpo", "grpo"), ("rloo", "rloo")])
def test_without_a_deviation_ours_of_that_name_is_verls(verls, ours, data):
    data = data[:5]
    expected, _ = advantages_of(data, verls, norm_adv_by_std_in_grpo=False)
    advantages, _ = advantages_of(data, f"tokencredit-{ours}", norm_adv_by_std_in_grpo=False)
    torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-5)


def test_with_a_deviation_too(data):
    expected, _ = advantages_of(data[:5], "grpo")
    advantages, _ = advantages_of(data[:5], "tokencredit-grpo")
    torch.testing.assert_close(advantages, expected, rtol=1e-3, atol=1e-3)


def test_verls_grpo_loses_what_ours_keep(data):
    """The same sums, paid on the last token instead."""
    moved = data[:]
    moved.batch = data.batch.clone()
    rewards, mask = data.batch["token_level_rewards"], data.batch["response_mask"]
    last = (mask * torch.arange(1, SHAPE[1] + 1)).argmax(-1)
    sums = torch.zeros(SHAPE).scatter(1, last[:, None], rewards.sum(-1, keepdim=True))
    moved.batch["token_level_rewards"] = sums * mask
    for name in ("grpo", "rloo"):
        torch.testing.assert_close(advantages_of(moved, name), advantages_of(data, name))
    for name in ("leave-one-out-to-go", "group-mean-to-go", "index-baseline-to-go"):
        ours, _ = advantages_of(data, f"tokencredit-{name}")
        terminal, _ = advantages_of(moved, f"tokencredit-{name}")
        assert not torch.allclose(ours, terminal)


def test_without_groups(data):
    data.non_tensor_batch.pop("uid")
    rewards, mask = data.batch["token_level_rewards"], data.batch["response_mask"].bool()
    advantages, _ = advantages_of(data, "tokencredit-reinforce")
    torch.testing.assert_close(advantages, reinforce_advantages(rewards, mask))
    with pytest.raises(ShapeError, match="6 responses and no uid"):
        advantages_of(data, "tokencredit-group-mean-to-go")
    with pytest.raises(ShapeError, match="6 responses and 2 uid"):
        verl_estimator("rloo")(rewards, mask, index=["a", "b"])


def test_without_a_configuration(data):
    rewards, mask = data.batch["token_level_rewards"], data.batch["response_mask"]
    advantages, _ = verl_estimator("grpo")(rewards, mask, UIDS)
    torch.testing.assert_close(advantages, named_advantages("grpo", rewards, mask.bool(), GROUPS))


def test_registered_once(monkeypatch):
    before = dict(ADV_ESTIMATOR_REGISTRY)
    assert register_estimators() == VERL_ESTIMATORS
    assert before == ADV_ESTIMATOR_REGISTRY
    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "tokencredit-rloo", lambda **_: None)
    with pytest.raises(ConfigError, match="another estimator 'tokencredit-rloo'"):
        register_estimators()
    with pytest.raises(ConfigError, match="estimator is 'remax'"):
        verl_estimator("remax")
