import math

import pytest
import reference.search as reference
import torch
from search_runs import (
    other_wave,
    prompt_lists,
    response_lists,
    sampling,
    scored_by,
    watched,
    wave,
)
from tiny_guides import PROMPT_LENGTHS, language_model, prompts
from tiny_models import PAD_ID, padding_mask, tiny_ids

from tokencredit.decoding.search.hf_branching_texts import BranchingTexts
from tokencredit.decoding.search.hf_segment_search import speculative_rejection, tree_search
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError

ENDS = (3, 7, 12, 20, 33)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


TREE = {"keep": 1, "children": 3, "lengths": [2, 4]}


def found(search, model, *, score=None, seed=0, options=None, **settings):
    ids, mask = prompts()
    return search(
        model,
        ids,
        mask,
        score or scored_by(wave),
        **sampling(**(options or {})),
        generator=seeded(seed),
        **settings,
    )


def generated(model, n, tokens, seed=0, **options):
    """What `generate()` draws with the same random numbers."""
    ids, mask = prompts()
    torch.manual_seed(seed)
    sequences = model.generate(
        ids,
        attention_mask=mask.long(),
        do_sample=True,
        top_k=0,
        num_return_sequences=n,
        max_new_tokens=tokens,
        **options,
    )
    return sequences[:, ids.shape[1] :]


TREES = [
    {"keep": 1, "children": 3, "lengths": [2, 2, 2]},
    {"keep": 2, "children": 2, "lengths": [3, 2, 1]},
    {"keep": 3, "children": 1, "lengths": [1, 5]},
    {"keep": 1, "children": 4, "lengths": [6]},
]


@pytest.mark.parametrize("tree", TREES, ids=str)
@pytest.mark.parametrize("ends", [(), ENDS], ids=["endless", "ends"])
def test_trees_are_those_of_the_slow_loop(tree, ends):
    with watched() as draws:
        output = found(tree_search, language_model(), options={"eos_token_ids": ends}, **tree)
    expected = reference.tree(prompt_lists(), wave, iter(draws), ends=ends, **tree)
    assert response_lists(output.batch) == expected
    for prompt, response, score in zip(prompt_lists(), expected, output.scores, strict=True):
        assert float(score) == pytest.approx(wave([*prompt, *response]), abs=1e-3)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_an_ended_beginning_takes_one_place(seed):
    ends = tuple(range(2, 40, 4))

    def score(text):
        return 12.0 if text[-1] in ends else 1.5 * len(text) + 0.1 * wave(text)

    tree = {"keep": 2, "children": 2, "lengths": [2, 1, 1, 1, 1]}
    with watched() as draws:
        output = found(
            tree_search,
            language_model(),
            score=scored_by(score),
            seed=seed,
            options={"eos_token_ids": ends, "temperature": 4.0},
            **tree,
        )
    expected = reference.tree(prompt_lists(), score, iter(draws), ends=ends, **tree)
    assert response_lists(output.batch) == expected


def test_another_scorer_chooses_at_the_end():
    tree = {"keep": 2, "children": 2, "lengths": [2, 2, 2]}
    pruner, chooser = scored_by(wave), scored_by(other_wave)
    with watched() as draws:
        output = found(
            tree_search, language_model(), score=pruner, final_score=chooser, passes=2, **tree
        )
    expected = reference.tree(prompt_lists(), wave, iter(draws), final_score=other_wave, **tree)
    assert response_lists(output.batch) == expected
    lengths = torch.tensor(PROMPT_LENGTHS)
    read = 2 * 4 * (lengths + 2 + lengths + 4) + 4 * (lengths + 6)
    assert output.scorer_positions.tolist() == read.tolist()
    assert output.lm_positions.tolist() == (lengths - 1 + 4 * 6).tolist()


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma3_text", "bloom"])
def test_logits_are_those_of_each_text_alone(architecture):
    how = "eager" if architecture == "bloom" else "sdpa"
    model = language_model(architecture, attn_implementation=how)
    with watched(model):
        for search, settings in (
            (tree_search, {"keep": 2, "children": 2, "lengths": [4, 4]}),
            (speculative_rejection, {"n": 4, "check_every": 3}),
        ):
            found(search, model, options={"max_new_tokens": 8, "eos_token_ids": ENDS}, **settings)


