"""What scores that are compared with those of other responses need, and what they are worth."""

import warnings
from typing import TYPE_CHECKING

from tokencredit.aggregation.transforms import SCORE_TRANSFORMS
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.recipes.policy.setting_groups import KLSettings

if TYPE_CHECKING:
    from tokencredit.recipes.policy.settings import TrainPolicyConfig


def require_references_that_fit(config: "TrainPolicyConfig") -> None:
    """Refuse too few responses of the reference; warn of a price of KL that is that of raw scores.

    Raises:
        ConfigError: a transform of a score needs more of them.
    """
    for one in config.sources:
        row = SCORE_TRANSFORMS[one.score.transform]
        needed = 0 if row.against_mixture else row.references
        if config.references.per_prompt < needed:
            raise ConfigError(
                f"references.per_prompt is {config.references.per_prompt} and the transform "
                f"{one.score.transform!r} of the score of {one.label!r} fits a distribution; "
                f"expected at least {needed}"
            )
    usual, kl = KLSettings().coef, config.kl
    bounded = [one for one in config.sources if one.score.transform in ("par", "nash")]
    if bounded and kl.target is None and max(kl.coef, kl.loss_coef) >= usual:
        warnings.warn(
            f"kl.coef is {kl.coef} and kl.loss_coef {kl.loss_coef}, and the score of "
            f"{bounded[0].label!r} becomes a probability (transform "
            f"{bounded[0].score.transform!r}), which no response raises by "
            f"more than 1: {usual} and more are prices for raw scores, at which little is worth "
            "its KL. A smaller coefficient, or kl.target, leaves room",
            TokenCreditWarning,
            stacklevel=4,
        )
