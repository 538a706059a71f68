import math

import pytest
import reference.decoding as reference
import torch

from tokencredit import candidate_tokens, chosen_tokens, guidance_kl, guided_logits
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.errors import ConfigError, NumericError, ShapeError

LIMITS = [
    {"top_k": 4},
    {"top_k": 0},
    {"top_k": 9},
    {"top_k": 0, "top_p": 0.7},
    {"top_k": 5, "top_p": 0.7},
    {"top_k": 5, "top_p": 0.9, "max_candidates": 2},
    {"top_k": 0, "min_p": 0.2},
    {"top_k": 3, "min_p": 0.5, "top_p": 0.9},
    {"top_k": 0, "max_candidates": 3},
    {"top_k": 1},
]


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def test_a_step_by_hand():
    logprobs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    ids, mask = candidate_tokens(logprobs, top_k=2)
    assert ids.tolist() == [[0, 1]]
    assert mask.all()
    guided = guided_logits(logprobs, ids, mask, torch.tensor([[0.0, 1.0]]), guidance_beta=2.0)
    expected = torch.tensor([[math.log(0.5), math.log(0.3) + 2.0, -math.inf]])
    torch.testing.assert_close(guided, expected)
    assert chosen_tokens(guided, temperature=0.0).tolist() == [1]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_candidates_are_those_of_the_slow_loop(limits):
    logits = random_logits(6, 9)
    logits[0, 3] = -math.inf
    ids, mask = candidate_tokens(logits, **limits)
    for row in range(6):
        expected = reference.candidates(logits[row].tolist(), **limits)
        found = ids[row][mask[row]].tolist()
        assert found == expected if ids.shape[1] < 9 else sorted(found) == sorted(expected)
    assert set(limits) == {"top_k"} or mask.any(0).all(), "no column is wasted"


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_rows_do_not_depend_on_the_batch(limits):
    logits = random_logits(4, 9)
    ids, mask = candidate_tokens(logits, **limits)
    for row in range(4):
        alone, counts = candidate_tokens(logits[row : row + 1], **limits)
        assert ids[row][mask[row]].tolist() == alone[counts].tolist()


def test_what_does_not_count_repeats_a_candidate():
    logits = torch.tensor([[3.0, 0.0, -math.inf, -math.inf]])
    ids, mask = candidate_tokens(logits, top_k=4)
    assert ids.tolist() == [[0, 1, 0, 0]]
    assert mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("clip", [None, (0.0, 0.5)])
def test_the_law_is_that_of_the_slow_loop(clip):
    logits, scores = random_logits(5, 9), random_logits(5, 4, seed=1)
    ids, mask = candidate_tokens(logits, top_k=4, top_p=0.95)
    scores = scores[:, : ids.shape[1]]
    guided = guided_logits(logits, ids, mask, scores, guidance_beta=1.5, clip=clip)
    law = (guided / 0.7).softmax(-1)
    clipped = scores if clip is None else scores.clamp(*clip)
    for row in range(5):
        own = dict(zip(ids[row][mask[row]].tolist(), clipped[row][mask[row]].tolist(), strict=True))
        expected = reference.guided_law(
            logits[row].tolist(), own, guidance_beta=1.5, temperature=0.7
        )
        wanted = torch.tensor([expected.get(v, 0.0) for v in range(9)])
        torch.testing.assert_close(law[row], wanted, rtol=1e-4, atol=1e-7)


