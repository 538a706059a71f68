import copy
import math

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_models import PAD_ID, VOCAB_SIZE, padding_mask, tiny_ids, tiny_model
from tiny_tokenizers import byte_level, word_level
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from tokencredit.batch import ResponseBatch
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    TokenCreditWarning,
)
from tokencredit.logprobs import token_entropies, token_logprobs
from tokencredit.models import hf_passes
from tokencredit.models.hf_logprobs import (
    response_entropies,
    response_logprobs,
    response_statistics,
)
from tokencredit.models.hf_vocabularies import require_same_vocabulary

SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": PAD_ID,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}


def causal(architecture, **overrides):
    attn = "eager" if architecture in {"bloom", "gemma2", "gpt_oss"} else "sdpa"
    return tiny_model(
        architecture, auto_class=AutoModelForCausalLM, attn_implementation=attn, **overrides
    )


def from_config(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


MODELS = {
    "gpt2": lambda: causal("gpt2"),
    "opt": lambda: causal("opt"),
    "opt projected": lambda: causal("opt", word_embed_proj_dim=16),
    "llama": lambda: causal("llama"),
    "qwen3": lambda: causal("qwen3"),
    "mistral": lambda: causal("mistral"),
    "bloom": lambda: causal("bloom"),
    "gpt_neox": lambda: causal("gpt_neox"),
    "gpt_oss": lambda: causal("gpt_oss"),
    "modernbert-decoder": lambda: causal("modernbert-decoder"),
    "gemma": lambda: causal("gemma"),
    "gemma2 soft cap": lambda: causal("gemma2", final_logit_softcapping=2.0),
    "gemma3": lambda: causal("gemma3_text"),
    "cohere scale": lambda: from_config(CohereConfig(**SHAPE, logit_scale=3.0)),
    "granite scale": lambda: from_config(GraniteConfig(**SHAPE, logits_scaling=0.2)),
}


@pytest.fixture
def batch() -> ResponseBatch:
    """Prompts of 3, 1, 5 and 2 tokens; responses of 4, 6, 0 tokens and one with a hole."""
    prompt_mask = padding_mask([3, 1, 5, 2], side="left")
    response_mask = padding_mask([4, 6, 0, 5])
    response_mask[3, [1, 2]] = False
    return ResponseBatch(tiny_ids(4, 5), prompt_mask, tiny_ids(4, 6, seed=1), response_mask)


def row_by_row(model, batch, statistic, temperature=1.0):
    """Each row alone, without padding, from all its logits."""
    result = torch.zeros(batch.response_mask.shape)
    real = batch.attention_mask.bool()
    width = batch.prompt_ids.shape[1]
    for row in range(len(batch)):
        if not batch.response_mask[row].any():
            continue
        ids = batch.input_ids[row, real[row]]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, -len(ids) :].float() / temperature
        columns = real[row].nonzero().flatten()
        for at in range(1, len(ids)):
            t = int(columns[at]) - width
            if t >= 0 and batch.response_mask[row, t]:
                result[row, t] = statistic(logits[at - 1].log_softmax(-1), ids[at])
    return result


def own_logprob(logprobs, token):
    return logprobs[token]


