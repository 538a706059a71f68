"""What every credit function gives, whatever it needs. A new function is added to METHODS.

`test_methods` asks the same of the methods that have a name.
"""

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from credit_cases import (
    BY_LOCATION,
    LENGTH_MEANS,
    NAN,
    Case,
    kept_score,
    random_case,
    score,
    score_above_no_tokens,
    score_above_prompt,
    squared_sum,
    squared_sum_above_baseline,
    with_other_ending,
)
from torch import Tensor

import tokencredit.credit
from tokencredit.credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from tokencredit.credit.implicit import (
    contrastive_prompt_credit,
    log_ratio_credit,
    shaped_log_ratio_credit,
)
from tokencredit.credit.location import location_normalised
from tokencredit.credit.perturbation import (
    exact_shapley_credit,
    leave_one_out_credit,
    shapley_credit,
    window_credit,
)
from tokencredit.credit.prefixes import (
    length_centred_prefix_scores,
    prefix_difference_credit,
    segment_held_prefix_scores,
    smoothed_prefix_scores,
)
from tokencredit.credit.redistribution import (
    attention_credit,
    last_attention_received,
    mean_attention_received,
    quoted_credit,
    terminal_credit,
    uniform_credit,
)
from tokencredit.credit.segments import (
    fine_grained_credit,
    segment_credit,
    step_score_credit,
    utterance_credit,
)
from tokencredit.credit.token_judges import discriminator_credit, likelihood_credit, severity_credit
from tokencredit.text.pooling import segment_end_scores


@dataclass(frozen=True)
class Method:
    credit: Callable[[Case], Tensor]
    docstring_of: Callable[..., Tensor]
    total: Callable[[Case], Tensor] | None
    """What each row sums to; None where the method conserves nothing."""
    causal: bool
    bound: Callable[[Case], Tensor] | None = None
    """What no token score of a row exceeds in magnitude; None where there is no such bound."""


def size_of_score(case: Case) -> Tensor:
    return score(case).abs()


SPAN_WEIGHTS = torch.tensor([1.0, -0.5])
SEVERITY_SCORES = [0.1, -5.0]


def by_attention(case: Case, weights: Tensor, credit_beta: float = 1.0) -> Tensor:
    return attention_credit(
        case.sequence_scores, weights, case.response_mask, credit_beta=credit_beta
    )


def at_ends_of_segments(case: Case) -> Tensor:
    """The first logit of the last token of each segment; NaN for segments that are not there."""
    scores = case.token_logits.new_full((len(case.segment_ids), 3), NAN)
    for row, column in (case.segment_ids >= 0).nonzero().tolist():
        scores[row, case.segment_ids[row, column]] = case.token_logits[row, column, 0]
    return scores


