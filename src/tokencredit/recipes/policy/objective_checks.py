"""Combinations of objectives, constraints and judges with other settings that are refused."""

from typing import TYPE_CHECKING

from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.errors import ConfigError
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.policy.objectives import OBJECTIVE_MIXES
from tokencredit.recipes.policy.objective_groups import NONE

if TYPE_CHECKING:
    from tokencredit.recipes.policy.settings import TrainPolicyConfig


def require_objectives_that_fit(config: "TrainPolicyConfig") -> None:
    """Raise ConfigError for settings that contradict each other.

    Args:
        config: whose own groups are right each by itself.
    """
    mix, method = config.objectives.mix, config.constraints.method
    chosen = {
        "objectives.mix": mix != NONE,
        "constraints.method": method != NONE,
        "preference.names": bool(config.preference.names),
    }
    several = [name for name, used in chosen.items() if used]
    if len(several) > 1:
        raise ConfigError(
            f"{' and '.join(several)} both say what single rewards are worth; expected one of them"
        )
    if several and config.combine.method != "sum":
        raise ConfigError(
            f"combine.method is {config.combine.method!r} with {several[0]}, which keeps rewards "
            "apart; expected 'sum'"
        )
    _require_no_greedy_baseline(config, several)
    if config.has_streams:
        _require_streams_that_can_be(config)
    if mix != NONE:
        _require_a_mix_that_can_be(config)
    if method != NONE:
        _require_constrained_rewards(config)
    if config.preference.names:
        _require_preferences_that_can_be(config)
    if config.judges.gate:
        _require_scores_to_judge(config)
    if config.algorithm.name in ("crraft", "codpo"):
        _require_whole_scores(config)


def _require_no_greedy_baseline(config: "TrainPolicyConfig", several: list[str]) -> None:
    name = config.algorithm.name
    changing = [*several, *(["judges"] if config.judges.gate else [])]
    if changing and ALGORITHMS[name].needs == "greedy":
        raise ConfigError(
            f"algorithm.name is {name!r} with {changing[0]}: the greedy response would be paid in "
            "another way than those that were drawn; expected another algorithm, 'rloo' for example"
        )


def _require_streams_that_can_be(config: "TrainPolicyConfig") -> None:
    name, truncated = config.algorithm.name, config.sampling.truncated
    row = ALGORITHMS[name]
    what = "objectives.mix" if config.objectives.mix != NONE else "constraints.method"
    if row.needs == "critic":
        raise ConfigError(
            f"algorithm.name is {name!r} with {what}: every reward has advantages of its own, and "
            "one value head says the value of one reward; expected an algorithm without a critic, "
            "'rloo' or 'leave-one-out-to-go' for example"
        )
    if row.loss != "clipped":
        raise ConfigError(
            f"algorithm.name is {name!r} with {what}, and it has no advantages to mix; expected "
            "one of rewards, 'rloo' or 'leave-one-out-to-go' for example"
        )
    if truncated not in ("ended", "mask"):
        raise ConfigError(
            f"sampling.truncated is {truncated!r} with {what}: a penalty belongs to no single "
            "reward; expected 'ended' or 'mask'"
        )


def _require_a_mix_that_can_be(config: "TrainPolicyConfig") -> None:
    mix, algorithm = config.objectives.mix, config.algorithm
    row = OBJECTIVE_MIXES[mix]
    if row.groups and algorithm.samples_per_prompt < 2:
        raise ConfigError(
            f"objectives.mix is {mix!r}, which normalises within the responses to a prompt, and "
            f"algorithm.samples_per_prompt {algorithm.samples_per_prompt}; expected at least 2"
        )
    scales = algorithm.name == "reinforce++" or (
        algorithm.name == "grpo" and algorithm.scale != "none"
    )
    if row.kl == "apart" and scales:
        raise ConfigError(
            f"objectives.mix is {mix!r}, which normalises advantages, and algorithm.name "
            f"{algorithm.name!r} with algorithm.scale {algorithm.scale!r} does so before; expected "
            "algorithm.scale 'none', or an algorithm that does not, 'rloo' for example"
        )
    if mix == "pama" and algorithm.whiten_advantages:
        raise ConfigError(
            "algorithm.whiten_advantages is true with objectives.mix 'pama', whose advantages are "
            "0 or more; expected false: whitening would push tokens down"
        )