def entropy(logprobs, _token):
    return -(logprobs.exp() * logprobs).sum()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Peak:
    """The largest number of tokens that an output head saw at once, and of runs of a module."""

    def __init__(self, head, trunk):
        self.tokens, self.runs = 0, 0
        self.handles = [
            head.register_forward_hook(self.see),
            trunk.register_forward_hook(self.count),
        ]

    def see(self, _module, _inputs, output):
        self.tokens = max(self.tokens, output.shape[:-1].numel())

    def count(self, *_):
        self.runs += 1


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_models_own_logits_row_by_row(name, batch):
    model = MODELS[name]()
    expected = row_by_row(model, batch, own_logprob, temperature=0.7)
    found = response_logprobs(model, batch, temperature=0.7, chunk_size=4)
    assert_close(found, expected)
    assert found.dtype == torch.float32
    assert found[~batch.response_mask].eq(0).all()
    assert found[batch.response_mask].lt(0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2 soft cap"])
def test_equals_a_padded_forward_pass_with_positions_from_the_mask(name, batch):
    model = MODELS[name]()
    mask, time = batch.attention_mask, batch.response_ids.shape[1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
    ).logits[:, -time - 1 : -1]
    logprobs = token_logprobs(logits, batch.response_ids).masked_fill(~batch.response_mask, 0.0)
    assert_close(response_logprobs(model, batch), logprobs.detach())


def test_the_soft_cap_and_the_scale_matter(batch):
    capped, free = MODELS["gemma2 soft cap"](), causal("gemma2", final_logit_softcapping=None)
    scaled, plain = (from_config(CohereConfig(**SHAPE, logit_scale=scale)) for scale in (3.0, 1.0))
    for one, other, least in ((capped, free, 0.02), (scaled, plain, 0.5)):
        moved = (response_logprobs(one, batch) - response_logprobs(other, batch)).abs()
        assert moved[batch.response_mask].min() > least  # 0.027 and 0.82


@pytest.mark.parametrize("chunk_size", [1, 3, 512])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 3])
@pytest.mark.parametrize("tokens", [1, 20, 512])
def test_sizes_change_nothing(chunk_size, micro_batch_size, tokens, batch, monkeypatch):
    model = MODELS["llama"]()
    monkeypatch.setattr(hf_passes, "_CPU_TOKENS", tokens)
    sizes = {"chunk_size": chunk_size, "micro_batch_size": micro_batch_size}
    assert_close(response_logprobs(model, batch, **sizes), row_by_row(model, batch, own_logprob))
    assert_close(response_entropies(model, batch, **sizes), row_by_row(model, batch, entropy))


@pytest.mark.parametrize("name", ["gpt2", "gemma2 soft cap", "opt"])
def test_entropies(name, batch):
    model = MODELS[name]()
    found = response_entropies(model, batch, temperature=1.5, chunk_size=5)
    assert_close(found, row_by_row(model, batch, entropy, temperature=1.5))


def test_several_statistics_in_one_pass(batch):
    model = MODELS["llama"]()
    both = response_statistics(
        model,
        batch,
        lambda logits, ids: torch.stack([token_logprobs(logits, ids), token_entropies(logits)], -1),
        chunk_size=3,
    )
    assert both.shape == (*batch.response_mask.shape, 2)
    assert_close(both[..., 0], row_by_row(model, batch, own_logprob))
    assert_close(both[..., 1], row_by_row(model, batch, entropy))


def test_logits_exist_for_a_chunk_of_tokens_and_the_trunk_runs_once():
    model = MODELS["llama"]()
    layer = model.model.layers[0]
    peak = Peak(model.lm_head, layer)
    mask = torch.ones(2, 20, dtype=torch.bool)
    long = ResponseBatch(tiny_ids(2, 10), mask[:, :10], tiny_ids(2, 20, seed=1), mask)
    response_logprobs(model, long, chunk_size=4)
    assert peak.tokens == 4
    assert peak.runs == 1


def test_padding_and_what_it_holds_change_nothing(batch):
    model = MODELS["gpt2"]()
    wide = ResponseBatch(
        torch.cat([torch.full((4, 3), 10**6), batch.prompt_ids], -1),
        torch.cat([torch.zeros(4, 3, dtype=torch.bool), batch.prompt_mask], -1),
        torch.cat([batch.response_ids, torch.full((4, 2), -100)], -1),
        torch.cat([batch.response_mask, torch.zeros(4, 2, dtype=torch.bool)], -1),
    )
    found = response_logprobs(model, wide)
    assert_close(found[:, :6], response_logprobs(model, batch))
    assert found[:, 6:].eq(0).all()
    for row in range(4):
        alone = response_logprobs(model, batch[row : row + 1])
        assert_close(found[row : row + 1, :6], alone)


def test_no_response_tokens_at_all(batch):
    empty = ResponseBatch(
        batch.prompt_ids, batch.prompt_mask, batch.response_ids, torch.zeros(4, 6).bool()
    )
    assert response_logprobs(MODELS["gpt2"](), empty).tolist() == torch.zeros(4, 6).tolist()
    assert response_entropies(MODELS["gpt2"](), batch[:0]).shape == (0, 6)


