"""Whole responses: drawn by `generate()`, the best kept."""

import math

import pytest
import torch
from search_runs import prompt_lists, response_lists, sampling, scored_by, wave
from tiny_guides import language_model, prompts

from tokencredit.decoding.search.hf_methods import SearchTask
from tokencredit.decoding.search.hf_sampling import best_of_n, best_of_n_kl, written_responses
from tokencredit.errors import ConfigError
from tokencredit.sampling import Sampling

ENDS = (7, 11, 23)


def found(n=3, *, score=None, seed=0, **options):
    ids, mask = prompts()
    torch.manual_seed(seed)
    return best_of_n(
        language_model(), ids, mask, score or scored_by(wave), n=n, **sampling(**options)
    )


def test_the_best_of_all_that_were_drawn_is_kept():
    score = scored_by(wave)
    output = found(5, score=score)
    assert len(score.asked) == 5 * len(prompt_lists())
    for row, prompt in enumerate(prompt_lists()):
        values = [wave(text) for text in score.asked[5 * row : 5 * row + 5]]
        kept = [*prompt, *response_lists(output.batch)[row]]
        assert wave(kept) == pytest.approx(max(values))
        assert float(output.scores[row]) == pytest.approx(max(values), rel=1e-5)


def test_one_response_is_not_scored():
    score = scored_by(wave)
    output = found(1, score=score)
    assert score.asked == []
    assert output.scores.tolist() == [0.0] * 3
    assert output.scorer_positions.tolist() == [0] * 3


def test_positions_count_the_prompt_of_every_copy():
    output = found(2, score=scored_by(wave), max_new_tokens=4)
    lengths = [len(prompt) for prompt in prompt_lists()]
    assert output.lm_positions.tolist() == [2 * (length + 3) for length in lengths]
    assert output.scorer_positions.tolist() == [2 * (length + 4) for length in lengths]


def test_responses_end_at_any_end_and_not_too_early():
    output = found(4, max_new_tokens=30, min_new_tokens=2, eos_token_ids=ENDS)
    responses = response_lists(output.batch)
    assert any(response[-1] in ENDS for response in responses)
    assert all(set(ENDS).isdisjoint(response[:-1]) for response in responses)
    assert min(map(len, responses)) >= 3


def test_what_is_suppressed_and_what_is_forced():
    plain = response_lists(found().batch)
    often = {token for response in plain for token in response} - set(ENDS)
    output = found(suppress_tokens=tuple(often), eos_token_ids=ENDS, force_eos=True)
    responses = response_lists(output.batch)
    assert often.isdisjoint(token for response in responses for token in response)
    assert all(response[-1] in ENDS for response in responses)


def test_top_k_temperature_and_seed_tell():
    plain = response_lists(found(1).batch)
    assert plain == response_lists(found(1).batch) != response_lists(found(1, seed=1).batch)
    assert plain != response_lists(found(1, temperature=3.0).batch)
    likeliest = response_lists(found(1, temperature=0.0).batch)
    assert likeliest == response_lists(found(2, top_k=1).batch) != plain


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [(0, {}, "n is 0"), (2, {"temperature": 0.0}, "n is 2 and temperature 0.0")],
)
def test_responses_that_cannot_differ(n, options, message):
    with pytest.raises(ConfigError, match=message):
        found(n, **options)


def test_the_bound_of_the_divergence():
    assert best_of_n_kl(8) == pytest.approx(math.log(8) - 7 / 8)


def test_what_follows_an_end_does_not_count():
    ids = torch.tensor([[0, 3], [4, 5]])
    sequences = torch.tensor([[0, 3, 7, 1], [0, 3, 6, 7], [4, 5, 1, 2], [4, 5, 11, 7]])
    batch = written_responses(ids, ids > 0, sequences, ENDS)
    assert batch.prompt_ids.tolist() == [[0, 3], [0, 3], [4, 5], [4, 5]]
    assert response_lists(batch) == [[7], [6, 7], [1, 2], [11]]
    assert response_lists(written_responses(ids, ids > 0, sequences, ()))[0] == [7, 1]


def test_a_search_without_the_model_that_it_needs():
    ids, mask = prompts()
    task = SearchTask(language_model(), ids, mask, scored_by(wave), Sampling(max_new_tokens=2), n=1)
    with pytest.raises(ConfigError, match="there is no implicit model"):
        task.implicit_models()
