import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tokencredit.errors import ConfigError, DataError
from tokencredit.logprobs import predicting_positions, token_logprobs
from tokencredit.models.hf_sampling import response_extent
from tokencredit.policy.hf_models import ActorCritic
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.sampling import Sampling, drawable_tokens, sampling_logits

VOCAB, PAD, EOS = 7, 0, 1


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def drawn(model, rows, sampling, **extra):
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
    settings = {"pad_token_id": PAD, "eos_token_id": EOS, **extra}
    return sampled_responses(model, ids, mask, sampling=sampling, **settings)


def first_token_frequencies(model, row, sampling, draws=6000):
    batch, _ = drawn(model, [row] * draws, sampling)
    return torch.bincount(batch.response_ids[:, 0], minlength=VOCAB) / draws


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=1),
        Sampling(max_new_tokens=1, temperature=0.6),
        Sampling(max_new_tokens=1, temperature=1.7, suppress_tokens=(3, 5)),
        Sampling(max_new_tokens=1, min_new_tokens=1),
        Sampling(max_new_tokens=1, top_k=3),
        Sampling(max_new_tokens=1, top_p=0.7, temperature=1.3),
        Sampling(max_new_tokens=1, force_eos=True),
    ],
)
def test_tokens_are_drawn_from_the_distribution_that_is_scored(model, sampling):
    row = [2, 4, 6]
    logits = model(input_ids=torch.tensor([row])).logits[0, -1]
    expected = sampling_logits(logits, drawable_tokens(sampling, VOCAB, EOS)[0], sampling)
    frequencies = first_token_frequencies(model, row, sampling)
    probabilities = expected.softmax(-1)
    assert (frequencies[probabilities == 0] == 0).all()
    noise = 4 * (probabilities * (1 - probabilities) / 6000).sqrt()
    assert ((frequencies - probabilities).abs() <= noise + 1e-9).all()


def test_generation_defaults_of_the_model_do_not_leak(model):
    model.generation_config = GenerationConfig(suppress_tokens=[2, 3, 4, 5, 6], top_k=1)
    frequencies = first_token_frequencies(model, [2, 4], Sampling(max_new_tokens=1), draws=500)
    assert (frequencies[2:] > 0).sum() >= 3
    assert model.generation_config.top_k == 1


def test_generation_defaults_come_back_behind_adapters_too(model):
    own = GenerationConfig(suppress_tokens=[2, 3, 4, 5, 6], eos_token_id=[1, 5], top_k=1)
    model.generation_config = own
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2))
    frequencies = first_token_frequencies(adapted, [2, 4], Sampling(max_new_tokens=1), draws=200)
    assert (frequencies[2:] > 0).sum() >= 3
    assert adapted.generation_config is model.generation_config is own


def test_each_of_several_ends_ends_a_response(model):
    batch, truncated = drawn(
        model, [[2, 4]] * 200, Sampling(max_new_tokens=4), eos_token_id=(EOS, 5, 6)
    )
    ended = [not cut for cut in truncated.tolist()]
    masked = zip(batch.response_ids, batch.response_mask, strict=True)
    rows = [ids[mask].tolist() for ids, mask in masked]
    assert {row[-1] for row, over in zip(rows, ended, strict=True) if over} == {EOS, 5, 6}
    assert all({EOS, 5, 6}.isdisjoint(row[:-1]) for row in rows)
    assert [row[-1] in (EOS, 5, 6) for row in rows] == ended


def test_left_padding_changes_no_logprob(model):
    sampling = Sampling(max_new_tokens=4, min_new_tokens=4)
    batch, _ = drawn(model, [[2], [3, 4, 5, 6]], sampling)
    actor_critic = ActorCritic(model)

    def logprobs(ids, mask):
        logits = predicting_positions(actor_critic(ids, mask, 4).logits, 4)
        return token_logprobs(logits, ids[:, -4:])

    padded = logprobs(batch.input_ids, batch.attention_mask)
    alone = logprobs(batch.input_ids[:1, 3:], batch.attention_mask[:1, 3:])
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-5)


def test_response_includes_its_first_end_and_nothing_behind():
    mask, ended = response_extent(torch.tensor([[4, EOS, 5], [4, 5, 6], [EOS, EOS, 4]]), EOS)
    assert mask.tolist() == [[True, True, False], [True] * 3, [True, False, False]]
    assert ended.tolist() == [True, False, True]


def test_an_end_of_sequence_in_the_prompt_is_no_end(model):
    batch, truncated = drawn(model, [[EOS, 3]], Sampling(max_new_tokens=3, min_new_tokens=3))
    assert batch.lengths.tolist() == [3]
    assert truncated.tolist() == [True]


def test_lengths_drawn_beforehand_cut_each_row(model):
    batch, _ = drawn(
        model,
        [[2], [3], [4]],
        Sampling(max_new_tokens=4, suppress_tokens=(EOS,)),
        response_lengths=torch.tensor([1, 4, 2]),
    )
    assert batch.lengths.tolist() == [1, 4, 2]
    assert (batch.response_ids[~batch.response_mask] == PAD).all()


def test_forced_end_stands_last(model):
    batch, truncated = drawn(
        model, [[2], [3]], Sampling(max_new_tokens=3, min_new_tokens=2, force_eos=True)
    )
    assert (batch.response_ids[:, -1] == EOS).all()
    assert not truncated.any()


def test_empty_prompt_is_refused(model):
    ids = torch.tensor([[PAD, PAD]])
    with pytest.raises(DataError, match="prompt is empty"):
        sampled_responses(
            model,
            ids,
            ids.bool(),
            sampling=Sampling(max_new_tokens=1),
            pad_token_id=PAD,
            eos_token_id=EOS,
        )


def test_too_long_for_the_context_is_refused(model):
    with pytest.raises(DataError, match=r"has 35 tokens and .* reads at most 32"):
        drawn(model, [[2] * 5], Sampling(max_new_tokens=30))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 3, "min_new_tokens": 4},
        {"max_new_tokens": 3, "temperature": -0.5},
        {"max_new_tokens": 3, "temperature": math.inf},
        {"max_new_tokens": 3, "top_k": -1},
        {"max_new_tokens": 3, "top_p": 0.0},
    ],
)
def test_impossible_sampling_is_refused(settings):
    with pytest.raises(ConfigError, match="expected"):
        Sampling(**settings)


def test_the_most_probable_token_is_no_distribution_to_train_on(model):
    with pytest.raises(ConfigError, match="temperature is 0"):
        drawn(model, [[2, 4]], Sampling(max_new_tokens=1, temperature=0.0))


def test_no_end_comes_early_and_the_first_one_is_forced():
    sampling = Sampling(max_new_tokens=3, min_new_tokens=1, force_eos=True)
    drawable = drawable_tokens(sampling, 4, (1, 3)).tolist()
    assert drawable == [[True, False] * 2, [True] * 4, [False, True, False, False]]
    assert drawable_tokens(sampling, 4, ()).all()


def test_suppressing_an_unknown_id_is_refused():
    with pytest.raises(ConfigError, match="ids from 0 to 6"):
        drawable_tokens(Sampling(max_new_tokens=1, suppress_tokens=(7,)), VOCAB, EOS)