def test_one_token_after_one_token():
    model = MODELS["gpt2"]()
    one = torch.ones(1, 1, dtype=torch.bool)
    found = response_logprobs(
        model, ResponseBatch(tiny_ids(1, 1), one, tiny_ids(1, 1, seed=3), one)
    )
    expected = model(tiny_ids(1, 1)).logits[0, 0].log_softmax(-1)[tiny_ids(1, 1, seed=3)[0, 0]]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_logits_are_normalised_in_float32(batch):
    model = MODELS["llama"]().to(torch.bfloat16)
    row, logits = batch[1:2], []
    with model.lm_head.register_forward_hook(lambda *seen: logits.append(seen[-1])):
        found = response_logprobs(model, row, chunk_size=5)
    assert found.dtype == torch.float32
    # Of the very logits of the head, after those of a trial, so that only sums in float32 are
    # rounded: next to 7 its numbers are 2^-21 apart, and those of bfloat16 2^-5.
    own = torch.cat(logits[-2:], dim=1)[0]
    assert own.dtype == torch.bfloat16
    exact = own.double().log_softmax(-1)
    expected = exact.gather(-1, row.response_ids.T).T
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=2**-20)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    equal = response_logprobs(model, batch)[batch.response_mask]
    # Next to -log 41 = -3.7136 numbers of float32 are 2^-22 apart, those of bfloat16 2^-6.
    torch.testing.assert_close(equal, torch.full_like(equal, -math.log(41)), rtol=0.0, atol=2**-21)


def test_no_gradient_no_trace_left(batch):
    model = MODELS["llama"]()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    assert not response_logprobs(model, batch).requires_grad
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    broken = copy.deepcopy(model)
    broken.lm_head.forward = lambda _hidden: 1 / 0
    with pytest.raises(ZeroDivisionError):
        response_logprobs(broken, batch)
    assert "forward" not in vars(broken.model)
    assert not any(module._forward_hooks for module in broken.modules())


def test_a_forward_that_someone_replaced_is_put_back(batch):
    model = MODELS["llama"]()
    expected = response_logprobs(model, batch)
    replaced = model.model.forward = lambda *args, **kwargs: type(model.model).forward(
        model.model, *args, **kwargs
    )
    assert_close(response_logprobs(model, batch), expected)
    assert vars(model.model)["forward"] is replaced


ADAPTERS = {
    "LoRA": LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=["q_proj"]),
    "LoRA on the head": LoraConfig(r=2, init_lora_weights=False, target_modules=["lm_head"]),
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_peft(kind, batch):
    model = get_peft_model(MODELS["llama"](), ADAPTERS[kind]).eval()
    found = response_logprobs(model, batch, chunk_size=4)
    assert_close(found, row_by_row(model, batch, own_logprob))
    plain = response_logprobs(MODELS["llama"](), batch)
    assert not found.allclose(plain, rtol=0.05)
    if "LoRA" in kind:
        with model.disable_adapter():
            assert_close(response_logprobs(model, batch), plain)


class LooksAtIds(LlamaForCausalLM):
    """Adds to the logits what no hidden state knows."""

    def forward(self, input_ids=None, logits_to_keep=0, **kwargs):
        output = super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
        bias = torch.nn.functional.one_hot(input_ids, VOCAB_SIZE) * 5.0
        output.logits = output.logits + bias[:, -output.logits.shape[1] :]
        return output


class TwoTrunks(LlamaForCausalLM):
    """Runs another trunk first, as models do that look at images."""

    def __init__(self, config):
        super().__init__(config)
        self.side = LlamaModel(config)

    def forward(self, input_ids=None, **kwargs):
        self.side(input_ids[:, :1])
        return super().forward(input_ids=input_ids, **kwargs)


def test_the_trunk_is_the_last_one_that_ends(batch):
    model = TwoTrunks(MODELS["llama"]().config).eval()
    assert_close(response_logprobs(model, batch), row_by_row(model, batch, own_logprob))


