from .aggregation import (
    blended_scores,
    combined_scores,
    pooled_by_segment,
    scores_at_segment_ends,
    segment_average_scores,
    segment_end_scores,
    spread_over_segments,
)
from .alignment import project_token_scores
from .batch import PreferenceBatch, ResponseBatch, TokenScorer
from .credit.discriminator import discriminator_credit
from .credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from .credit.implicit_values import (
    implicit_advantages,
    implicit_q_values,
    implicit_values,
)
from .credit.likelihood import likelihood_credit
from .credit.location import (
    LocationNormaliser,
    fitted_location_normaliser,
    location_normalised,
)
from .credit.log_ratio import (
    contrastive_prompt_credit,
    log_ratio_credit,
    shaped_log_ratio_credit,
    top_share_mask,
)
from .credit.perturbation import exact_shapley_credit, leave_one_out_credit, shapley_credit
from .credit.prefix_difference import prefix_difference_credit
from .credit.prefix_potentials import (
    length_centred_prefix_scores,
    prefix_length_means,
    segment_held_prefix_scores,
    smoothed_prefix_scores,
)
from .credit.process import clipped_step_scores, delta_step_scores, step_score_credit
from .credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
    uniform_credit,
)
from .credit.segment import segment_credit, utterance_credit
from .credit.spans import fine_grained_credit, severity_credit, span_end_scores
from .credit.terminal import terminal_credit
from .credit.windows import window_credit
from .decoding.implicit_search_rules import (
    ExtendedBeams,
    extended_beams,
    layer_lengths,
    weighted_implicit_rewards,
)
from .decoding.rules import candidate_tokens, chosen_tokens, guidance_kl, guided_logits
from .decoding.scores import ScoreSpread, standardised_scores, updated_spread
from .decoding.search_rules import (
    acceptance_probabilities,
    best_candidates,
    ends_segment,
    segment_thresholds,
    surviving_candidates,
    survivor_counts,
)
from .logprobs import (
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
    top_allowed,
)
from .policy.advantages import gae_advantages, rewards_to_go
from .policy.dense_estimators import (
    group_mean_to_go_advantages,
    index_baseline_to_go_advantages,
    index_centred_advantages,
    leave_one_out_to_go_advantages,
)
from .policy.estimators import (
    grpo_advantages,
    reinforce_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
    rloo_advantages,
)
from .policy.losses import clipped_policy_losses, clipped_tokens, clipped_value_losses
from .policy.macro_actions import macro_gae_advantages
from .preference.edits import edit_labels
from .preference.spans import LabelledSpan, token_span_labels
from .preference.steps import StepLabels, step_segment_ids
from .reward_model.losses import (
    bradley_terry_loss,
    classification_loss,
    prefix_bradley_terry_loss,
    prefix_classification_loss,
    prefix_regression_loss,
    regression_loss,
    segment_bradley_terry_loss,
)
from .reward_model.token_losses import step_classification_loss, token_classification_loss
from .reward_model.value_targets import (
    bootstrapped_targets,
    q_classification_loss,
    q_value_loss,
)
from .reward_model.vocabulary_losses import (
    autoregressive_reward_loss,
    best_values,
    expected_value_loss,
    expected_values,
    final_value_loss,
    maximum_constraint_loss,
    token_values,
)
from .segments import (
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
    segment_ends,
    segment_lengths,
)
from .sentences import text_segments
from .shaping import (
    RunningMoments,
    adapted_kl_coef,
    kl_estimates,
    kl_penalised_rewards,
    normalised_scores,
    potential_shaping,
)

__all__ = [
    "ExtendedBeams",
    "LabelledSpan",
    "LocationNormaliser",
    "PreferenceBatch",
    "ResponseBatch",
    "RunningMoments",
    "ScoreSpread",
    "StepLabels",
    "TokenScorer",
    "acceptance_probabilities",
    "adapted_kl_coef",
    "attention_credit",
    "autoregressive_reward_loss",
    "best_candidates",
    "best_values",
    "blended_scores",
    "bootstrapped_targets",
    "bradley_terry_loss",
    "candidate_tokens",
    "chosen_tokens",
    "classification_loss",
    "clipped_policy_losses",
    "clipped_step_scores",
    "clipped_tokens",
    "clipped_value_losses",
    "combined_scores",
    "contrastive_prompt_credit",
    "delta_step_scores",
    "discriminator_credit",
    "edit_labels",
    "ends_segment",
    "entropy_segments",
    "exact_shapley_credit",
    "expected_value_loss",
    "expected_values",
    "extended_beams",
    "final_value_loss",
    "fine_grained_credit",
    "fitted_location_normaliser",
    "gae_advantages",
    "gradient_times_input_credit",
    "group_mean_to_go_advantages",
    "grpo_advantages",
    "guidance_kl",
    "guided_logits",
    "implicit_advantages",
    "implicit_q_values",
    "implicit_values",
    "index_baseline_to_go_advantages",
    "index_centred_advantages",
    "integrated_gradients_credit",
    "kl_estimates",
    "kl_penalised_rewards",
    "last_attention_received",
    "layer_lengths",
    "leave_one_out_credit",
    "leave_one_out_to_go_advantages",
    "length_centred_prefix_scores",
    "likelihood_credit",
    "location_normalised",
    "log_ratio_credit",
    "macro_gae_advantages",
    "maximum_constraint_loss",
    "mean_attention_received",
    "ngram_segments",
    "normalised_scores",
    "perplexity_segments",
    "pooled_by_segment",
    "potential_shaping",
    "predicting_positions",
    "prefix_bradley_terry_loss",
    "prefix_classification_loss",
    "prefix_difference_credit",
    "prefix_length_means",
    "prefix_regression_loss",
    "project_token_scores",
    "q_classification_loss",
    "q_value_loss",
    "random_ngram_segments",
    "regression_loss",
    "reinforce_advantages",
    "reinforce_plus_plus_advantages",
    "remax_advantages",
    "rewards_to_go",
    "rloo_advantages",
    "sampled_logits",
    "scores_at_segment_ends",
    "segment_average_scores",
    "segment_bradley_terry_loss",
    "segment_credit",
    "segment_end_scores",
    "segment_ends",
    "segment_held_prefix_scores",
    "segment_lengths",
    "segment_thresholds",
    "severity_credit",
    "shaped_log_ratio_credit",
    "shapley_credit",
    "smoothed_prefix_scores",
    "span_end_scores",
    "spread_over_segments",
    "standardised_scores",
    "step_classification_loss",
    "step_score_credit",
    "step_segment_ids",
    "surviving_candidates",
    "survivor_counts",
    "terminal_credit",
    "text_segments",
    "token_classification_loss",
    "token_entropies",
    "token_logprobs",
    "token_span_labels",
    "token_values",
    "top_allowed",
    "top_share_mask",
    "uniform_credit",
    "updated_spread",
    "utterance_credit",
    "weighted_implicit_rewards",
    "window_credit",
]