def test_garbage_under_the_mask_changes_nothing():
    logits, scores = random_logits(2, 6), random_logits(2, 3, seed=1)
    ids = torch.tensor([[4, 2, 1], [3, 3, 3]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    clean = guided_logits(logits, ids, mask, scores, guidance_beta=1.0)
    for garbage in (math.nan, math.inf, 1e30):
        dirty = guided_logits(
            logits, ids, mask, scores.masked_fill(~mask, garbage), guidance_beta=1.0
        )
        torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    torch.testing.assert_close(clean[1, 3], logits[1, 3] + scores[1, 0])


def test_no_weight_leaves_the_language_model():
    logits = random_logits(3, 7)
    ids, mask = candidate_tokens(logits, top_k=0)
    guided = guided_logits(logits, ids, mask, random_logits(3, 7, seed=2), guidance_beta=0.0)
    torch.testing.assert_close(guided, logits, rtol=0, atol=0)
    assert guidance_kl(guided, logits).tolist() == [0.0, 0.0, 0.0]


def test_what_all_candidates_share_changes_no_law():
    logits, scores = random_logits(3, 7), random_logits(3, 4, seed=2)
    ids, mask = candidate_tokens(logits, top_k=4)
    laws = [
        guided_logits(logits.log_softmax(-1), ids, mask, scores - 5.0, guidance_beta=2.0),
        guided_logits(logits, ids, mask, scores, guidance_beta=2.0),
    ]
    torch.testing.assert_close(*(law.softmax(-1) for law in laws))


def test_a_score_of_minus_infinity_takes_a_candidate_out():
    logits = torch.zeros(1, 3)
    ids, mask = candidate_tokens(logits, top_k=0)
    scores = torch.tensor([[0.0, -math.inf, 1.0]])
    for beta in (0.0, 1.0, -1.0):
        guided = guided_logits(logits, ids, mask, scores, guidance_beta=beta)
        assert (guided > -math.inf).tolist() == [[True, False, True]]


def test_half_precision_gives_float32():
    logits = random_logits(2, 6).bfloat16()
    ids, mask = candidate_tokens(logits, top_k=3)
    guided = guided_logits(logits, ids, mask, torch.zeros(2, 3).bfloat16(), guidance_beta=1.0)
    assert guided.dtype == torch.float32


def test_sampling_follows_the_law():
    logits = random_logits(1, 6)
    law = (logits / 0.5).softmax(-1)[0]
    draws = chosen_tokens(
        logits.expand(20_000, -1), temperature=0.5, generator=torch.Generator().manual_seed(3)
    )
    found = torch.bincount(draws, minlength=6) / len(draws)
    assert float((found - law).abs().sum() / 2) < 0.01


def test_the_largest_of_equals_is_found_without_division():
    assert chosen_tokens(torch.tensor([[1.0, -math.inf, 2.0]]), temperature=0.0).tolist() == [2]


def test_divergence_by_hand():
    plain, guided = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.8, 0.2, 0.0]])
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.25)
    assert guidance_kl(guided.log(), plain.log()).tolist() == pytest.approx([expected], rel=1e-5)


def test_methods_are_settings_of_the_rule():
    assert {"args-greedy", "args-stochastic", "pargs", "pargs-greedy", "rad", "farma"} <= set(
        GUIDANCE_METHODS
    )
    for settings in GUIDANCE_METHODS.values():
        assert set(settings.guide) <= {"guidance_beta", "top_k", "clip"}
        assert settings.sampling["do_sample"] == ("temperature" in settings.sampling)


@pytest.mark.parametrize(
    "limits",
    [
        {"top_k": 8},
        {"top_k": -1},
        {"top_p": 0.0, "top_k": 3},
        {"top_p": 1.1, "top_k": 3},
        {"min_p": -0.1, "top_k": 3},
        {"min_p": 1.5, "top_k": 3},
        {"max_candidates": 0, "top_k": 3},
    ],
    ids=str,
)
def test_candidates_out_of_range(limits):
    with pytest.raises(ConfigError, match="expected"):
        candidate_tokens(torch.zeros(1, 7), **limits)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers(value):
    logits = torch.tensor([[0.0, 1.0], [0.0, value]])
    with pytest.raises(NumericError, match=r"rows \[1\]"):
        candidate_tokens(logits, top_k=1)
    with pytest.raises(NumericError, match=r"rows \[1\]"):
        chosen_tokens(logits)


def test_a_row_that_bans_every_token():
    with pytest.raises(NumericError, match="ban every token"):
        candidate_tokens(torch.full((1, 3), -math.inf), top_k=1)
    with pytest.raises(NumericError, match="ban every token"):
        chosen_tokens(torch.full((1, 3), -math.inf), temperature=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers(value):
    ids, mask = candidate_tokens(torch.zeros(2, 3), top_k=2)
    scores = torch.tensor([[0.0, 1.0], [value, 0.0]])
    with pytest.raises(NumericError, match=r"rows \[1\]"):
        guided_logits(torch.zeros(2, 3), ids, mask, scores, guidance_beta=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_beta": math.nan},
        {"guidance_beta": math.inf},
        {"guidance_beta": 1.0, "clip": (1.0, 1.0)},
        {"guidance_beta": 1.0, "clip": (1.0, math.nan)},
    ],
    ids=str,
)
def test_weights_out_of_range(options):
    ids, mask = candidate_tokens(torch.zeros(1, 3), top_k=2)
    with pytest.raises(ConfigError, match="guidance_beta"):
        guided_logits(torch.zeros(1, 3), ids, mask, torch.zeros(1, 2), **options)


def test_scores_that_do_not_fit(unchecked):
    ids, mask = candidate_tokens(torch.zeros(1, 3), top_k=2)
    with pytest.raises(ShapeError, match="one score per candidate"):
        guided_logits(torch.zeros(1, 3), ids, mask, torch.zeros(1, 3), guidance_beta=1.0)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_temperatures_out_of_range(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        chosen_tokens(torch.zeros(1, 3), temperature=temperature)
