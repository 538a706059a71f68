import math

import pytest
import reference.search as reference
import torch
from reference.decoding import log_softmax
from search_runs import other_wave, prompt_lists, response_lists, sampling, scored_by
from tiny_guides import PROMPT_LENGTHS, language_model, next_logits_of, prompts

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.search.hf_implicit_search import implicit_beam_search, implicit_scorer
from tokencredit.decoding.search.hf_segment_search import tree_search
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError

ENDS = (3, 7, 12, 20, 33)


def found(model, reference_model, *, options=None, **settings):
    ids, mask = prompts()
    settings = {"beams": 3, "top_k": 4} | settings
    return implicit_beam_search(
        model, ids, mask, **sampling(**(options or {})), reference=reference_model, **settings
    )


def laws(model, other):
    """Log-probabilities by the model, and the log-ratios."""
    own, theirs = next_logits_of(model), None if other is None else next_logits_of(other)

    def likely(text):
        return log_softmax(own(text))

    def reward(text):
        if theirs is None:
            return likely(text)
        return [p - q for p, q in zip(likely(text), log_softmax(theirs(text)), strict=True)]

    return likely, reward


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize(("beams", "top_k"), [(1, 4), (3, 4), (4, 2)])
@pytest.mark.parametrize("ends", [(), ENDS], ids=["endless", "ends"])
def test_beams_are_those_of_the_slow_loop(architecture, beams, top_k, ends):
    model, other = language_model(architecture), language_model("gpt2")
    options = {"eos_token_ids": ends, "max_new_tokens": 5}
    output = found(model, other, beams=beams, top_k=top_k, options=options)
    likely, reward = laws(model, other)
    for row, prompt in enumerate(prompt_lists()):
        best, total = reference.beam(
            prompt, reward, likely, beams=beams, top_k=top_k, longest=5, ends=ends
        )
        assert response_lists(output.batch)[row] == best
        assert float(output.scores[row]) == pytest.approx(total, abs=1e-3)


def test_by_likelihood_it_is_the_beam_search_of_generate():
    model = language_model()
    ids, mask = prompts()
    output = found(model, None, beams=3, top_k=0)
    sequences = model.generate(
        ids, attention_mask=mask.long(), num_beams=3, do_sample=False, max_new_tokens=6
    )
    assert output.batch.response_ids.tolist() == sequences[:, ids.shape[1] :].tolist()
    assert not output.scorer_positions.any()


def test_enough_beams_find_the_best_of_all():
    model, other = language_model(), language_model("gpt2")
    options = {"max_new_tokens": 2}
    output = found(model, other, beams=41, top_k=0, options=options)
    _, reward = laws(model, other)
    prompt = prompt_lists()[1]
    best = max(
        first + second for v, first in enumerate(reward(prompt)) for second in reward([*prompt, v])
    )
    assert float(output.scores[1]) == pytest.approx(best, abs=1e-3)


def test_what_beams_read():
    output = found(language_model(), language_model("gpt2"), beams=3)
    read = torch.tensor(PROMPT_LENGTHS) - 1 + 1 + 3 * 5
    assert output.lm_positions.tolist() == read.tolist()
    assert output.scorer_positions.tolist() == read.tolist()


def test_neither_the_batch_nor_padding_changes_a_response():
    model, other = language_model(), language_model("gpt2")
    options = {"eos_token_ids": ENDS}
    together = found(model, other, options=options)
    for row, prompt in enumerate(prompt_lists()):
        ids = torch.tensor([[9, 9, *prompt]])
        mask = torch.tensor([[False, False] + [True] * len(prompt)])
        alone = implicit_beam_search(
            model, ids, mask, **sampling(**options), beams=3, top_k=4, reference=other
        )
        assert response_lists(alone.batch)[0] == response_lists(together.batch)[row]
        assert int(alone.lm_positions) == int(together.lm_positions[row])


def test_no_response_ends_too_early():
    options = {"eos_token_ids": tuple(range(2, 39)), "min_new_tokens": 4}
    for top_k in (0, 4):
        output = found(language_model(), language_model("gpt2"), top_k=top_k, options=options)
        assert min(map(len, response_lists(output.batch))) >= 4


def test_the_scorer_weighs_early_tokens_more():
    model, other = language_model(), language_model("gpt2")
    ids, mask = prompts()
    response = torch.tensor([[5, 6, 7], [8, 9, 0], [0, 0, 0]])
    counts = torch.tensor([[True] * 3, [True, True, False], [False] * 3])
    scores = implicit_scorer(model, other)(
        ResponseBatch(ids, mask, response, counts), torch.arange(len(ids))
    )
    _, ratios = laws(model, other)
    for row, prompt in enumerate(prompt_lists()):
        tokens = response[row][counts[row]].tolist()
        expected = sum(
            ratios([*prompt, *tokens[:i]])[token] / (i + 1) for i, token in enumerate(tokens)
        )
        assert float(scores[row]) == pytest.approx(expected, abs=1e-3)


def test_a_tree_pruned_by_implicit_rewards():
    model, dpo = language_model(), language_model("gpt2")
    ids, mask = prompts()
    output = tree_search(
        model,
        ids,
        mask,
        implicit_scorer(dpo, model),
        **sampling(),
        keep=2,
        children=2,
        lengths=[3, 3],
        final_score=scored_by(other_wave),
        passes=2,
        generator=torch.Generator().manual_seed(0),
    )
    lengths = torch.tensor(PROMPT_LENGTHS)
    read = 2 * 4 * (lengths + 3) + 4 * (lengths + 6)
    assert output.scorer_positions.tolist() == read.tolist()


@pytest.mark.parametrize("settings", [{"beams": 0}, {"top_k": -1}], ids=str)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected beams >= 1"):
        found(language_model(), None, **settings)


def test_models_that_cannot_search():
    model = language_model("gpt2", max_position_embeddings=12)
    with pytest.raises(DataError, match="13 tokens and GPT2LMHeadModel reads at most 12"):
        found(language_model(), model, options={"max_new_tokens": 7})
    with pytest.raises(ModelError, match="training mode"):
        found(language_model(), language_model().train())
    broken = language_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(NumericError, match="beams are NaN"):
        found(language_model(), broken)
