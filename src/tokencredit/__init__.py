"""One reward per token instead of one per response.

The names below are pure functions on tensors; importing them imports no Hugging Face library.
What talks to models lies in `tokencredit.reward_model.hf_backbone`, `tokencredit.policy` and the
other modules named `hf_*`; whole jobs lie in `tokencredit.recipes` and behind the command line.
"""

from tokencredit.alignment import project_token_scores
from tokencredit.batch import PreferenceBatch, ResponseBatch, TokenScorer
from tokencredit.credit.prefix_difference import prefix_difference_credit
from tokencredit.credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
    uniform_credit,
)
from tokencredit.credit.terminal import terminal_credit
from tokencredit.logprobs import (
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
    top_allowed,
)
from tokencredit.policy.advantages import gae_advantages, rewards_to_go
from tokencredit.policy.losses import clipped_policy_losses, clipped_tokens, clipped_value_losses
from tokencredit.reward_model.losses import (
    bradley_terry_loss,
    classification_loss,
    prefix_bradley_terry_loss,
    prefix_classification_loss,
)
from tokencredit.shaping import (
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