def _require_constrained_rewards(config: "TrainPolicyConfig") -> None:
    settings = config.constraints
    names, sources = list(settings.thresholds or {}), {one.label: one for one in config.sources}
    for name in names:
        if name not in sources:
            raise ConfigError(
                f"constraints.thresholds names {name!r} and the rewards are "
                f"{', '.join(map(repr, sources))}; expected one of these names: a threshold needs "
                "its reward or cost among `rewards`"
            )
    free = [name for name in sources if name not in names]
    if settings.is_linear and not free:
        raise ConfigError(
            f"constraints.method is {settings.method!r} and every reward has a threshold, so that "
            "all of them are costs; expected at least one reward without, which is maximised"
        )
    if settings.is_linear:
        for name in names:
            if sources[name].weight != 1:
                raise ConfigError(
                    f"the cost {name!r} has the weight {sources[name].weight}; expected 1: its "
                    "multiplier is its weight"
                )
    for name in names if settings.method == "pessimistic" else ():
        if sources[name].score != ScoreSettings():
            raise ConfigError(
                f"the score of the cost {name!r} is transformed with constraints.method "
                "'pessimistic', whose bound is one of costs as they are; expected no `score` "
                "settings there"
            )
    if settings.has_streams and free:
        raise ConfigError(
            f"constraints.method is {settings.method!r} and the reward {free[0]!r} has no "
            "threshold; expected one for each reward"
        )
    if settings.has_streams and (config.kl.target is not None or config.kl.loss_coef):
        raise ConfigError(
            f"kl.target is {config.kl.target} and kl.loss_coef {config.kl.loss_coef} with "
            f"constraints.method {settings.method!r}, where multipliers weigh KL; expected neither"
        )
    if settings.method == "pessimistic" and config.batch_size < 2:
        raise ConfigError(
            "batch_size is 1 with constraints.method 'pessimistic'; expected at least 2 responses, "
            "whose costs have a deviation"
        )


def _require_preferences_that_can_be(config: "TrainPolicyConfig") -> None:
    names, labels = list(config.preference.names), [one.label for one in config.sources]
    if sorted(names) != sorted(labels) or len(names) < 2:
        raise ConfigError(
            f"preference.names is {names} and the rewards are {labels}; expected the names of all "
            "rewards, at least two, the main one first"
        )
    if config.data.tokens is not None:
        raise ConfigError(
            f"data.tokens is {config.data.tokens} with preference.names; expected whole prompts, "
            "before which the weights are told"
        )
    for one in config.sources:
        if one.score.reference_responses:
            raise ConfigError(
                f"the score of {one.label!r} has the transform {one.score.transform!r} with "
                "preference.names: responses of the reference would be drawn for every vector; "
                "expected no transform, or score.normalization 'reference'"
            )


def _require_scores_to_judge(config: "TrainPolicyConfig") -> None:
    method = config.constraints.method
    if method != NONE or config.preference.names:
        raise ConfigError(
            f"judges decide what a response may earn, and constraints.method is {method!r} and "
            f"preference.names {list(config.preference.names)}, under which a reward may be "
            "negative, so that failing pays; expected judges without these"
        )
    if ALGORITHMS[config.algorithm.name].loss == "pairs":
        return
    for one in config.sources:
        if one.score.transform != "par":
            raise ConfigError(
                f"judges pay 0 for a response that does not pass, and the score of {one.label!r} "
                f"has the transform {one.score.transform!r}, so that it may be negative and "
                "failing pays; expected 'par', with references.per_prompt 1 for CGPO's own"
            )


def _require_whole_scores(config: "TrainPolicyConfig") -> None:
    algorithm, truncated = config.algorithm, config.sampling.truncated
    if truncated not in ("ended", "mask"):
        raise ConfigError(
            f"sampling.truncated is {truncated!r} with algorithm.name {algorithm.name!r}, which "
            "goes by scores of whole responses; expected 'ended' or 'mask'"
        )
    if ALGORITHMS[algorithm.name].loss != "pairs":
        return
    if config.selection.keep != "all":
        raise ConfigError(
            f"selection.keep is {config.selection.keep!r} with algorithm.name {algorithm.name!r}, "
            "which chooses a pair itself; expected 'all'"
        )
    sizes = {
        "algorithm.minibatch_size": algorithm.minibatch_size,
        "algorithm.micro_batch_size": algorithm.micro_batch_size,
    }
    for name, size in sizes.items():
        if size is not None and size % 2:
            raise ConfigError(
                f"{name} is {size} with algorithm.name {algorithm.name!r}, which learns from "
                "pairs; expected an even number"
            )
