import math

import pytest
import reference.decoding as reference
import torch
from tiny_guides import language_model, next_logits_of, prompts, responses, score_of
from tiny_models import DECODERS, PAD_ID, VOCAB_SIZE, tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.decoding.candidates.hf_packed import PackedScorer
from tokencredit.decoding.candidates.hf_scorers import FullScorer, RowsScorer, VocabScorer
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScores
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError, ShapeError

SCORERS = [FullScorer, RowsScorer, PackedScorer]
cases = [
    pytest.param(architecture, implementation, id=f"{architecture}-{implementation}")
    for architecture in DECODERS
    for implementation in ("sdpa", "eager")
    if (architecture, implementation) != ("gemma2", "sdpa")
]


def toy_scorer(values):
    """Scores a text by the values of its tokens, each but the first times that before it."""

    def scorer(batch):
        told = values[batch.text_ids].masked_fill(~batch.text_mask, 0.0)
        prefix = told[:, 0] + (told[:, 1:] * told[:, :-1]).sum(-1)
        added = values[batch.candidate_ids] * told[:, -1:]
        return CandidateScores(prefix[:, None] + added, prefix)

    scorer.vocab = None
    return scorer


@pytest.mark.parametrize(("architecture", "implementation"), cases)
def test_all_scorers_give_the_same_tokens(architecture, implementation):
    model = language_model()
    reward_model = tiny_model(architecture, attn_implementation=implementation)
    ids, mask = prompts()
    found = [
        responses(model, RewardGuide(scorer(reward_model), guidance_beta=2.0, top_k=4), ids, mask)
        for scorer in SCORERS
    ]
    plain = model.generate(ids, attention_mask=mask.long(), max_new_tokens=8, do_sample=False)[
        :, ids.shape[1] :
    ]
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    assert found[0].tolist() != plain.tolist(), "the reward model had no say"


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_tokens_are_those_of_the_slow_loop(architecture, scorer):
    model, reward_model = language_model(architecture), tiny_model("mistral")
    ids, mask = prompts()
    guide = RewardGuide(scorer(reward_model), guidance_beta=1.0, top_k=5)
    batch = responses(model, guide, ids, mask)
    for row in range(len(ids)):
        own = ids[row][mask[row]]
        expected = reference.greedy_response(
            next_logits_of(model),
            score_of(reward_model),
            own.tolist(),
            guidance_beta=1.0,
            top_k=5,
            steps=8,
        )
        assert batch[row].tolist() == expected
        alone = responses(model, guide, own[None], torch.ones_like(own[None]).bool())
        assert alone[0].tolist() == expected, "of the same object, used again"


def test_no_weight_gives_what_the_language_model_gives():
    model = language_model()
    ids, mask = prompts()
    scorer = PackedScorer(tiny_model("llama"))
    for sampling in ({}, {"do_sample": True, "top_k": 6, "temperature": 0.8}):
        settings = {"do_sample": False, "max_new_tokens": 8} | sampling
        torch.manual_seed(3)
        plain = model.generate(ids, attention_mask=mask.long(), **settings)
        torch.manual_seed(3)
        guide = RewardGuide(scorer, guidance_beta=0.0, top_k=6)
        assert responses(model, guide, ids, mask, **settings).tolist() == (
            plain[:, ids.shape[1] :].tolist()
        )


def test_one_candidate_is_greedy_search():
    model = language_model()
    ids, mask = prompts()
    guide = RewardGuide(PackedScorer(tiny_model("llama")), guidance_beta=9.0, top_k=1)
    plain = model.generate(ids, attention_mask=mask.long(), max_new_tokens=8, do_sample=False)
    sampled = responses(model, guide, ids, mask, do_sample=True)
    assert sampled.tolist() == plain[:, ids.shape[1] :].tolist()


def test_responses_that_end_early_change_nothing_for_others():
    model = language_model()
    ids, mask = prompts()
    reward_model = tiny_model("gpt2")
    guide = RewardGuide(PackedScorer(reward_model), guidance_beta=1.0, top_k=4)
    endless = responses(model, guide, ids, mask)
    end = int(endless[0, 2])
    ended = responses(model, guide, ids, mask, eos_token_id=end)
    for row in range(len(ids)):
        tokens = endless[row].tolist()
        stop = tokens.index(end) + 1 if end in tokens else len(tokens)
        assert ended[row, :stop].tolist() == tokens[:stop]
    assert ended[0, 3:].tolist() == [PAD_ID] * (ended.shape[1] - 3)


def test_rows_that_ended_are_not_scored():
    seen = []

    def scorer(batch):
        seen.append(batch.active.tolist())
        scores = torch.zeros(batch.candidate_ids.shape).masked_fill(~batch.candidate_mask, math.nan)
        return CandidateScores(scores, torch.zeros(len(batch.text_ids)))

    scorer.vocab = None
    model = language_model()
    ids, mask = prompts()
    plain = model.generate(ids, attention_mask=mask.long(), max_new_tokens=6, do_sample=False)
    plain = plain[:, ids.shape[1] :].tolist()
    end = plain[0][2]
    guide = RewardGuide(
        scorer, guidance_beta=1.0, attention_mask=mask, eos_token_id=[end, VOCAB_SIZE + 3]
    )
    responses(model, guide, ids, mask, eos_token_id=end, max_new_tokens=6)
    expected = [[end not in tokens[:step] for tokens in plain] for step in range(6)]
    assert seen == [step for step in expected if any(step)]
    assert not all(seen[-1])


