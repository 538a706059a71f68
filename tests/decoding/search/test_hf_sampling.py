"""Whole responses: drawn by `generate()`, the best kept."""

import math

import pytest
import torch
from search_runs import prompt_lists, response_lists, sampling, scored_by, wave
from tiny_guides import language_model, prompts
from transformers import GenerationConfig

from tokencredit.decoding.search.hf_methods import SearchTask
from tokencredit.decoding.search.hf_sampling import best_of_n, best_of_n_kl, written_responses
from tokencredit.errors import ConfigError
from tokencredit.sampling import Sampling, sampling_logits

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


def test_the_scorer_is_told_which_prompt_each_response_answers():
    score = scored_by(wave)
    found(4, score=score)
    assert len(score.numbers) == 12
    assert all(prompt_lists()[number] == prompt for number, prompt in score.numbers)


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
    assert all(response[-1] == ENDS[0] for response in responses if len(response) == 6)


def test_top_k_temperature_and_seed_tell():
    plain = response_lists(found(1).batch)
    assert plain == response_lists(found(1).batch) != response_lists(found(1, seed=1).batch)
    assert plain != response_lists(found(1, temperature=3.0).batch)
    likeliest = response_lists(found(1, temperature=0.0).batch)
    assert likeliest == response_lists(found(2, top_k=1).batch) != plain


# All that a checkpoint may name to change what `generate()` draws, or how.
OWN_SETTINGS = {
    "do_sample": False,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.9,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "repetition_penalty": 9.0,
    "encoder_repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "length_penalty": 5.0,
    "min_new_tokens": 6,
    "max_new_tokens": 2,
    "bad_words_ids": [[token] for token in range(2, 30)],
    "suppress_tokens": list(range(2, 30)),
    "begin_suppress_tokens": list(range(2, 40)),
    "forced_eos_token_id": 35,
    "exponential_decay_length_penalty": (0, 9.0),
    "sequence_bias": [[[3], 50.0]],
    "renormalize_logits": True,
    "eos_token_id": list(range(2, 40)),
    "pad_token_id": 3,
}


def test_what_a_checkpoint_names_for_generation_never_enters():
    model = language_model()
    ids, mask = prompts()
    for n, options in [(1, {}), (3, {}), (1, {"temperature": 0.0}), (1, {"top_k": 3})]:
        texts = []
        for config in (GenerationConfig(), GenerationConfig(**OWN_SETTINGS)):
            model.generation_config = config
            torch.manual_seed(0)
            drawn = sampling(eos_token_ids=ENDS, **options)
            output = best_of_n(model, ids, mask, scored_by(wave), n=n, **drawn)
            texts.append(response_lists(output.batch))
            assert model.generation_config is config
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.5, "suppress_tokens": (9, 10)},
        {"temperature": 0.0, "min_new_tokens": 3},
    ],
)
def test_the_divergence_of_plain_sampling(options):
    """Of the distribution that is drawn from, from the model's own over what may be drawn."""
    model = language_model()
    output = found(1, eos_token_ids=ENDS, **options)
    sampling_ = Sampling(max_new_tokens=6, **options)
    for row, (prompt, response) in enumerate(
        zip(prompt_lists(), response_lists(output.batch), strict=True)
    ):
        expected = 0.0
        for place, token in enumerate(response):
            text = torch.tensor([[*prompt, *response[:place]]])
            logits = model(input_ids=text).logits[0, -1].double()
            banned = [*options.get("suppress_tokens", ())]
            banned += ENDS if place < options.get("min_new_tokens", 0) else ()
            logits[banned] = -math.inf
            plain = logits.log_softmax(-1)
            if sampling_.temperature == 0.0:
                expected -= float(plain[token])
                continue
            drawn = sampling_logits(logits.float(), None, sampling_).double().log_softmax(-1)
            there = drawn > -math.inf
            expected += float((drawn.exp() * (drawn - plain))[there].sum())
        assert float(output.kl[row]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_as_the_model_draws_there_is_no_divergence():
    assert found(1).kl.tolist() == [0.0] * 3
    assert found(2).kl is None


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
