from .alignment import project_token_scores
from .batch import PreferenceBatch, ResponseBatch, TokenScorer
from .credit.prefix_difference import prefix_difference_credit
from .credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
    uniform_credit,
)
from .credit.terminal import terminal_credit
from .logprobs import (
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
    top_allowed,
)
from .policy.advantages import gae_advantages, rewards_to_go
from .policy.losses import clipped_policy_losses, clipped_tokens, clipped_value_losses
from .reward_model.losses import (
    bradley_terry_loss,
    classification_loss,
    prefix_bradley_terry_loss,
    prefix_classification_loss,
)
from .shaping import (
    RunningMoments,
    adapted_kl_coef,
    kl_estimates,
    kl_penalised_rewards,
    normalised_scores,
    potential_shaping,
)

__all__ = [
    "PreferenceBatch",
    "ResponseBatch",
    "RunningMoments",
    "TokenScorer",
    "adapted_kl_coef",
    "attention_credit",
    "bradley_terry_loss",
    "classification_loss",
    "clipped_policy_losses",
    "clipped_tokens",
    "clipped_value_losses",
    "gae_advantages",
    "kl_estimates",
    "kl_penalised_rewards",
    "last_attention_received",
    "mean_attention_received",
    "normalised_scores",
    "potential_shaping",
    "predicting_positions",
    "prefix_bradley_terry_loss",
    "prefix_classification_loss",
    "prefix_difference_credit",
    "project_token_scores",
    "rewards_to_go",
    "sampled_logits",
    "terminal_credit",
    "token_entropies",
    "token_logprobs",
    "top_allowed",
    "uniform_credit",
]
