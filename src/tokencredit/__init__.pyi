from .aggregation.combining import (
    log_sigmoid_sum_scores,
    mean_less_deviation_scores,
    mean_less_variance_scores,
    nominal_and_worst_scores,
    weighted_sum_scores,
    worst_case_scores,
)
from .aggregation.euler import (
    mean_less_deviation_slopes,
    nominal_and_worst_slopes,
    worst_case_slopes,
)
from .aggregation.neighbours import fused_scores, near_texts
from .aggregation.references import (
    log_win_probabilities,
    reference_quantiles,
    win_margins,
    win_probabilities,
)
from .aggregation.transforms import RunningMoments, normalised_scores, priced_scores
from .batch import PreferenceBatch, ResponseBatch, TokenScorer
from .credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from .credit.implicit import (
    contrastive_prompt_credit,
    implicit_advantages,
    implicit_q_values,
    implicit_values,
    log_ratio_credit,
    shaped_log_ratio_credit,
    top_share_mask,
)
from .credit.location import (
    LocationNormaliser,
    fitted_location_normaliser,
    location_normalised,
)
from .credit.perturbation import (
    exact_shapley_credit,
    leave_one_out_credit,
    shapley_credit,
    window_credit,
)
from .credit.prefixes import (
    length_centred_prefix_scores,
    prefix_difference_credit,
    prefix_length_means,
    segment_held_prefix_scores,
    smoothed_prefix_scores,
)
from .credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
    quoted_credit,
    terminal_credit,
    uniform_credit,
)
from .credit.segments import (
    clipped_step_scores,
    delta_step_scores,
    fine_grained_credit,
    segment_credit,
    span_end_scores,
    step_score_credit,
    utterance_credit,
)
from .credit.token_judges import discriminator_credit, likelihood_credit, severity_credit
from .decoding.candidates.scores import ScoreSpread, standardised_scores, updated_spread
from .decoding.rules import candidate_tokens, chosen_tokens, guidance_kl, guided_logits
from .decoding.search.implicit_rules import (
    ExtendedBeams,
    extended_beams,
    layer_lengths,
    weighted_implicit_rewards,
)
from .decoding.search.rules import (
    acceptance_probabilities,
    best_candidates,
    ends_segment,
    segment_thresholds,
    surviving_candidates,
    survivor_counts,
)
from .judge.comparisons import (
    both_orders,
    group_win_advantages,
    group_wins,
    order_consistency,
)
from .judge.evidence import (
    Criterion,
    QuotedCriterion,
    evidence_verdict,
    quote_spans,
    quoted_criteria,
)
from .judge.kept_replies import kept_replies
from .judge.questions import Question, fenced_text, harmless_text, judge_question, shown_order
from .judge.scores import JudgedScores, judged_scores
from .judge.verdicts import (
    CriterionVerdict,
    Reply,
    Verdict,
    expected_digit_verdict,
    json_verdicts,
    pooled_answers,
    rubric_verdict,
    tagged_choice_verdict,
    tagged_number_verdict,
    two_way_verdict,
)
from .logprobs import (
    predicting_positions,
    sampled_logits,
    token_entropies,
    token_logprobs,
    top_allowed,
)
from .models.bounds import difference_covariance, elliptical_norms, whitening
from .models.merging import adaptive_base_shares, lines_shares, merged_weights
from .policy.advantages import gae_advantages, macro_gae_advantages, rewards_to_go
from .policy.bounds import (
    hoeffding_upper_bound,
    pessimism,
    safety_test,
)
from .policy.constraints import (
    mixed_advantages,
    pessimistic_cost_factors,
    updated_multiplier,
)
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
from .policy.judged import (
    batch_centred_advantages,
    best_judged_weights,
    calibrated_pair_losses,
    judged_factors,
    judged_pair_signs,
)
from .policy.losses.clipped import clipped_policy_losses, clipped_tokens, clipped_value_losses
from .policy.losses.distillation import (
    distilled_alignment_losses,
    expected_teacher_advantages,
    kept_logprobs,
    teacher_divergences,
)
from .policy.losses.divergences import (
    chi_square_terms,
    chunked_entropies,
    chunked_forward_kls,
    chunked_log_normalisers,
    dense_chi_square_penalties,
    root_slope,
)
from .policy.losses.likelihood import likelihood_losses
from .policy.losses.listwise import (
    discriminative_losses,
    discriminative_weights,
    misordering_losses,
    ranking_losses,
    soft_list_losses,
)
from .policy.losses.offline import (
    leftover_lunch_losses,
    prompt_values,
)
from .policy.losses.path_consistency import path_consistency_losses
from .policy.losses.preference import (
    calibrated_likelihoods,
    pair_losses,
    side_scores,
)
from .policy.losses.token_weights import (
    bounded_scores,
    credit_weights,
    decay_weights,
    edit_weights,
    magnitude_weights,
    selected_weights,
    token_regularisers,
)
from .policy.losses.utterances import (
    utterance_advantages,
    utterance_q_losses,
    utterance_v_losses,
)
from .policy.mixtures import geometric_mixture_logits
from .policy.objectives import (
    least_nonnegative_advantages,
    normalised_advantages,
    normalised_then_summed_advantages,
    summed_then_normalised_advantages,
    worst_objectives,
)
from .policy.preferred import preferred_pairs, ranking_consistencies, win_rates
from .policy.selection import kept_responses, resampled_responses, score_reliability
from .preference.design import consensus_pairs, contrast_instructions, d_optimal_pairs
from .preference.error_spans import error_severity_ids, labelled_error_spans
from .preference.labels import (
    LabelledSpan,
    StepLabels,
    edit_labels,
    step_segment_ids,
    token_span_labels,
)
from .preference.rankings import (
    aspect_mean,
    aspect_ratings,
    pairs_from_ratings,
    ranked_preferences,
)
from .preference.votes import Votes, votes_on_pairs
from .reward_model.features import FeatureModel, fitted_feature_model
from .reward_model.losses.length_weighted import (
    length_weighted_classification_loss,
    length_weighted_regression_loss,
    length_weights,
)
from .reward_model.losses.mixtures import (
    kl_to_standard_normal,
    memberships,
    mixture_losses,
    responsibilities,
    weight_negentropy,
)
from .reward_model.losses.pairs import (
    bradley_terry_loss,
    bradley_terry_losses,
    prefix_bradley_terry_loss,
    prefix_bradley_terry_losses,
    segment_bradley_terry_loss,
    segment_leads,
)
from .reward_model.losses.rankings import plackett_luce_loss, prefix_plackett_luce_loss
from .reward_model.losses.regularisers import (
    contrastive_loss,
    hidden_state_regulariser,
    regularised_loss,
)
from .reward_model.losses.several_ratings import (
    multi_objective_regression_loss,
    prefix_multi_objective_regression_loss,
)
from .reward_model.losses.targets import (
    classification_loss,
    prefix_classification_loss,
    prefix_regression_loss,
    regression_loss,
)
from .reward_model.losses.tokens import step_classification_loss, token_classification_loss
from .reward_model.losses.values import bootstrapped_targets, q_classification_loss, q_value_loss
from .reward_model.losses.vocabulary import (
    autoregressive_reward_loss,
    best_values,
    expected_value_loss,
    expected_values,
    final_value_loss,
    maximum_constraint_loss,
    token_values,
)
from .reward_model.similarity import best_match_similarity, best_match_token_scores
from .shaping import (
    adapted_kl_coef,
    blended_scores,
    kl_estimates,
    kl_penalised_rewards,
    potential_shaping,
)
from .text.alignment import project_token_scores
from .text.pooling import (
    pooled_by_segment,
    scores_at_segment_ends,
    segment_average_scores,
    segment_end_scores,
    spread_over_segments,
)
from .text.segments import (
    entropy_segments,
    ngram_segments,
    perplexity_segments,
    random_ngram_segments,
    segment_ends,
    segment_lengths,
)
from .text.sentences import text_segments