def test_sampling_follows_the_enumerated_law():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(VOCAB_SIZE, generator=generator) * 1.5
    scorer = toy_scorer(values)
    model = language_model()
    prompt = tiny_ids(1, 4)

    def score(ids):
        counts = torch.ones(1, len(ids) - 1, dtype=torch.bool)
        told = scorer(
            CandidateBatch(
                torch.tensor([ids[:-1]]), counts, torch.tensor([[ids[-1]]]), counts[:, :1]
            )
        )
        return float(told.candidates)

    law = reference.response_law(
        next_logits_of(model),
        score,
        prompt[0].tolist(),
        guidance_beta=0.7,
        top_k=3,
        steps=2,
        temperature=0.8,
    )
    draws = 4000
    torch.manual_seed(1)
    batch = prompt.expand(draws, -1)
    found = responses(
        model,
        RewardGuide(scorer, guidance_beta=0.7, top_k=3),
        batch,
        torch.ones_like(batch).bool(),
        do_sample=True,
        temperature=0.8,
        max_new_tokens=2,
    )
    counts = dict.fromkeys(law, 0)
    for row in found.tolist():
        counts[tuple(row)] += 1
    distance = sum(abs(counts[r] / draws - p) for r, p in law.items()) / 2
    error = sum(math.sqrt(p * (1 - p) / draws) for p in law.values()) / 2
    assert len(law) == 9
    assert distance < 2 * error
    plain = reference.response_law(
        next_logits_of(model), score, prompt[0].tolist(), guidance_beta=0, top_k=3, steps=2
    )
    far = sum(abs(counts[r] / draws - p) for r, p in plain.items()) / 2
    assert far > 4 * error, "the language model's own law would pass as well"


def test_beams_find_the_best_text_not_the_best_sum_of_prefixes():
    overrides = {"vocab_size": 6, "pad_token_id": None, "bos_token_id": None}
    model = language_model(**overrides)
    reward_model = tiny_model("llama", **overrides)
    prompt = [3, 2, 5]
    guide = RewardGuide(PackedScorer(reward_model), guidance_beta=1.5, top_k=0)
    found = model.generate(
        torch.tensor([prompt]),
        logits_processor=[guide],
        num_beams=36,
        max_new_tokens=3,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=0,
    )
    expected = reference.best_response(
        next_logits_of(model), score_of(reward_model), prompt, guidance_beta=1.5, steps=3
    )
    assert tuple(found[0, 3:].tolist()) == expected


@pytest.mark.parametrize("scorer", SCORERS)
def test_beams_of_a_padded_batch(scorer):
    model = language_model()
    ids, mask = prompts()
    guide = RewardGuide(scorer(tiny_model("gpt2")), guidance_beta=3.0, top_k=4)
    found = responses(model, guide, ids, mask, num_beams=3, max_new_tokens=5)
    for row in range(len(ids)):
        own = ids[row][mask[row]][None]
        alone = responses(
            model, guide, own, torch.ones_like(own).bool(), num_beams=3, max_new_tokens=5
        )
        assert found[row].tolist() == alone[0].tolist()


def test_assisted_generation_gives_the_same_tokens():
    model, assistant = language_model(), language_model("gpt2")
    ids = tiny_ids(1, 6, seed=5)
    counts = torch.ones_like(ids).bool()
    guide = RewardGuide(PackedScorer(tiny_model("llama")), guidance_beta=1.0, top_k=4)
    plain = responses(model, guide, ids, counts)
    assisted = responses(model, guide, ids, counts, assistant_model=assistant)
    assert assisted.tolist() == plain.tolist()


def test_clipped_scores_tell_no_more_than_their_ends():
    def far(batch):
        return CandidateScores(batch.candidate_ids.float() * 100 - 900, torch.full((1,), 7.0))

    far.vocab = None
    guide = RewardGuide(far, guidance_beta=2.0, top_k=0, clip=(0.0, 1.0))
    guided = guide(tiny_ids(1, 3), torch.zeros(1, 20))
    expected = 2.0 * ((torch.arange(20) * 100 - 900).clamp(0, 1) - 1.0)
    torch.testing.assert_close(guided[0], expected)


def test_standardised_scores_do_not_depend_on_their_scale():
    model = language_model()
    ids, mask = prompts()
    reward_model = tiny_model("llama")
    options = {"guidance_beta": 2.0, "top_k": 5, "standardise": True}
    guide = RewardGuide(PackedScorer(reward_model), **options)
    first = responses(model, guide, ids, mask)
    assert responses(model, guide, ids, mask).tolist() == first.tolist()
    alone = responses(model, guide, ids[1:2, 3:], mask[1:2, 3:])
    assert alone[0].tolist() == first[1].tolist()
    with torch.no_grad():
        reward_model.score.weight *= 16.0
    scaled = responses(model, RewardGuide(PackedScorer(reward_model), **options), ids, mask)
    assert scaled.tolist() == first.tolist()
    plain = RewardGuide(PackedScorer(reward_model), guidance_beta=2.0, top_k=5)
    assert responses(model, plain, ids, mask).tolist() != first.tolist()


