import math

import pytest
import torch

from tokencredit import standardised_scores, updated_spread
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScorer, CandidateScores

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])


def steps(number=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 3, generator=generator) * 4 + 7 for _ in range(number)]


def running(all_scores, mask=MASK):
    spread = None
    for scores in all_scores:
        spread = updated_spread(scores, mask, spread=spread)
    return spread


def test_a_spread_by_hand():
    scores = torch.tensor([[1.0, 2.0, 6.0], [3.0, 5.0, 9.0], [4.0, 9.0, 9.0]])
    spread = running([scores])
    assert spread.squares.tolist() == pytest.approx([14.0, 2.0, 0.0])
    assert spread.freedom.tolist() == [2.0, 1.0, 0.0]
    scaled = standardised_scores(scores, spread)
    assert scaled[1, :2].tolist() == pytest.approx([3 / math.sqrt(2), 5 / math.sqrt(2)])
    assert scaled[2, 0] == 4.0, "of one candidate there is no deviation"


def test_the_spread_is_the_pooled_deviation_of_all_steps():
    every = steps()
    spread = running(every)
    pooled = [
        sum(float(s[0].var()) for s in every) / 3,
        sum(float(s[1, :2].var()) for s in every) / 3,
    ]
    found = (spread.squares / spread.freedom)[:2].tolist()
    assert found == pytest.approx(pooled, rel=1e-5)


def test_scale_and_shift_of_the_reward_model_do_not_matter():
    every = steps()
    plain = standardised_scores(every[-1], running(every))
    moved = [40.0 * scores - 300.0 for scores in every]
    scaled = standardised_scores(moved[-1], running(moved))
    torch.testing.assert_close(
        (scaled - scaled[:, :1])[:2], (plain - plain[:, :1])[:2], rtol=1e-3, atol=1e-4
    )


def test_rows_do_not_depend_on_the_batch():
    every = steps()
    spread = running(every)
    alone = running([scores[1:2] for scores in every], MASK[1:2])
    assert [float(value) for value in alone] == [float(value[1]) for value in spread]


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_garbage_and_finished_rows_change_nothing(garbage):
    every = steps()
    spread = running(every)
    dirty = running([scores.masked_fill(~MASK, garbage) for scores in every])
    assert [value.tolist() for value in dirty] == [value.tolist() for value in spread]
    later = updated_spread(every[0], torch.zeros_like(MASK), spread=spread)
    assert [value.tolist() for value in later] == [value.tolist() for value in spread]


def test_candidates_that_are_out_do_not_spread():
    scores = torch.tensor([[1.0, 3.0, -math.inf]])
    spread = updated_spread(scores, torch.ones(1, 3, dtype=torch.bool))
    assert [value.tolist() for value in spread] == [[2.0], [1.0]]


def test_candidates_that_score_alike_keep_their_scores():
    scores = torch.full((1, 3), 2.0)
    spread = updated_spread(scores, torch.ones(1, 3, dtype=torch.bool))
    assert standardised_scores(scores, spread).tolist() == scores.tolist()


def test_a_function_is_a_scorer_once_it_names_its_vocabulary():
    def scorer(batch):
        return CandidateScores(batch.candidate_ids.float(), batch.text_ids[:, -1].float())

    assert not isinstance(scorer, CandidateScorer)
    scorer.vocab = None
    assert isinstance(scorer, CandidateScorer)


def test_a_batch_knows_which_rows_go_on_and_their_longest_text():
    text = torch.tensor([[9, 9, 9], [0, 9, 9]])
    candidates = torch.tensor([[1, 2], [3, 4]])
    batch = CandidateBatch(text, text > 0, candidates, candidates > 2)
    assert batch.active.tolist() == [False, True]
    assert batch.longest == 2
    finished = CandidateBatch(text, text > 0, candidates, candidates > 4)
    assert finished.longest == 0
    assert CandidateBatch(text[:0], text[:0] > 0, candidates[:0], candidates[:0] > 0).longest == 0


def test_a_batch_goes_where_the_reward_model_is():
    text = torch.tensor([[9, 9]])
    there = CandidateBatch(text, text > 0, text, text > 0).to(torch.device("meta"))
    tensors = (there.text_ids, there.text_mask, there.candidate_ids, there.candidate_mask)
    assert all(tensor.is_meta for tensor in tensors)
