import math

import pytest
import torch
from reference import spans as reference

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.credit.segments import fine_grained_credit, span_end_scores
from tokencredit.credit.token_judges import MQM_SCORES, severity_credit
from tokencredit.errors import ShapeError


def test_scores_stand_at_the_ends_of_spans():
    mask = torch.tensor([[True] * 4, [True, True, False, True]])
    scores = span_end_scores([[0.3, -0.3], [2.0]], [[1, 3], [3]], mask)
    torch.testing.assert_close(scores, torch.tensor([[0, 0.3, 0, -0.3], [0, 0, 0, 2.0]]))


def test_spans_that_end_together_add_up():
    scores = span_end_scores([[0.5, 0.25]], [[1, 1]], torch.ones(1, 2, dtype=torch.bool))
    assert scores.tolist() == [[0.0, 0.75]]


def test_responses_without_spans():
    assert span_end_scores([[], []], [[], []], torch.ones(2, 3).bool()).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("end", [2, 4, -1])
def test_no_score_is_lost(end):
    mask = torch.tensor([[True, True, False, True]])
    with pytest.raises(ShapeError, match=rf"\[\(0, {end}\)\]; expected the last token of a span"):
        span_end_scores([[1.0, 0.5]], [[1, end]], mask)


@pytest.mark.parametrize(
    ("scores", "ends"),
    [([[1.0], [1.0]], [[0]]), ([[1.0]], [[0], [0]]), ([[1.0, 2.0], []], [[0], []])],
)
def test_one_end_for_every_score(scores, ends):
    with pytest.raises(ShapeError, match="one end for every score of every response"):
        span_end_scores(scores, ends, torch.ones(2, 3, dtype=torch.bool))


def test_several_models_fire_at_ends_of_their_own():
    spans = [[[0.3, -0.3, 0.3]], [[0.5, -0.5]], [[1.7]]]
    ends = [[[0, 2, 5]], [[2, 5]], [[5]]]
    weights = [1.0, 0.5, 0.3]
    mask = torch.ones(1, 6, dtype=torch.bool)
    models = torch.stack([span_end_scores(s, e, mask) for s, e in zip(spans, ends, strict=True)])
    scores = fine_grained_credit(models, torch.tensor(weights), mask)
    expected = reference.fine_grained([s[0] for s in spans], [e[0] for e in ends], weights, 6)
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert scores.sum().item() == pytest.approx(0.3 + 0.0 + 0.3 * 1.7)


def test_one_model_of_whole_responses_is_the_terminal_reward():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    whole = span_end_scores([[2.0], [-1.0]], [[1], [2]], mask)
    scores = fine_grained_credit(whole[None], torch.ones(1), mask)
    torch.testing.assert_close(scores, terminal_credit(torch.tensor([2.0, -1.0]), mask))


def test_garbage_of_one_model_stays_off_the_mask():
    models = torch.tensor([[[1.0, math.nan]], [[2.0, math.inf]]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    scores = fine_grained_credit(models, torch.tensor([1.0, 10.0]), mask)
    assert scores.tolist() == [[21.0, 0.0]]
    scores.sum().backward()
    assert models.grad.tolist() == [[[1.0, 0.0]], [[10.0, 0.0]]]


@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 1, 4), (2, 2, 5)])
def test_models_weights_and_mask_fit(unchecked, shape):
    with pytest.raises(ShapeError, match=r"expected \(models, batch, time\), \(models\) and"):
        fine_grained_credit(torch.zeros(shape), torch.ones(2), torch.ones(2, 4).bool())


def test_severities_are_looked_up():
    ids = torch.tensor([[0, 1, 2, 3]])
    mask = torch.tensor([[True, True, True, True]])
    assert severity_credit(ids, mask).tolist() == [[0.0, -1.0, -5.0, -10.0]]
    kinder = severity_credit(ids, mask, severity_scores=[1.0, 0.5, 0.0, -1.0])
    assert kinder.tolist() == [[1.0, 0.5, 0.0, -1.0]]


def test_severities_token_by_token():
    ids, mask = torch.randint(0, 4, (3, 6)), torch.rand(3, 6) > 0.3
    table = torch.randn(4)
    scores = severity_credit(ids, mask, severity_scores=table)
    for row in range(3):
        expected = reference.severity(ids[row].tolist(), mask[row].tolist(), table.tolist())
        assert scores[row].tolist() == pytest.approx(expected)


def test_a_positive_score_of_correct_tokens_pays_for_length():
    ids = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    sums = severity_credit(ids, mask, severity_scores=[0.1, -1.0]).sum(-1)
    torch.testing.assert_close(sums, torch.tensor([0.5, 0.2]))
    assert severity_credit(ids, mask, severity_scores=MQM_SCORES).eq(0).all()


def test_ids_off_the_mask_may_be_anything():
    mask = torch.tensor([[True, False, False]])
    assert severity_credit(torch.tensor([[1, -1, 99]]), mask).tolist() == [[-1.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [4, -1])
def test_every_id_has_a_score(bad):
    with pytest.raises(ShapeError, match="there are 4 severity_scores; expected ids from 0"):
        severity_credit(torch.tensor([[0, bad]]), torch.ones(1, 2, dtype=torch.bool))


def test_one_severity_per_token(unchecked):
    with pytest.raises(ShapeError, match="expected one severity per token"):
        severity_credit(torch.zeros(1, 3).long(), torch.ones(1, 4, dtype=torch.bool))