def test_values_in_the_logits_of_a_second_model():
    model = language_model()
    value_model = tiny_model("gpt2", auto_class=AutoModelForCausalLM)
    ids, mask = prompts()
    guide = RewardGuide(VocabScorer(value_model, scores="logits"), guidance_beta=1.0, top_k=0)
    found = responses(model, guide, ids, mask)
    for row in range(len(ids)):
        text = ids[row][mask[row]].tolist()
        for token in found[row].tolist():
            sums = [
                a + b
                for a, b in zip(
                    next_logits_of(model)(text), next_logits_of(value_model)(text), strict=True
                )
            ]
            assert token == max(range(VOCAB_SIZE), key=sums.__getitem__)
            text.append(token)


def test_tokens_that_the_reward_model_does_not_know_are_no_candidates():
    model = language_model()
    reward_model = tiny_model("llama", vocab_size=30, pad_token_id=None)
    ids, mask = prompts()
    ids = (ids % 30).masked_fill(~mask, PAD_ID)
    guide = RewardGuide(PackedScorer(reward_model), guidance_beta=0.0, top_k=VOCAB_SIZE)
    found = responses(model, guide, ids, mask)
    banned = [[token] for token in range(30, VOCAB_SIZE)]
    plain = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=8, do_sample=False, bad_words_ids=banned
    )
    assert found.tolist() == plain[:, ids.shape[1] :].tolist()
    assert int(found.max()) < 30
    wrong = ids.clone()
    wrong[0, -1] = 33
    with pytest.raises(ModelError, match=r"ids \[33\] and the reward model knows those below 30"):
        responses(model, guide, wrong, mask)


def test_more_candidates_than_tokens():
    guide = RewardGuide(PackedScorer(tiny_model("llama")), guidance_beta=1.0, top_k=VOCAB_SIZE + 1)
    with pytest.raises(ConfigError, match=f"top_k is {VOCAB_SIZE + 1}"):
        responses(language_model(), guide, *prompts())


@pytest.mark.parametrize("scorer", SCORERS)
def test_scores_that_are_no_numbers(scorer):
    reward_model = tiny_model("llama")
    with torch.no_grad():
        reward_model.score.weight[0, 0] = math.nan
    guide = RewardGuide(scorer(reward_model), guidance_beta=1.0)
    with pytest.raises(NumericError, match=r"rows \[0, 1, 2\]"):
        responses(language_model(), guide, *prompts())


def test_a_text_that_outgrows_the_reward_model():
    reward_model = tiny_model("gpt2", max_position_embeddings=9)
    guide = RewardGuide(PackedScorer(reward_model), guidance_beta=1.0)
    assert responses(language_model(), guide, *prompts(), max_new_tokens=3).shape == (3, 3)
    with pytest.raises(DataError, match="10 tokens and GPT2ForSequenceClassification reads at mos"):
        responses(language_model(), guide, *prompts(), max_new_tokens=4)


def test_the_mask_of_other_prompts():
    ids, mask = prompts()
    guide = RewardGuide(PackedScorer(tiny_model("llama")), guidance_beta=1.0, attention_mask=mask)
    for wrong in (ids[:2], ids[:, :4]):
        with pytest.raises(ShapeError, match="the mask of their prompts"):
            guide(wrong, torch.zeros(len(wrong), VOCAB_SIZE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos_token_id": 1}, "without attention_mask"),
        ({"clip": (1.0, 0.0)}, "smallest and the"),
        ({"clip": (0.0, 1.0), "standardise": True}, "without standardise"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ConfigError, match=message):
        RewardGuide(PackedScorer(tiny_model("llama")), guidance_beta=1.0, **options)


def test_what_was_known_at_the_last_step():
    model, reward_model = language_model(), tiny_model("llama")
    ids, mask = prompts()
    guide = RewardGuide(PackedScorer(reward_model), guidance_beta=1.0, top_k=3)
    found = responses(model, guide, ids, mask, max_new_tokens=2)
    step = guide.last_step
    text = [*ids[1][mask[1]].tolist(), int(found[1, 0])]
    logprobs = torch.tensor(next_logits_of(model)(text)).log_softmax(-1)
    torch.testing.assert_close(step.logprobs[1], logprobs, rtol=1e-4, atol=1e-5)
    assert step.candidate_ids[1].tolist() == logprobs.topk(3).indices.tolist()
    score = score_of(reward_model)
    assert float(step.prefix_scores[1]) == pytest.approx(score(text), rel=1e-4)
    expected = [score([*text, token]) for token in step.candidate_ids[1].tolist()]
    assert step.candidate_scores[1].tolist() == pytest.approx(expected, rel=1e-4)
