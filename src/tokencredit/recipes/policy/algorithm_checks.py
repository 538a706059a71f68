"""What does not go together with an algorithm that learns values, said before a model is read."""

from typing import TYPE_CHECKING

from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.errors import ConfigError
from tokencredit.policy.methods import ALGORITHMS

if TYPE_CHECKING:
    from tokencredit.recipes.policy.settings import TrainPolicyConfig


def require_dialogues_that_fit(config: "TrainPolicyConfig") -> None:
    """Refuse what has no meaning where an environment rewards whole utterances.

    Raises:
        ConfigError: there is a reward model besides, or what compares or selects responses.
    """
    environment, name = config.dialogue.environment, config.algorithm.name
    if environment is None:
        return
    row = ALGORITHMS[name]
    others = {
        "reward_model": (config.reward_model, None),
        "rewards": (len(config.rewards), 0),
        "score": (config.score, ScoreSettings()),
        "selection.keep": (config.selection.keep, "all"),
        "data.tokens": (config.data.tokens, None),
        "machine.vllm_server": (config.machine.vllm_server, None),
        "held_out_reward_model": (config.held_out_reward_model, None),
        "algorithm.samples_per_prompt": (config.algorithm.samples_per_prompt, 1),
    }
    for setting, (value, default) in others.items():
        if value != default:
            raise ConfigError(
                f"{setting} is {value!r} with dialogue.environment {environment!r}, which answers "
                f"and rewards every utterance; expected {default!r}"
            )
    if row.loss != "clipped" or row.needs not in ("nothing", "critic"):
        raise ConfigError(
            f"algorithm.name is {name!r} with dialogue.environment {environment!r}; expected one "
            "that pays each utterance by itself: 'reinforce', 'reinforce++' or 'ppo'"
        )


def require_soft_q_that_fits(config: "TrainPolicyConfig") -> None:
    """Refuse soft Q-learning without a price of its KL, and what only makes sense with it.

    Raises:
        ConfigError: one of these.
    """
    kl, name = config.kl, config.algorithm.name
    if ALGORITHMS[name].loss != "path-consistency":
        if config.soft_q.data is not None:
            raise ConfigError(
                f"soft_q.data is {config.soft_q.data!r} with algorithm.name {name!r}; expected "
                "algorithm.name 'soft-q', which alone learns from responses of others"
            )
        return
    if kl.coef <= 0 or kl.penalty != "kl":
        raise ConfigError(
            f"kl.coef is {kl.coef} and kl.penalty {kl.penalty!r} with algorithm.name {name!r}, "
            "whose best policy is one at a price of a nat; expected kl.coef above 0 and "
            "kl.penalty 'kl'"
        )
    if config.soft_q.data is not None and config.selection.keep != "all":
        raise ConfigError(
            f"selection.keep is {config.selection.keep!r} with soft_q.data "
            f"{config.soft_q.data!r}; expected 'all': responses of others have no group"
        )