METHODS = {
    "terminal": Method(
        lambda case: terminal_credit(case.sequence_scores, case.response_mask),
        terminal_credit,
        score,
        causal=True,
        bound=size_of_score,
    ),
    "uniform": Method(
        lambda case: uniform_credit(case.sequence_scores, case.response_mask),
        uniform_credit,
        score,
        causal=False,
        bound=size_of_score,
    ),
    "attention": Method(
        lambda case: by_attention(case, case.weights),
        attention_credit,
        score,
        causal=False,
        bound=size_of_score,
    ),
    "attention, part": Method(
        lambda case: by_attention(case, case.weights, credit_beta=0.8),
        attention_credit,
        score,
        causal=False,
        bound=size_of_score,
    ),
    "quoted evidence": Method(
        lambda case: quoted_credit(case.sequence_scores, case.policy_logprobs, case.response_mask),
        quoted_credit,
        score,
        causal=False,
    ),
    "ABC-D": Method(
        lambda case: by_attention(
            case, mean_attention_received(case.attention, case.response_mask)
        ),
        attention_credit,
        score,
        causal=False,
        bound=size_of_score,
    ),
    "ABC-D2": Method(
        lambda case: by_attention(
            case, last_attention_received(case.attention, case.response_mask)
        ),
        attention_credit,
        score,
        causal=False,
        bound=size_of_score,
    ),
    "prefix difference": Method(
        lambda case: prefix_difference_credit(case.prefix_scores, case.response_mask),
        prefix_difference_credit,
        score_above_prompt,
        causal=True,
    ),
    "discriminator": Method(
        lambda case: discriminator_credit(case.token_logits, case.response_mask),
        discriminator_credit,
        None,
        causal=True,
        bound=lambda case: torch.ones(len(case.response_mask)),
    ),
    "fine-grained": Method(
        lambda case: fine_grained_credit(
            case.token_logits.movedim(-1, 0), SPAN_WEIGHTS, case.response_mask
        ),
        fine_grained_credit,
        None,
        causal=True,
    ),
    "severity": Method(
        lambda case: severity_credit(
            case.token_logits.argmax(-1), case.response_mask, severity_scores=SEVERITY_SCORES
        ),
        severity_credit,
        None,
        causal=True,
        bound=lambda case: torch.full((len(case.response_mask),), 5.0),
    ),
    "step scores": Method(
        lambda case: step_score_credit(
            at_ends_of_segments(case), case.segment_ids, case.response_mask
        ),
        step_score_credit,
        None,
        causal=True,
        bound=lambda case: at_ends_of_segments(case).nan_to_num(0.0).abs().amax(-1),
    ),
    "leave one out": Method(
        lambda case: leave_one_out_credit(kept_score(case), case.response_mask),
        leave_one_out_credit,
        None,
        causal=False,
    ),
    "windows": Method(
        lambda case: window_credit(kept_score(case), case.response_mask),
        window_credit,
        None,
        causal=False,
    ),
    "Shapley": Method(
        lambda case: shapley_credit(
            kept_score(case),
            case.response_mask,
            samples=4,
            generator=torch.Generator().manual_seed(0),
        ),
        shapley_credit,
        score_above_no_tokens,
        causal=False,
    ),
    "exact Shapley": Method(
        lambda case: exact_shapley_credit(kept_score(case), case.response_mask),
        exact_shapley_credit,
        score_above_no_tokens,
        causal=False,
    ),
    "exact Shapley of segments": Method(
        lambda case: exact_shapley_credit(
            kept_score(case), case.response_mask, segment_ids=case.segment_ids
        ),
        exact_shapley_credit,
        score_above_no_tokens,
        causal=False,
    ),
    "gradient times input": Method(
        lambda case: gradient_times_input_credit(
            squared_sum, case.token_logits, case.response_mask
        ),
        gradient_times_input_credit,
        None,
        causal=False,
    ),
    "integrated gradients": Method(
        lambda case: integrated_gradients_credit(
            squared_sum,
            case.token_logits,
            torch.full_like(case.token_logits, 0.25),
            case.response_mask,
            steps=2,
        ),
        integrated_gradients_credit,
        squared_sum_above_baseline,
        causal=False,
    ),
    "segment": Method(
        lambda case: segment_credit(case.prefix_scores, case.segment_ids, case.response_mask),
        segment_credit,
        lambda case: segment_end_scores(case.prefix_scores, case.segment_ids)[0].sum(-1),
        causal=False,
    ),
    "segment, normalised": Method(
        lambda case: segment_credit(
            case.prefix_scores, case.segment_ids, case.response_mask, normaliser=BY_LOCATION
        ),
        segment_credit,
        lambda case: location_normalised(
            *segment_end_scores(case.prefix_scores, case.segment_ids), BY_LOCATION
        ).sum(-1),
        causal=False,
    ),
    "utterance": Method(
        lambda case: utterance_credit(
            segment_end_scores(case.prefix_scores, case.segment_ids)[0],
            case.segment_ids,
            case.response_mask,
        ),
        utterance_credit,
        None,
        causal=False,
        bound=lambda case: (
            segment_end_scores(case.prefix_scores, case.segment_ids)[0].abs().amax(-1)
        ),
    ),
    "prefix difference, smoothed": Method(
        lambda case: prefix_difference_credit(
            smoothed_prefix_scores(case.prefix_scores, case.response_mask, decay=0.7),
            case.response_mask,
        ),
        prefix_difference_credit,
        score_above_prompt,
        causal=True,
    ),
    "prefix difference, freed of length": Method(
        lambda case: prefix_difference_credit(
            length_centred_prefix_scores(case.prefix_scores, case.response_mask, LENGTH_MEANS),
            case.response_mask,
        ),
        prefix_difference_credit,
        score_above_prompt,
        causal=True,
    ),
    "prefix difference, held in segments": Method(
        lambda case: prefix_difference_credit(
            segment_held_prefix_scores(case.prefix_scores, case.segment_ids), case.response_mask
        ),
        prefix_difference_credit,
        score_above_prompt,
        causal=True,
    ),
    "log ratio": Method(
        lambda case: log_ratio_credit(
            case.policy_logprobs, case.ref_logprobs, case.response_mask, dpo_beta=0.5, clip=0.2
        ),
        log_ratio_credit,
        None,
        causal=True,
        bound=lambda case: torch.full_like(score(case), 0.2),
    ),
    "log ratio, not clipped": Method(
        lambda case: log_ratio_credit(
            case.policy_logprobs, case.ref_logprobs, case.response_mask, dpo_beta=0.5
        ),
        log_ratio_credit,
        None,
        causal=True,
        bound=lambda case: torch.full_like(score(case), math.inf),
    ),
    "log ratio, shaped": Method(
        lambda case: shaped_log_ratio_credit(
            case.sequence_scores,
            case.policy_logprobs,
            case.ref_logprobs,
            case.response_mask,
            dpo_beta=0.5,
        ),
        shaped_log_ratio_credit,
        score,
        causal=True,
    ),
    "contrastive prompts": Method(
        lambda case: contrastive_prompt_credit(
            case.policy_logprobs, case.ref_logprobs, case.response_mask
        ),
        contrastive_prompt_credit,
        None,
        causal=True,
        bound=lambda case: torch.full_like(score(case), 0.5),
    ),
    # The weights stand for a rewriter: it too has read the whole response.
    "likelihood": Method(
        lambda case: likelihood_credit(
            -case.weights, torch.zeros_like(case.weights), case.response_mask, margin=0.5
        ),
        likelihood_credit,
        None,
        causal=False,
        bound=lambda case: torch.ones_like(score(case)),
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
CONSERVING = {name: method for name, method in METHODS.items() if method.total is not None}


@pytest.fixture
def case() -> Case:
    return random_case()


@every_method
def test_gives_finite_float32_of_the_right_shape_and_zero_off_the_mask(method, case):
    token_scores = method.credit(case)
    assert token_scores.dtype == torch.float32
    assert token_scores.shape == case.response_mask.shape
    assert token_scores.isfinite().all()
    assert token_scores[~case.response_mask].eq(0).all()
    assert token_scores[0].ne(0).any()


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gives_float32_for_any_precision(method, case, dtype):
    token_scores = method.credit(case.to(dtype))
    assert token_scores.dtype == torch.float32
    torch.testing.assert_close(token_scores, method.credit(case.to(dtype).to(torch.float32)))


@pytest.mark.parametrize("method", CONSERVING.values(), ids=CONSERVING.keys())
def test_conserves_what_it_says(method, case):
    torch.testing.assert_close(method.credit(case).sum(-1), method.total(case))


@every_method
@pytest.mark.parametrize(
    "columns",
    [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [0, 2, 3, 6, 7, 8]],
    ids=["padded right", "padded left", "padded inside"],
)
def test_padding_changes_nothing(method, case, columns):
    places = torch.tensor(columns)
    padded = method.credit(case.spread_over(places, 9))
    torch.testing.assert_close(padded[:, places], method.credit(case))
    assert padded.sum().item() == pytest.approx(method.credit(case).sum().item(), rel=1e-5)


@every_method
def test_batch_equals_one_by_one(method, case):
    together = method.credit(case)
    for row in range(len(together)):
        alone = method.credit(case.rows(slice(row, row + 1)))
        torch.testing.assert_close(alone[0], together[row])


@every_method
@pytest.mark.parametrize("garbage", [NAN, math.inf, -1e30, 0.0])
def test_garbage_under_the_mask_changes_nothing(method, case, garbage):
    dirty = case.with_garbage(garbage)
    torch.testing.assert_close(method.credit(dirty), method.credit(case), rtol=0, atol=0)


@every_method
def test_causal_or_not_as_stated(method, case):
    """Row 0 has six tokens; the last two change, so scores of the first four may not."""
    before = method.credit(case)[0, :4]
    after = method.credit(with_other_ending(case, 4))[0, :4]
    assert torch.equal(before, after) == method.causal


@every_method
def test_says_what_it_conserves_needs_and_whether_it_is_causal(method):
    docstring = inspect.getdoc(method.docstring_of)
    stated = re.search(r"Conserves: (.+?)\. Causal: (yes|no)\b.*?\. Needs: \S+", docstring)
    assert stated, "expected a line 'Conserves: .... Causal: yes|no. Needs: ....'"
    assert (stated[1] == "yes") == (method.total is score)
    assert (stated[1] == "no") == (method.total is None)
    assert (stated[2] == "yes") == method.causal
    bounded = re.search(r"\. Bounded: (.+?)\. Needs:", docstring)
    assert bounded, "expected 'Bounded: no' or by what, between Causal and Needs"
    assert (bounded[1] == "no") == (method.bound is None)


BOUNDED = {name: method for name, method in METHODS.items() if method.bound is not None}


@pytest.mark.parametrize("method", BOUNDED.values(), ids=BOUNDED.keys())
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_stays_within_its_bound(method, case, scale):
    extreme = replace(
        case,
        sequence_scores=case.sequence_scores * scale,
        weights=case.weights**4 * scale,
        prefix_scores=case.prefix_scores * scale,
        policy_logprobs=case.policy_logprobs * scale,
        token_logits=case.token_logits * scale,
    )
    sizes = method.credit(extreme).abs().amax(-1)
    assert (sizes <= method.bound(extreme) * (1 + 1e-6)).all()


def test_no_method_is_left_out():
    modules = [
        importlib.import_module(f"tokencredit.credit.{module.name}")
        for module in pkgutil.iter_modules(tokencredit.credit.__path__)
        if module.name != "methods"  # which gives names to those of the other modules
    ]
    methods = {
        name
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_credit") and getattr(value, "__module__", None) == module.__name__
    }
    assert methods == {method.docstring_of.__name__ for method in METHODS.values()}
