"""What the table of credit methods says of them is true, row by row."""

import math
from dataclasses import replace

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

import tokencredit
from tokencredit.credit import from_evidence
from tokencredit.credit import methods as table
from tokencredit.credit.evidence import NEEDS, Evidence
from tokencredit.credit.location import location_normalised
from tokencredit.credit.methods import CREDIT_METHODS, credit_method, token_credit
from tokencredit.credit.settings import CreditSettings, JudgeSettings, ProbeSettings
from tokencredit.errors import ConfigError
from tokencredit.text.pooling import pooled_by_segment, segment_end_scores

every_row = pytest.mark.parametrize("name", CREDIT_METHODS)


def settings_of(name: str, **changes) -> CreditSettings:
    judge = JudgeSettings(severity_scores=(0.1, -5.0), margin=0.5, **changes)
    return CreditSettings(name, judge=judge, probe=ProbeSettings(steps=2, width=2, samples=4))


def evidence_of(case: Case, name: str) -> Evidence:
    """All that there is to know; methods take what they need of it."""
    mask, needs = case.response_mask, CREDIT_METHODS[name].needs
    # Values are zero off the mask, as `response_statistics` gives them.
    values = {
        "q": case.policy_logprobs.masked_fill(~mask, 0.0),
        "v": case.ref_logprobs.masked_fill(~mask, 0.0),
    }
    return Evidence(
        mask,
        sequence_scores=case.sequence_scores,
        prefix_scores=case.prefix_scores,
        position_scores=case.prefix_scores,
        attention=case.weights,
        quoted_scores=case.policy_logprobs,
        policy_attention=case.attention,
        policy_logprobs=case.policy_logprobs,
        ref_logprobs=case.ref_logprobs,
        dpo_beta=0.5,
        token_logits=case.token_logits,
        rewriter_logprobs=-case.weights,  # a rewriter too has read the whole response
        likeliest_logprobs=torch.zeros_like(case.weights),
        token_values=values,
        kept=kept_score(case),
        score_of_embeddings=squared_sum,
        embeddings=case.token_logits,
        baseline=torch.full_like(case.token_logits, 0.25),
        segment_ids=case.segment_ids if "segments" in needs else None,
        length_means=LENGTH_MEANS,
        location=BY_LOCATION if "location" in needs else None,
    )


def paid(case: Case, name: str) -> torch.Tensor:
    return token_credit(evidence_of(case, name), settings_of(name))


def good_steps(case: Case) -> torch.Tensor:
    good = case.token_logits.softmax(-1)[..., -1]
    return pooled_by_segment(good, case.segment_ids, how="last")[0].sum(-1)


def odds_of_spans(case: Case) -> torch.Tensor:
    odds = case.token_logits[..., 1] - case.token_logits[..., 0]
    return pooled_by_segment(odds, case.segment_ids, how="last")[0].sum(-1)


