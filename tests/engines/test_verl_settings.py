"""What verl's configuration may and may not say, and that the examples are such."""

import asyncio

import pytest

pytest.importorskip("verl", reason="verl is installed by make test-engines alone")

from omegaconf import OmegaConf
from verl.experimental.reward_loop import RewardLoopWorker
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.utils.config import validate_config
from verl_rollouts import rollout

from tokencredit.engines.verl_agent_loops import (
    TokenCreditSingleTurnAgentLoop,
    TokenCreditToolAgentLoop,
)
from tokencredit.engines.verl_responses import ScoreWithTokens
from tokencredit.engines.verl_rewards import TokenCreditRewardManager, no_outcome
from tokencredit.engines.verl_settings import reward_settings
from tokencredit.errors import ConfigError


@pytest.mark.parametrize("name", ["one_node", "several_nodes"])
def test_the_examples_are_configurations_of_verl(name, verl_configs):
    verl_config = verl_configs[name]
    validate_config(verl_config, use_reference_policy=True, use_critic=False)
    assert resolve_reward_manager_cls(verl_config) is TokenCreditRewardManager
    assert verl_config.trainer.use_v1
    assert (
        verl_config.trainer.nnodes
        == verl_config.reward.num_workers
        == (1 if name == "one_node" else 4)
    )
    loops = OmegaConf.load(verl_config.actor_rollout_ref.rollout.agent.agent_loop_config_path)
    expected = {
        "tokencredit_single_turn": TokenCreditSingleTurnAgentLoop,
        "tokencredit_tool": TokenCreditToolAgentLoop,
    }
    assert verl_config.actor_rollout_ref.rollout.agent.default_agent_loop in expected
    for loop in loops:
        module, _, attribute = loop._target_.rpartition(".")
        assert module == expected[loop.name].__module__
        assert attribute == expected[loop.name].__name__


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward_model": "m", "kredit": "uniform"}, "has 'kredit'.*did you mean 'credit'"),
        ({"credit": "uniform"}, "expected one reward model, or a list of rewards"),
        ({"reward_model": "m", "credit": "all"}, "credit method is 'all'"),
        (
            {"reward_model": "m", "reading": {"tenplate": "x"}},
            "'tenplate'.*did you mean 'template'",
        ),
        ({"reward_model": "m", "turn_ends": "<eot>"}, "turn_ends is '<eot>'; expected a list"),
        ({"reward_model": "m", "micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"reward_model": "m", "micro_batch_size": "2"}, "'2', of type str; expected int"),
        ({"reward_model": 3}, "reward_model is 3, of type int; expected str"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        reward_settings(given)


def test_a_whole_number_is_a_number():
    settings = reward_settings({"reward_model": "m", "outcome_weight": 2})
    assert type(settings.outcome_weight) is float
    assert settings.credit.method == "prefix-difference"


def test_credit_and_rewards_are_mappings_of_their_settings():
    given = {
        "rewards": [{"model": "a", "weight": 0.5}, {"model": "b", "credit": {"method": "uniform"}}],
        "combine": {"method": "sum"},
        "credit": {"method": "attention", "beta": 0.3, "probe": {"samples": 4}},
        "segments": {"kind": "ngram", "length": 3},
    }
    settings = reward_settings(OmegaConf.create(given))
    assert settings.credit.beta == 0.3
    assert settings.credit.probe.samples == 4
    assert settings.segments.length == 3
    assert [one.weight for one in settings.rewards] == [0.5, 1.0]
    assert settings.rewards[1].credit.method == "uniform"
    with pytest.raises(ConfigError, match=r"has 'bta'.*did you mean 'beta'"):
        reward_settings({"reward_model": "m", "credit": {"bta": 1}})
    with pytest.raises(ConfigError, match=r"'credit_beta' is now 'credit\.beta'"):
        reward_settings({"reward_model": "m", "credit_beta": 1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actor_rollout_ref.rollout.agent.default_agent_loop": "single_turn_agent"},
            "default_agent_loop is 'single_turn_agent'",
        ),
        ({"trainer.use_v1": False}, "use_v1 is false"),
    ],
)
def test_configurations_that_lose_the_credit(changes, message, verl_config):
    for name, value in changes.items():
        OmegaConf.update(verl_config, name, value)
    with pytest.raises(ConfigError, match=message):
        RewardLoopWorker(verl_config)


def test_a_reward_model_server_needs_a_custom_function(verl_config):
    verl_config.reward.reward_model.enable = True
    verl_config.reward.reward_model.model_path = verl_config.reward.reward_kwargs.reward_model
    verl_config.actor_rollout_ref.rollout.agent.default_agent_loop = "single_turn_agent"
    with pytest.raises(ConfigError, match="never asks this manager"):
        RewardLoopWorker(verl_config)
    verl_config.reward.custom_reward_function.path = "pkg://tokencredit.engines.verl_rewards"
    verl_config.reward.custom_reward_function.name = "no_outcome"
    worker = RewardLoopWorker(verl_config)
    (result,) = asyncio.run(worker.compute_score_batch(rollout(worker.input_tokenizer)[:1]))
    assert isinstance(result["reward_score"], ScoreWithTokens)
    assert no_outcome(anything=1) == 0.0
