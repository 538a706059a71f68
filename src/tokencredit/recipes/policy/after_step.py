"""What a step leaves behind in the state of a run, and what it warns of."""

import warnings
from typing import Any

from tokencredit.errors import NumericError, TokenCreditWarning
from tokencredit.recipes.policy.experience import Experience
from tokencredit.recipes.policy.objectives import adapted_multipliers
from tokencredit.recipes.policy.run_state import PolicyRun, RunState
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.shaping import adapted_kl_coef

_ROUNDING = 1e-3  # nats per response


def tell_unscored(
    run: PolicyRun, experience: Experience, state: RunState, row: dict[str, Any]
) -> None:
    """Show the first response that could not be scored.

    Raises:
        Exception: why, where none at all could be scored, and the texts are hardly to blame: in
            the first step of a run, or when scores are no numbers.
    """
    if experience.fault is None:
        return
    index, error = experience.fault
    if row["unscored_share"] == 1.0 and (state.step == 0 or isinstance(error, NumericError)):
        raise error
    if state.warned_of_unscored:
        return
    state.warned_of_unscored = True
    batch = experience.batch
    ids = batch.response_ids[index][batch.response_mask[index]]
    text = run.models.tokenizer.decode(ids)
    warnings.warn(
        f"a response of step {state.step} cannot be scored and is left out of the update "
        f"({type(error).__name__}: {error}): {text[:500]!r}. More of them are counted in "
        "`unscored_share` of metrics.jsonl",
        TokenCreditWarning,
        stacklevel=2,
    )


def adapt(run: PolicyRun, experience: Experience, state: RunState, row: dict[str, Any]) -> None:
    """Adapt the KL coefficient and multipliers, and count the scores."""
    config = run.config
    state.multipliers, told = adapted_multipliers(
        config, experience.source_scores, experience.unscored, state.multipliers, run.accelerator
    )
    row |= told
    if config.kl.target is not None:
        state.kl_coef = adapted_kl_coef(
            state.kl_coef,
            row["kl"],
            kl_target=config.kl.target,
            responses=config.batch_size,
            horizon=config.kl.horizon,
        )
    for source in config.sources:
        if (
            source.score.normalization in ("running", "scale")
            and source.label in experience.moments
        ):
            state.moments[source.label] = experience.moments[source.label]
    warn_of_farmed_kl(config, state, row)


def warn_of_farmed_kl(config: TrainPolicyConfig, state: RunState, row: dict[str, Any]) -> None:
    """Tell once of an estimate of the KL that is negative beyond its noise."""
    if config.kl.estimator != "k1" or config.batch_size < 8 or state.warned_of_negative_kl:
        return  # the noise of fewer responses cannot be told from themselves
    noise = 3 * row["kl_std"] / config.batch_size**0.5
    # Where the policy is the reference all estimates are rounding, and so is their spread.
    if row["kl"] < -max(noise, _ROUNDING):
        state.warned_of_negative_kl = True
        warnings.warn(
            f"the KL estimate is {row['kl']:.2f} nats at step {row['step']}, negative beyond its "
            f"noise of {noise:.2f}; a KL is never negative. The log-probs are not those of the "
            "distribution that was sampled from, and the policy can farm that: set "
            "sampling.logprobs_of='sampled'",
            TokenCreditWarning,
            stacklevel=2,
        )
