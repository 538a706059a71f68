import math

import pytest
import reference.search as reference
import torch

from tokencredit.decoding.search.implicit_rules import (
    extended_beams,
    layer_lengths,
    weighted_implicit_rewards,
)
from tokencredit.decoding.search.rules import (
    acceptance_probabilities,
    best_candidates,
    ends_segment,
    segment_thresholds,
    surviving_candidates,
    survivor_counts,
)
from tokencredit.errors import ConfigError, NumericError

INF = math.inf


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_thresholds_by_hand():
    lengths, prompts = torch.tensor([0, 4, 8, 12]), torch.full((4,), 2.0)
    found = segment_thresholds(
        lengths, prompts, target_reward=10.0, max_new_tokens=8, threshold_start=0.25
    )
    assert found.tolist() == [4.0, 7.0, 10.0, 10.0]


@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_thresholds_and_acceptance_are_those_of_the_slow_loop(start):
    lengths, prompts, scores = torch.arange(8), randn(8) * 3, randn(8, seed=1) * 3
    options = {"target_reward": 1.5, "max_new_tokens": 5, "threshold_start": start}
    taus = segment_thresholds(lengths, prompts, **options)
    found = acceptance_probabilities(scores, taus, acceptance_beta=0.6)
    for i in range(8):
        tau = reference.threshold(i, float(prompts[i]), target=1.5, tokens=5, start=start)
        assert float(taus[i]) == pytest.approx(tau, abs=1e-5)
        expected = reference.acceptance(float(scores[i]), tau, beta=0.6)
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)


def test_a_target_of_minus_infinity_accepts_everything():
    taus = segment_thresholds(torch.tensor([3]), randn(1), target_reward=-INF, max_new_tokens=4)
    assert acceptance_probabilities(torch.tensor([-1e30]), taus).tolist() == [1.0]


def test_half_precision_comes_out_as_float32():
    taus = segment_thresholds(
        torch.tensor([1]), torch.ones(1).bfloat16(), target_reward=2.0, max_new_tokens=4
    )
    assert taus.dtype == torch.float32
    assert acceptance_probabilities(taus.half(), taus).dtype == torch.float32


def test_where_segments_end():
    entropies = torch.tensor([9.0, 9.0, 0.1, 0.1, 3.0])
    lengths = torch.tensor([1, 2, 4, 5, 2])
    options = {"entropy_threshold": 3.0, "min_segment_tokens": 2, "max_segment_tokens": 5}
    assert ends_segment(entropies, lengths, **options).tolist() == [False, True, False, True, True]
    assert not ends_segment(torch.tensor([1e9]), torch.tensor([9]), entropy_threshold=INF).any()


def test_the_best_candidates_and_ties():
    scores = torch.tensor([[1.0, 5.0, 5.0, -INF], [0.0, -1.0, -2.0, 7.0]])
    assert best_candidates(scores, keep=3).tolist() == [[1, 2, 0], [3, 0, 1]]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_survivors_are_those_of_the_slow_loop(share):
    scores, running = randn(6, 7), randn(6, 7, seed=1) > -0.3
    running[0] = False
    running[1] = torch.arange(7) == 3
    dirty = scores.masked_fill(~running, math.nan)
    found = surviving_candidates(dirty, running, rejection_share=share)
    counts = survivor_counts(running, rejection_share=share)
    assert found[0].tolist() == [False] * 7
    for row in range(1, 6):
        own = {j: float(scores[row, j]) for j in range(7) if running[row, j]}
        assert found[row].nonzero().flatten().tolist() == reference.survivors(own, share)
        assert int(counts[row]) == int(found[row].sum())
    if share == 0.0:
        assert torch.equal(found, running)


def test_early_log_ratios_weigh_more():
    logprobs, ref = -randn(3, 6).abs(), -randn(3, 6, seed=1).abs()
    mask = torch.arange(6) < torch.tensor([6, 3, 0])[:, None]
    dirty = logprobs.masked_fill(~mask, math.nan)
    found = weighted_implicit_rewards(dirty, ref, mask)
    for row, length in enumerate((6, 3, 0)):
        expected = reference.weighted_reward(
            logprobs[row, :length].tolist(), ref[row, :length].tolist()
        )
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)
    padded = torch.nn.functional.pad(mask, (2, 0))
    moved = weighted_implicit_rewards(
        torch.nn.functional.pad(logprobs, (2, 0)), torch.nn.functional.pad(ref, (2, 0)), padded
    )
    torch.testing.assert_close(moved, found)


