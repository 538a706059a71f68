import math

import pytest
import reference.search as reference
import torch
from search_runs import prompt_lists, response_lists, sampling, scored_by, watched, wave
from tiny_guides import PROMPT_LENGTHS, language_model, next_logits_of, prompts

from tokencredit.decoding.search import hf_cascade
from tokencredit.decoding.search.hf_cascade import cascade_sampling
from tokencredit.errors import ConfigError, DataError, NumericError

ENDS = (3, 7, 12, 20, 33)


def found(model, *, score=None, seed=0, options=None, **settings):
    ids, mask = prompts()
    settings = {"target_reward": 2.0, "min_segment_tokens": 1, "max_segment_tokens": 3} | settings
    return cascade_sampling(
        model,
        ids,
        mask,
        score or scored_by(wave),
        **sampling(**(options or {})),
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )


def entropy_of(model):
    next_logits = next_logits_of(model)

    def entropy(text):
        logprobs = reference_log_softmax(next_logits(text))
        return -sum(math.exp(x) * x for x in logprobs)

    return entropy


def reference_log_softmax(logits):
    from reference.decoding import log_softmax

    return log_softmax(logits)


@pytest.fixture
def luck(monkeypatch):
    """Probabilities and outcomes of every round."""
    rounds = []
    plain = hf_cascade._happens

    def happens(probabilities, wanted, generator):
        outcome = plain(probabilities, wanted, generator)
        rounds.append((probabilities.tolist(), outcome.tolist()))
        return outcome

    monkeypatch.setattr(hf_cascade, "_happens", happens)
    return rounds


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize(
    ("target", "proposals"), [(1.0, 20), (6.0, 3), (50.0, 2)], ids=["easy", "hard", "never"]
)
def test_segments_are_those_of_the_slow_loop(luck, architecture, target, proposals):
    model = language_model(architecture)
    entropy = entropy_of(model)
    middle = sorted(entropy(prompt) for prompt in prompt_lists())[1]
    with watched(model) as draws:
        output = found(
            model,
            target_reward=target,
            acceptance_beta=0.8,
            threshold_start=0.3,
            entropy_threshold=middle,
            max_segment_tokens=4,
            max_proposals=proposals,
            options={"max_new_tokens": 9, "eos_token_ids": ENDS},
        )
    expected = reference.cascade(
        prompt_lists(),
        wave,
        entropy,
        iter(draws),
        iter(luck),
        target=target,
        beta=0.8,
        start=0.3,
        uncertain=middle,
        least=1,
        most=4,
        proposals=proposals,
        longest=9,
        ends=ENDS,
    )
    assert response_lists(output.batch) == expected
    for prompt, response, score in zip(prompt_lists(), expected, output.scores, strict=True):
        assert float(score) == pytest.approx(wave([*prompt, *response]), abs=1e-3)
    rejected = sum(not all(outcome) for _, outcome in luck)
    assert rejected > 0