def test_models_whose_cache_cannot_be_cut_read_again(monkeypatch):
    model, tree = language_model(), {"keep": 1, "children": 2, "lengths": [3, 3]}
    expected = found(tree_search, model, **tree)
    plain = BranchingTexts.__init__

    def recurrent(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self._text.croppable = False

    monkeypatch.setattr(BranchingTexts, "__init__", recurrent)
    with watched(model):
        output = found(tree_search, model, **tree)
    assert response_lists(output.batch) == response_lists(expected.batch)
    assert (output.lm_positions > expected.lm_positions).all()


def test_one_chunk_at_a_time_is_plain_sampling():
    model = language_model()
    output = found(tree_search, model, keep=1, children=1, lengths=[2, 2, 2])
    torch.testing.assert_close(output.batch.response_ids, generated(model, 1, 6))
    cut = found(tree_search, model, keep=1, children=1, lengths=[4, 2], options={"top_k": 3})
    assert not torch.equal(cut.batch.response_ids, output.batch.response_ids)


def test_one_layer_is_the_best_of_n():
    model = language_model()
    model.generation_config.eos_token_id = list(ENDS)
    drawn = generated(model, 5, 6).view(3, 5, -1)
    one_layer = found(
        tree_search, model, keep=1, children=5, lengths=[6], options={"eos_token_ids": ENDS}
    )
    unrejected = found(
        speculative_rejection,
        model,
        n=5,
        rejection_share=0.0,
        check_every=2,
        options={"eos_token_ids": ENDS},
    )
    for row, prompt in enumerate(prompt_lists()):
        texts = [[t for t in text if t != PAD_ID] for text in drawn[row].tolist()]
        best = max(texts, key=lambda text: wave([*prompt, *text]))
        assert response_lists(one_layer.batch)[row] == best
        assert response_lists(unrejected.batch)[row] == best
        written = sum(map(len, texts))
        for output in (one_layer, unrejected):
            assert int(output.lm_positions[row]) == len(prompt) - 1 + written
            assert int(output.scorer_positions[row]) == 5 * len(prompt) + written


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("ends", [(), ENDS], ids=["endless", "ends"])
def test_early_rejection_is_that_of_the_slow_loop(share, ends):
    settings = {"n": 6, "rejection_share": share, "check_every": 2}
    with watched() as draws:
        output = found(
            speculative_rejection,
            language_model(),
            options={"max_new_tokens": 7, "eos_token_ids": ends},
            **settings,
        )
    expected = reference.speculative(
        prompt_lists(), wave, iter(draws), n=6, share=share, every=2, longest=7, ends=ends
    )
    assert response_lists(output.batch) == expected
    for prompt, response, score in zip(prompt_lists(), expected, output.scores, strict=True):
        assert float(score) == pytest.approx(wave([*prompt, *response]), abs=1e-3)


def test_rejection_saves_what_it_rejects():
    score = scored_by(wave)
    output = found(speculative_rejection, language_model(), score=score, n=4, check_every=3, seed=1)
    lengths = torch.tensor(PROMPT_LENGTHS)
    assert output.lm_positions.tolist() == (lengths - 1 + 4 * 3 + 2 * 3).tolist()
    assert output.scorer_positions.tolist() == (4 * (lengths + 3) + 2 * (lengths + 6)).tolist()
    assert int(output.scorer_positions.sum()) == sum(map(len, score.asked))


@pytest.mark.parametrize(
    ("search", "settings"),
    [
        (tree_search, {"keep": 2, "children": 2, "lengths": [2, 4]}),
        (speculative_rejection, {"n": 3, "check_every": 2}),
    ],
)
def test_neither_the_batch_nor_padding_changes_a_greedy_response(search, settings):
    model, options = language_model(), sampling(temperature=0.0, eos_token_ids=ENDS)
    ids, mask = prompts()
    together = search(model, ids, mask, scored_by(wave), **options, **settings)
    dirty = torch.nn.functional.pad(ids, (3, 0), value=5)
    wide = search(
        model,
        dirty,
        torch.nn.functional.pad(mask, (3, 0)),
        scored_by(wave),
        **options,
        **settings,
    )
    assert response_lists(wide.batch) == response_lists(together.batch)
    for row, prompt in enumerate(prompt_lists()):
        alone = search(
            model,
            torch.tensor([prompt]),
            torch.ones(1, len(prompt)).bool(),
            scored_by(wave),
            **options,
            **settings,
        )
        assert response_lists(alone.batch)[0] == response_lists(together.batch)[row]
        for name in ("lm_positions", "scorer_positions"):
            assert int(getattr(alone, name)) == int(getattr(together, name)[row])


def test_the_seed_decides():
    tree = {"keep": 2, "children": 2, "lengths": [3, 3]}
    first, again, other = (
        found(tree_search, language_model(), seed=seed, **tree) for seed in (1, 1, 2)
    )
    assert response_lists(first.batch) == response_lists(again.batch)
    assert response_lists(first.batch) != response_lists(other.batch)


def test_no_response_ends_too_early():
    options = {"eos_token_ids": tuple(range(2, 39)), "min_new_tokens": 4}
    output = found(
        tree_search, language_model(), keep=1, children=2, lengths=[2, 4], options=options
    )
    assert min(map(len, response_lists(output.batch))) >= 4


def test_what_is_suppressed_is_not_drawn_and_what_is_forced_is_drawn_last():
    plain = response_lists(found(tree_search, language_model(), **TREE).batch)
    often = {token for response in plain for token in response} - {38, 39}
    options = {"suppress_tokens": tuple(often), "eos_token_ids": (39, 38), "force_eos": True}
    output = found(tree_search, language_model(), options=options, **TREE)
    responses = response_lists(output.batch)
    assert often.isdisjoint(token for response in responses for token in response)
    assert {response[-1] for response in responses} <= {38, 39}


def test_a_suppressed_id_that_is_none():
    with pytest.raises(ConfigError, match="ids from 0 to 40"):
        found(tree_search, language_model(), options={"suppress_tokens": (41,)}, **TREE)


def test_a_prompt_of_one_token():
    model = language_model()
    with watched(model):
        tree_search(
            model,
            tiny_ids(2, 1),
            torch.ones(2, 1).bool(),
            scored_by(wave),
            **sampling(),
            keep=1,
            children=2,
            lengths=[1, 5],
        )


@pytest.mark.parametrize(
    ("search", "settings", "message"),
    [
        (tree_search, {"keep": 1, "children": 2, "lengths": [0, 6]}, "layers have"),
        (tree_search, {"keep": 0, "children": 2, "lengths": [6]}, "keep is 0"),
        (tree_search, {"keep": 1, "children": 2, "lengths": [2, 2]}, "6 tokens in all"),
        (speculative_rejection, {"n": 0}, "n is 0"),
        (speculative_rejection, {"n": 2, "check_every": 0}, "check_every 0"),
        (speculative_rejection, {"n": 2, "rejection_share": 1.0}, "rejection_share is 1.0"),
    ],
)
def test_settings_out_of_range(search, settings, message):
    with pytest.raises(ConfigError, match=message):
        found(search, language_model(), **settings)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2, "min_new_tokens": 3},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
    ],
    ids=str,
)
def test_sampling_out_of_range(options):
    with pytest.raises(ConfigError, match="expected"):
        sampling(**options)