@pytest.mark.parametrize(
    ("tokens", "layers", "expected"), [(8, 4, [2] * 4), (7, 2, [3, 4]), (5, 1, [5])]
)
def test_layers_share_the_tokens(tokens, layers, expected):
    assert layer_lengths(tokens, layers) == expected


def test_beams_by_hand():
    totals = torch.tensor([[1.0, 0.5, -INF]])
    additions = torch.tensor([[[-2.0, 0.1], [math.nan, 9.0], [5.0, 5.0]]])
    step = extended_beams(totals, additions, torch.tensor([[False, True, False]]))
    assert step.parents.tolist() == [[0, 1, 0]]
    assert step.choices.tolist() == [[1, 0, 0]]
    torch.testing.assert_close(step.totals, torch.tensor([[1.1, 0.5, -1.0]]))


def test_places_that_nothing_fills_stay_empty():
    step = extended_beams(
        torch.tensor([[0.0, -INF]]), torch.tensor([[[1.0], [2.0]]]), torch.zeros(1, 2).bool()
    )
    assert step.totals.tolist() == [[1.0, -INF]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: segment_thresholds(
                torch.tensor([1]), torch.zeros(1), target_reward=math.nan, max_new_tokens=3
            ),
            ConfigError,
            "target_reward is nan",
        ),
        (
            lambda: segment_thresholds(
                torch.tensor([1]), torch.zeros(1), target_reward=INF, max_new_tokens=3
            ),
            ConfigError,
            "target_reward is inf",
        ),
        (
            lambda: segment_thresholds(
                torch.tensor([1]),
                torch.zeros(1),
                target_reward=1.0,
                max_new_tokens=3,
                threshold_start=1.5,
            ),
            ConfigError,
            "threshold_start is 1.5",
        ),
        (
            lambda: segment_thresholds(
                torch.tensor([1, 1]),
                torch.tensor([0.0, math.nan]),
                target_reward=1.0,
                max_new_tokens=3,
            ),
            NumericError,
            r"prompts are NaN or infinite in rows \[1\]",
        ),
        (
            lambda: acceptance_probabilities(torch.zeros(1), torch.zeros(1), acceptance_beta=0.0),
            ConfigError,
            "acceptance_beta is 0.0",
        ),
        (
            lambda: acceptance_probabilities(torch.tensor([0.0, -INF]), torch.zeros(2)),
            NumericError,
            r"rows \[1\]",
        ),
        (
            lambda: ends_segment(torch.zeros(1), torch.tensor([1]), min_segment_tokens=0),
            ConfigError,
            "min_segment_tokens 0",
        ),
        (
            lambda: ends_segment(torch.zeros(1), torch.tensor([1]), entropy_threshold=math.nan),
            ConfigError,
            "entropy_threshold is nan",
        ),
        (lambda: best_candidates(torch.zeros(1, 2), keep=3), ConfigError, "3 of 2 candidates"),
        (
            lambda: best_candidates(torch.tensor([[0.0, 1.0], [0.0, math.nan]]), keep=1),
            NumericError,
            r"rows \[1\]",
        ),
        (
            lambda: best_candidates(torch.tensor([[0.0, -INF]]), keep=2),
            NumericError,
            "fewer than 2",
        ),
        (
            lambda: survivor_counts(torch.ones(1, 2).bool(), rejection_share=1.0),
            ConfigError,
            "rejection_share is 1.0",
        ),
        (
            lambda: surviving_candidates(
                torch.tensor([[INF]]), torch.ones(1, 1).bool(), rejection_share=0.5
            ),
            NumericError,
            r"beginnings are NaN or infinite in rows \[0\]",
        ),
        (
            lambda: weighted_implicit_rewards(
                torch.tensor([[math.nan]]), torch.zeros(1, 1), torch.ones(1, 1).bool()
            ),
            NumericError,
            "tokens are NaN",
        ),
        (lambda: layer_lengths(3, 4), ConfigError, "layers is 4"),
        (
            lambda: extended_beams(
                torch.zeros(1, 1), torch.tensor([[[math.nan]]]), torch.zeros(1, 1).bool()
            ),
            NumericError,
            "beams are NaN",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