__all__ = [
    "Criterion",
    "CriterionVerdict",
    "ExtendedBeams",
    "FeatureModel",
    "JudgedScores",
    "LabelledSpan",
    "LocationNormaliser",
    "PreferenceBatch",
    "Question",
    "QuotedCriterion",
    "Reply",
    "ResponseBatch",
    "RunningMoments",
    "ScoreSpread",
    "StepLabels",
    "TokenScorer",
    "Verdict",
    "Votes",
    "acceptance_probabilities",
    "adapted_kl_coef",
    "adaptive_base_shares",
    "aspect_mean",
    "aspect_ratings",
    "attention_credit",
    "autoregressive_reward_loss",
    "batch_centred_advantages",
    "best_candidates",
    "best_judged_weights",
    "best_match_similarity",
    "best_match_token_scores",
    "best_values",
    "blended_scores",
    "bootstrapped_targets",
    "both_orders",
    "bounded_scores",
    "bradley_terry_loss",
    "bradley_terry_losses",
    "calibrated_likelihoods",
    "calibrated_pair_losses",
    "candidate_tokens",
    "chi_square_terms",
    "chosen_tokens",
    "chunked_entropies",
    "chunked_forward_kls",
    "chunked_log_normalisers",
    "classification_loss",
    "clipped_policy_losses",
    "clipped_step_scores",
    "clipped_tokens",
    "clipped_value_losses",
    "consensus_pairs",
    "contrast_instructions",
    "contrastive_loss",
    "contrastive_prompt_credit",
    "credit_weights",
    "d_optimal_pairs",
    "decay_weights",
    "delta_step_scores",
    "dense_chi_square_penalties",
    "difference_covariance",
    "discriminative_losses",
    "discriminative_weights",
    "discriminator_credit",
    "distilled_alignment_losses",
    "edit_labels",
    "edit_weights",
    "elliptical_norms",
    "ends_segment",
    "entropy_segments",
    "error_severity_ids",
    "evidence_verdict",
    "exact_shapley_credit",
    "expected_digit_verdict",
    "expected_teacher_advantages",
    "expected_value_loss",
    "expected_values",
    "extended_beams",
    "fenced_text",
    "final_value_loss",
    "fine_grained_credit",
    "fitted_feature_model",
    "fitted_location_normaliser",
    "fused_scores",
    "gae_advantages",
    "geometric_mixture_logits",
    "gradient_times_input_credit",
    "group_mean_to_go_advantages",
    "group_win_advantages",
    "group_wins",
    "grpo_advantages",
    "guidance_kl",
    "guided_logits",
    "harmless_text",
    "hidden_state_regulariser",
    "hoeffding_upper_bound",
    "implicit_advantages",
    "implicit_q_values",
    "implicit_values",
    "index_baseline_to_go_advantages",
    "index_centred_advantages",
    "integrated_gradients_credit",
    "json_verdicts",
    "judge_question",
    "judged_factors",
    "judged_pair_signs",
    "judged_scores",
    "kept_logprobs",
    "kept_replies",
    "kept_responses",
    "kl_estimates",
    "kl_penalised_rewards",
    "kl_to_standard_normal",
    "labelled_error_spans",
    "last_attention_received",
    "layer_lengths",
    "least_nonnegative_advantages",
    "leave_one_out_credit",
    "leave_one_out_to_go_advantages",
    "leftover_lunch_losses",
    "length_centred_prefix_scores",
    "length_weighted_classification_loss",
    "length_weighted_regression_loss",
    "length_weights",
    "likelihood_credit",
    "likelihood_losses",
    "lines_shares",
    "location_normalised",
    "log_ratio_credit",
    "log_sigmoid_sum_scores",
    "log_win_probabilities",
    "macro_gae_advantages",
    "magnitude_weights",
    "maximum_constraint_loss",
    "mean_attention_received",
    "mean_less_deviation_scores",
    "mean_less_deviation_slopes",
    "mean_less_variance_scores",
    "memberships",
    "merged_weights",
    "misordering_losses",
    "mixed_advantages",
    "mixture_losses",
    "multi_objective_regression_loss",
    "near_texts",
    "ngram_segments",
    "nominal_and_worst_scores",
    "nominal_and_worst_slopes",
    "normalised_advantages",
    "normalised_scores",
    "normalised_then_summed_advantages",
    "order_consistency",
    "pair_losses",
    "pairs_from_ratings",
    "path_consistency_losses",
    "perplexity_segments",
    "pessimism",
    "pessimistic_cost_factors",
    "plackett_luce_loss",
    "pooled_answers",
    "pooled_by_segment",
    "potential_shaping",
    "predicting_positions",
    "preferred_pairs",
    "prefix_bradley_terry_loss",
    "prefix_bradley_terry_losses",
    "prefix_classification_loss",
    "prefix_difference_credit",
    "prefix_length_means",
    "prefix_multi_objective_regression_loss",
    "prefix_plackett_luce_loss",
    "prefix_regression_loss",
    "priced_scores",
    "project_token_scores",
    "prompt_values",
    "q_classification_loss",
    "q_value_loss",
    "quote_spans",
    "quoted_credit",
    "quoted_criteria",
    "random_ngram_segments",
    "ranked_preferences",
    "ranking_consistencies",
    "ranking_losses",
    "reference_quantiles",
    "regression_loss",
    "regularised_loss",
    "reinforce_advantages",
    "reinforce_plus_plus_advantages",
    "remax_advantages",
    "resampled_responses",
    "responsibilities",
    "rewards_to_go",
    "rloo_advantages",
    "root_slope",
    "rubric_verdict",
    "safety_test",
    "sampled_logits",
    "score_reliability",
    "scores_at_segment_ends",
    "segment_average_scores",
    "segment_bradley_terry_loss",
    "segment_credit",
    "segment_end_scores",
    "segment_ends",
    "segment_held_prefix_scores",
    "segment_leads",
    "segment_lengths",
    "segment_thresholds",
    "selected_weights",
    "severity_credit",
    "shaped_log_ratio_credit",
    "shapley_credit",
    "shown_order",
    "side_scores",
    "smoothed_prefix_scores",
    "soft_list_losses",
    "span_end_scores",
    "spread_over_segments",
    "standardised_scores",
    "step_classification_loss",
    "step_score_credit",
    "step_segment_ids",
    "summed_then_normalised_advantages",
    "surviving_candidates",
    "survivor_counts",
    "tagged_choice_verdict",
    "tagged_number_verdict",
    "teacher_divergences",
    "terminal_credit",
    "text_segments",
    "token_classification_loss",
    "token_entropies",
    "token_logprobs",
    "token_regularisers",
    "token_span_labels",
    "token_values",
    "top_allowed",
    "top_share_mask",
    "two_way_verdict",
    "uniform_credit",
    "updated_multiplier",
    "updated_spread",
    "utterance_advantages",
    "utterance_credit",
    "utterance_q_losses",
    "utterance_v_losses",
    "votes_on_pairs",
    "weight_negentropy",
    "weighted_implicit_rewards",
    "weighted_sum_scores",
    "whitening",
    "win_margins",
    "win_probabilities",
    "win_rates",
    "window_credit",
    "worst_case_scores",
    "worst_case_slopes",
    "worst_objectives",
]