def test_a_score_that_is_no_number_names_the_prompt():
    bad = prompt_lists()[1]

    def score(text):
        return math.nan if text[: len(bad)] == bad and len(text) > 7 else 0.0

    for search, settings in (
        (tree_search, {"keep": 1, "children": 2, "lengths": [3, 3]}),
        (speculative_rejection, {"n": 4, "check_every": 2}),
    ):
        with pytest.raises(NumericError, match=r"prompts are NaN or infinite in rows \[1\]"):
            found(search, language_model(), score=scored_by(score), **settings)


def test_prompts_that_do_not_fit():
    model = language_model("gpt2", max_position_embeddings=12)
    settings = {"keep": 1, "children": 2}
    found(tree_search, model, lengths=[6], **settings)
    with pytest.raises(DataError, match="13 tokens and GPT2LMHeadModel reads at most 12"):
        found(tree_search, model, lengths=[7], options={"max_new_tokens": 7}, **settings)
    with pytest.raises(DataError, match="a prompt is empty"):
        tree_search(
            model,
            tiny_ids(2, 3),
            padding_mask([3, 0], side="left", width=3),
            scored_by(wave),
            **sampling(),
            lengths=[6],
            **settings,
        )


def test_a_model_in_training_mode():
    with pytest.raises(ModelError, match="training mode"):
        found(tree_search, language_model().train(), keep=1, children=2, lengths=[6])