def ends(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return segment_end_scores(case.prefix_scores, case.segment_ids)


TOTALS = {
    "the score": score,
    "the score above that of the prompt": score_above_prompt,
    "the score above that of the empty response": score_above_no_tokens,
    "the score above that of the baseline": squared_sum_above_baseline,
    "the scores of its segments": lambda case: ends(case)[0].sum(-1),
    "the normalised scores of its segments": lambda case: location_normalised(
        *ends(case), BY_LOCATION
    ).sum(-1),
    "the scores of its steps": good_steps,
    "the scores of its spans": odds_of_spans,
}
"""What a row sums to, by the words of the table."""


@pytest.fixture
def case() -> Case:
    return random_case()


@every_row
def test_pays_finite_float32_and_nothing_off_the_mask(name, case):
    token_scores = paid(case, name)
    assert token_scores.dtype == torch.float32
    assert token_scores.shape == case.response_mask.shape
    assert token_scores.isfinite().all()
    assert token_scores[~case.response_mask].eq(0).all()
    assert token_scores[0].ne(0).any()


@every_row
def test_conserves_what_it_says(name, case):
    said, sums = CREDIT_METHODS[name].conserves, paid(case, name).sum(-1)
    if said != "no":
        torch.testing.assert_close(sums, TOTALS[said](case))
    for other in (score, score_above_prompt):  # the words of another row do not hold
        if said == "no" or other is not TOTALS[said]:
            assert not torch.allclose(sums, other(case), atol=1e-3)


@every_row
def test_causal_or_not_as_it_says(name, case):
    """Row 0 has six tokens; the last two change or are not there, the first four stay."""
    before = paid(case, name)[0, :4]
    sooner = case.response_mask.clone()
    sooner[0, 4:] = False
    ended = replace(
        case,
        response_mask=sooner,
        segment_ids=case.segment_ids.masked_fill(~sooner, -1),
        sequence_scores=case.sequence_scores - 1.0,
    )
    changed = paid(with_other_ending(case, 4), name)[0, :4]
    # The last token of a shorter response may be paid what the end is worth.
    shorter = paid(ended, name)[0, :3]
    same = torch.equal(before, changed) and torch.equal(before[:3], shorter)
    assert same == CREDIT_METHODS[name].causal


@every_row
@pytest.mark.parametrize("garbage", [NAN, math.inf, -1e30, 0.0])
def test_garbage_under_the_mask_changes_nothing(name, case, garbage):
    dirty = paid(case.with_garbage(garbage), name)
    torch.testing.assert_close(dirty, paid(case, name), rtol=0, atol=0)


@every_row
@pytest.mark.parametrize(
    "columns",
    [[3, 4, 5, 6, 7, 8], [0, 2, 3, 6, 7, 8]],
    ids=["padded left", "padded inside"],
)
def test_padding_changes_nothing(name, case, columns):
    places = torch.tensor(columns)
    padded = paid(case.spread_over(places, 9), name)
    torch.testing.assert_close(padded[:, places], paid(case, name))
    others = torch.ones(9, dtype=torch.bool)
    others[places] = False
    assert padded[:, others].eq(0).all()


@every_row
def test_batch_equals_one_by_one(name, case):
    together = paid(case, name)
    for row in range(len(together)):
        alone = paid(case.rows(slice(row, row + 1)), name)
        torch.testing.assert_close(alone[0], together[row])


@every_row
def test_needs_what_it_says_and_nothing_else(name, case):
    """Without one of its needs it says so; without all others it pays the same."""
    fields = {
        "log_ratio": ("policy_logprobs", "ref_logprobs"),
        "two_prompts": ("policy_logprobs", "ref_logprobs"),
        "implicit_values": ("token_values",),
        "token_classes": ("token_logits",),
        "rewriter": ("rewriter_logprobs", "likeliest_logprobs"),
        "kept_tokens": ("kept",),
        "embeddings": ("score_of_embeddings", "embeddings", "baseline"),
        "segments": ("segment_ids",),
    }
    whole, needs = evidence_of(case, name), CREDIT_METHODS[name].needs
    needed = {field for need in needs for field in fields.get(need, (need,))}
    least = {field: getattr(whole, field) for field in needed}
    alone = Evidence(whole.response_mask, dpo_beta=whole.dpo_beta, **least)
    torch.testing.assert_close(token_credit(alone, settings_of(name)), paid(case, name))
    for need in needs:
        first = "embeddings" if need == "embeddings" else fields.get(need, (need,))[0]
        with pytest.raises(ConfigError, match=f"lacks {NEEDS[need]}"):
            token_credit(replace(alone, **{first: None}), settings_of(name))


@pytest.mark.parametrize("transform", ["clip", "delta", "clip-delta"])
def test_steps_are_clipped_and_differenced(case, transform):
    plain = paid(case, "step-scores")
    changed = token_credit(
        evidence_of(case, "step-scores"), settings_of("step-scores", transform=transform)
    )
    assert not torch.equal(plain, changed)
    if transform == "clip":
        assert (changed <= 0).all()


NOT_BY_NAME = {
    "fine_grained_credit": "several classifiers at once: by name each is a source of its own, "
    "`fine-grained`, and `train-policy` adds their weighted token scores",
}
"""Exported credit functions that no row calls, and why."""


def test_every_credit_function_has_a_name(case, monkeypatch):
    endings = ("_credit", "_received", "_prefix_scores")
    exported = {name for name in tokencredit.__all__ if name.endswith(endings)}
    used = set()

    def recorded(name, function):
        def call(*arguments, **options):
            used.add(name)
            return function(*arguments, **options)

        return call

    for module in (table, from_evidence):
        for name in exported & set(vars(module)):
            monkeypatch.setattr(module, name, recorded(name, getattr(module, name)))
    for name in CREDIT_METHODS:
        paid(case, name)
    assert exported - used == set(NOT_BY_NAME)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="prefix-difference"):
        credit_method("prefix-diference")


@pytest.mark.parametrize(
    "group",
    [
        lambda: ProbeSettings(steps=0),
        lambda: ProbeSettings(width=0),
        lambda: ProbeSettings(samples=0),
        lambda: ProbeSettings(samples=3),
        lambda: CreditSettings(terminal_share=1.5),
        lambda: CreditSettings(decay=1.0),
        lambda: CreditSettings("no such method"),
    ],
)
def test_settings_that_cannot_be_are_refused(group):
    with pytest.raises(ConfigError, match="expected"):
        group()