def test_a_target_of_minus_infinity_is_plain_sampling():
    model = language_model()
    ids, mask = prompts()
    torch.manual_seed(0)
    drawn = model.generate(
        ids, attention_mask=mask.long(), do_sample=True, top_k=0, max_new_tokens=6
    )[:, ids.shape[1] :]
    score = scored_by(wave)
    output = found(model, target_reward=-math.inf, entropy_threshold=math.inf, score=score)
    assert output.batch.response_ids.tolist() == drawn.tolist()
    lengths = torch.tensor(PROMPT_LENGTHS)
    assert output.lm_positions.tolist() == (lengths - 1 + 6).tolist()
    assert output.scorer_positions.tolist() == (3 * lengths + 3 + 6).tolist()
    # One prompt whose segments end wherever the next token is uncertain: the same tokens still.
    prompt = torch.tensor(prompt_lists()[1:2])
    torch.manual_seed(0)
    alone = model.generate(prompt, do_sample=True, top_k=0, max_new_tokens=6)
    cut = cascade_sampling(
        model,
        prompt,
        torch.ones_like(prompt).bool(),
        scored_by(wave),
        **sampling(),
        target_reward=-math.inf,
        entropy_threshold=0.0,
        min_segment_tokens=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert cut.batch.response_ids.tolist() == alone[:, prompt.shape[1] :].tolist()


def test_the_law_of_what_is_accepted():
    """Two tokens drawn from three each: nine segments, each as probable as it should be."""
    model, rows = language_model(), 1200
    prompt = prompt_lists()[1]
    next_logits, score = next_logits_of(model), lambda text: wave(text[len(prompt) :])

    def three(text):
        logits = next_logits(text)
        kept = sorted(range(len(logits)), key=lambda v: -logits[v])[:3]
        total = sum(math.exp(logits[v] / 3) for v in kept)
        return {v: math.exp(logits[v] / 3) / total for v in kept}

    proposals = {
        (first, second): p * q
        for first, p in three(prompt).items()
        for second, q in three([*prompt, first]).items()
    }
    scores = {segment: score([*prompt, *segment]) for segment in proposals}
    expected = reference.accepted_law(proposals, scores, 0.0, beta=0.7)
    ids = torch.tensor([prompt] * rows)
    output = cascade_sampling(
        model,
        ids,
        torch.ones_like(ids).bool(),
        scored_by(score),
        **sampling(2, top_k=3, temperature=3.0),
        target_reward=0.0,
        entropy_threshold=math.inf,
        max_proposals=10_000,
        max_segment_tokens=64,
        generator=torch.Generator().manual_seed(0),
    )
    drawn = [tuple(text) for text in response_lists(output.batch)]
    assert set(drawn) <= set(expected)
    distance = sum(abs(drawn.count(s) / rows - p) for s, p in expected.items()) / 2
    plain = sum(abs(proposals[s] - p) for s, p in expected.items()) / 2
    assert distance < 0.05 < 0.3 < plain


def test_the_best_of_what_is_rejected_is_taken(luck):
    score = scored_by(wave)
    output = found(
        language_model(),
        score=score,
        target_reward=1e6,
        max_segment_tokens=6,
        entropy_threshold=math.inf,
        max_proposals=5,
    )
    for row, prompt in enumerate(prompt_lists()):
        tried = [t for t in score.asked if t[: len(prompt)] == prompt and len(t) > len(prompt)]
        best = max(tried, key=wave)
        assert response_lists(output.batch)[row] == best[len(prompt) :]
        assert int(output.lm_positions[row]) == len(prompt) - 1 + 5 * 6 + 6


def test_neither_the_batch_nor_padding_changes_a_greedy_response():
    model, options = language_model(), sampling(9, temperature=0.0, eos_token_ids=ENDS)
    ids, mask = prompts()
    settings = {"target_reward": 50.0, "max_proposals": 2, "entropy_threshold": 1.0}
    score = scored_by(wave)
    together = cascade_sampling(model, ids, mask, score, **options, **settings)
    wide_ids = torch.nn.functional.pad(ids, (2, 0), value=5)
    wide_mask = torch.nn.functional.pad(mask, (2, 0))
    wide = cascade_sampling(model, wide_ids, wide_mask, score, **options, **settings)
    assert response_lists(wide.batch) == response_lists(together.batch)
    for row, prompt in enumerate(prompt_lists()):
        alone_ids = torch.tensor([prompt])
        alone = cascade_sampling(
            model, alone_ids, torch.ones_like(alone_ids).bool(), score, **options, **settings
        )
        assert response_lists(alone.batch)[0] == response_lists(together.batch)[row]
        for name in ("lm_positions", "scorer_positions"):
            assert int(getattr(alone, name)) == int(getattr(together, name)[row])


def test_the_seed_decides():
    first, again, other = (
        found(language_model(), seed=seed, max_proposals=2) for seed in (1, 1, 2)
    )
    assert response_lists(first.batch) == response_lists(again.batch)
    assert response_lists(first.batch) != response_lists(other.batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_proposals": 0}, "max_proposals is 0"),
        ({"max_segment_tokens": 0}, "max_segment_tokens 0"),
        ({"target_reward": math.inf}, "target_reward is inf"),
        ({"target_reward": math.nan}, "target_reward is nan"),
        ({"acceptance_beta": math.nan}, "acceptance_beta is nan"),
        ({"entropy_threshold": math.nan}, "entropy_threshold is nan"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        found(language_model(), **settings)


def test_a_score_that_is_no_number_names_the_prompt():
    bad = prompt_lists()[2]
    score = scored_by(lambda text: math.inf if text[: len(bad)] == bad else 0.0)
    with pytest.raises(NumericError, match=r"rows \[2\]"):
        found(language_model(), score=score)


def test_prompts_that_do_not_fit():
    model = language_model("gpt2", max_position_embeddings=12)
    found(model, max_proposals=2)
    with pytest.raises(DataError, match="13 tokens and GPT2LMHeadModel reads at most 12"):
        found(model, options={"max_new_tokens": 7})