class Bigrams(PreTrainedModel):
    """A language model without a trunk that says what its hidden states are."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(VOCAB_SIZE, 8)
        self.head = torch.nn.Linear(8, VOCAB_SIZE)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, logits_to_keep=0, **_):
        return CausalLMOutput(logits=self.head(self.embedding(input_ids))[:, -logits_to_keep:])


@pytest.mark.parametrize("kind", [LooksAtIds, Bigrams])
def test_a_model_that_cannot_be_run_behind_its_trunk_is_run_whole(kind, batch):
    model = kind(MODELS["llama"]().config).eval()
    with pytest.warns(TokenCreditWarning, match="cannot be run after its trunk"):
        found = response_logprobs(model, batch, chunk_size=4)
    assert_close(found, row_by_row(model, batch, own_logprob))
    with pytest.warns(TokenCreditWarning):
        assert_close(
            response_entropies(model, batch, micro_batch_size=1), row_by_row(model, batch, entropy)
        )


def test_a_response_without_anything_before_it_is_refused(batch):
    for mask in (
        torch.zeros(4, 5).bool(),
        batch.prompt_mask & torch.tensor([[True]] * 3 + [[False]]),
    ):
        lonely = ResponseBatch(batch.prompt_ids, mask, batch.response_ids, batch.response_mask)
        with pytest.raises(
            DataError, match=r"3\] begin with a response token; expected at least one"
        ):
            response_logprobs(MODELS["gpt2"](), lonely)


def test_a_response_behind_unchosen_tokens_needs_no_prompt():
    ids = tiny_ids(1, 4)
    later = torch.tensor([[False, True, True, True]])
    batch = ResponseBatch(ids[:, :0], later[:, :0], ids, later)
    model = MODELS["gpt2"]()
    assert_close(response_logprobs(model, batch), row_by_row(model, batch, own_logprob))


def test_too_long_for_the_context_is_refused():
    mask = torch.ones(1, 40, dtype=torch.bool)
    long = ResponseBatch(tiny_ids(1, 40), mask, tiny_ids(1, 40), mask)
    with pytest.raises(DataError, match="has 80 tokens and GPT2LMHeadModel reads at most 64"):
        response_logprobs(MODELS["gpt2"](), long)


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
@pytest.mark.parametrize("side", ["prompt_ids", "response_ids"])
def test_ids_of_another_vocabulary_are_refused(token, side, batch):
    getattr(batch, side)[0, 3] = token
    with pytest.raises(ModelError, match="knows 0 to 40: expected a batch in the model's own"):
        response_logprobs(MODELS["llama"](), batch)


def test_a_model_without_hugging_face_is_refused(batch):
    with pytest.raises(ModelError, match="PreTrainedModel"):
        response_logprobs(torch.nn.Linear(2, 2), batch)


def test_nan_weights_are_found(batch):
    model = MODELS["llama"]()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(NumericError, match="in 3 responses"):
        response_logprobs(model, batch)


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"chunk_size": 0}, {"micro_batch_size": 0}]
)
def test_sizes_and_temperature_are_positive(setting, batch):
    with pytest.raises(ConfigError, match="expected positive numbers"):
        response_logprobs(MODELS["gpt2"](), batch, **setting)


def test_the_same_vocabulary():
    tokenizer = byte_level()
    require_same_vocabulary(tokenizer, byte_level())
    longer = byte_level()
    longer.add_tokens(["<tool>"])
    require_same_vocabulary(tokenizer, longer)
    with pytest.raises(ModelError, match=r"^reference has another .*: 1 of \d+ .*'<tool>'"):
        require_same_vocabulary(longer, tokenizer)


def test_another_vocabulary_is_named_by_its_argument():
    with pytest.raises(ModelError, match=r"^rewriter has another vocabulary: .* expected a model"):
        require_same_vocabulary(byte_level(), word_level(), argument="rewriter")


def test_a_language_model_that_reads_in_both_directions():
    batch = ResponseBatch(
        tiny_ids(1, 2), torch.ones(1, 2).bool(), tiny_ids(1, 3), torch.ones(1, 3).bool()
    )
    with pytest.raises(ModelError, match="is_decoder is false"):
        response_logprobs(causal("bert"), batch)
    assert response_logprobs(causal("bert", is_decoder=True), batch).shape == (1, 3)


def test_texts_beyond_the_original_length_of_longrope():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = causal("llama", rope_parameters=rope)
    ones = torch.ones(1, 10).bool()
    with pytest.raises(DataError, match=r"beyond 8 .*LongRoPE"):
        response_logprobs(model, ResponseBatch(tiny_ids(1, 2), ones[:, :2], tiny_ids(1, 10), ones))
    short = ResponseBatch(tiny_ids(1, 2), ones[:, :2], tiny_ids(1, 6), ones[:, :6])
    assert response_logprobs(model, short).shape == (1, 6)
