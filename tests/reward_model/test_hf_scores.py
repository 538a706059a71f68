import copy
from contextlib import nullcontext

import pytest
import torch
from tiny_models import (
    DECODERS,
    ENCODERS,
    PAD_ID,
    VOCAB_SIZE,
    padding_mask,
    tiny_gemma3,
    tiny_ids,
    tiny_model,
)

from tokencredit.batch import ResponseBatch
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
)
from tokencredit.models import hf_passes
from tokencredit.reward_model.hf_scores import is_causal, reward_model_output, score_responses

LENGTHS = [9, 5, 7]


def implementation_of(architecture):
    return "eager" if architecture in {"gemma2", "bloom", "gpt_oss"} else None


def scorer(architecture, **overrides):
    attn = implementation_of(architecture)
    return tiny_model(architecture, attn_implementation=attn, **overrides)


def padded(side="right", width=None):
    mask = padding_mask(LENGTHS, side=side, width=width)
    ids = torch.full(mask.shape, PAD_ID)
    for row, length in enumerate(LENGTHS):
        ids[row, mask[row]] = tiny_ids(length, seed=row)
    return ids, mask


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def scores_of(model, ids, mask, **options):
    with torch.no_grad():
        return reward_model_output(model, ids, mask, **options)


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize(
    "architecture",
    [*DECODERS, *ENCODERS, "bloom", "gpt_oss", "modernbert", "modernbert-decoder"],
)
def test_sequence_score_is_that_of_the_models_own_forward(architecture, num_labels):
    model, (ids, mask) = scorer(architecture, num_labels=num_labels), padded()
    with torch.no_grad():
        logits = model(ids, attention_mask=mask.long()).logits
    expected = logits[:, 0] if num_labels == 1 else logits[:, 1] - logits[:, 0]
    found = scores_of(model, ids, mask)
    assert_close(found.sequence_scores, expected)
    assert found.attention is None
    assert (found.position_scores is None) == (not is_causal(model))


def test_an_encoder_decoder_finds_no_end_of_text_in_padding():
    model, (ids, mask) = scorer("t5", eos_token_id=0), padded()
    ids[torch.arange(3), mask.sum(-1) - 1] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask.long()).logits[:, 0]
    assert_close(scores_of(model, ids, mask).sequence_scores, expected)


@pytest.mark.parametrize("architecture", [*DECODERS, "bloom", "gpt_oss"])
def test_position_scores_are_the_scores_of_prefixes(architecture):
    model, (ids, mask) = scorer(architecture), padded("left")
    found = scores_of(model, ids, mask).position_scores
    assert (found[~mask] == 0).all()
    for row, length in enumerate(LENGTHS):
        text = ids[row, mask[row]][None]
        with torch.no_grad():
            alone = [model(text[:, :end]).logits[0, 0] for end in range(1, length + 1)]
        assert_close(found[row, mask[row]], torch.stack(alone))


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS, "bloom"])
def test_padding_on_either_side_changes_nothing(architecture):
    model = scorer(architecture)
    layer = None if architecture == "bloom" else -1
    (ids, mask), (left_ids, left_mask) = padded("right"), padded("left", width=11)
    right = scores_of(model, ids, mask, attention_layer=layer)
    left = scores_of(model, left_ids, left_mask, attention_layer=layer)
    assert_close(left.sequence_scores, right.sequence_scores)
    for name in ("position_scores", "attention"):
        if getattr(right, name) is not None:
            assert_close(getattr(left, name)[left_mask], getattr(right, name)[mask])
            assert (getattr(left, name)[~left_mask] == 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "bert", "roberta"])
def test_a_row_does_not_depend_on_its_batch(architecture):
    model, (ids, mask) = scorer(architecture), padded()
    together = scores_of(model, ids, mask, attention_layer=-1)
    for row, length in enumerate(LENGTHS):
        text = ids[row : row + 1, :length]
        alone = scores_of(model, text, torch.ones_like(text), attention_layer=-1)
        assert_close(together.sequence_scores[row], alone.sequence_scores[0])
        assert_close(together.attention[row, :length], alone.attention[0])


def test_left_padded_gpt2_counts_positions_from_the_first_real_token():
    model, text = tiny_model("gpt2"), tiny_ids(1, 6)
    with torch.no_grad():
        expected = model(text).logits[0, 0]
        shifted = model(text, position_ids=torch.arange(6)[None] + 3).logits[0, 0]
    assert (expected - shifted).abs() > 0.1
    ids = torch.cat([torch.full((1, 3), PAD_ID), text], -1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    assert_close(scores_of(model, ids, mask).sequence_scores[0], expected)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("garbage", [0, -100, VOCAB_SIZE + 5])
def test_ids_under_the_mask_change_nothing(architecture, garbage):
    model, (ids, mask) = scorer(architecture), padded("left")
    expected = scores_of(model, ids, mask, attention_layer=-1)
    found = scores_of(model, ids.masked_fill(~mask, garbage), mask, attention_layer=-1)
    assert torch.equal(found.sequence_scores, expected.sequence_scores)
    assert torch.equal(found.attention, expected.attention)


@pytest.mark.parametrize("pad_token_id", [None, 1, 3])
def test_the_pad_id_changes_nothing_even_inside_the_text(pad_token_id):
    model, (ids, mask) = scorer("llama"), padded()
    ids[:, 2:5] = 3
    expected = scores_of(model, ids, mask).sequence_scores
    model.config.pad_token_id = pad_token_id
    assert torch.equal(scores_of(model, ids, mask).sequence_scores, expected)
    for row, length in enumerate(LENGTHS):
        last = model.score(model.model(ids[row : row + 1, :length]).last_hidden_state)[0, -1, 0]
        assert_close(expected[row], last.detach())


def test_tokens_masked_inside_a_text_are_left_out():
    model, text = scorer("llama"), tiny_ids(1, 6)
    mask = torch.tensor([[True, True, False, True, False, True]])
    without = text[mask][None]
    expected = scores_of(model, without, torch.ones_like(without))
    found = scores_of(model, text, mask)
    assert_close(found.sequence_scores, expected.sequence_scores)
    assert_close(found.position_scores[mask], expected.position_scores[0])


@pytest.mark.parametrize(
    "architecture", ["gpt2", "llama", "mistral", "bert", "distilbert", "modernbert-decoder"]
)
@pytest.mark.parametrize("layer", [0, -1])
def test_attention_is_the_row_where_the_score_is_read(architecture, layer):
    model, (ids, mask) = scorer(architecture), padded()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        output = eager(ids, attention_mask=mask.long(), output_attentions=True)
    read = torch.zeros(3, dtype=torch.long) if architecture in ENCODERS else mask.sum(-1) - 1
    expected = output.attentions[layer].mean(1)[torch.arange(3), read]
    found = scores_of(model, ids, mask, attention_layer=layer).attention
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert_close(found.sum(-1), torch.ones(3))


def test_gradients_reach_head_and_backbone():
    model, (ids, mask) = scorer("llama"), padded()
    output = reward_model_output(model, ids, mask, attention_layer=-1)
    (output.sequence_scores.sum() + output.position_scores.sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.score.parameters())
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_is_causal():
    causal = {name: is_causal(scorer(name)) for name in [*DECODERS, *ENCODERS, "bloom", "t5"]}
    assert causal == dict.fromkeys([*DECODERS, "bloom"], True) | dict.fromkeys(
        [*ENCODERS, "t5"], False
    )


def test_more_than_two_labels():
    ids, mask = padded()
    with pytest.raises(ModelError, match="has 3 outputs"):
        scores_of(scorer("llama", num_labels=3), ids, mask)


def test_virtual_tokens():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model, (ids, mask) = peft.get_peft_model(scorer("llama"), config), padded()
    with pytest.raises(ModelError, match="virtual tokens"):
        scores_of(model, ids, mask)


def test_a_lora_reward_model():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)
    model, (ids, mask) = peft.get_peft_model(scorer("llama"), config).eval(), padded()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask.long()).logits[:, 0]
    assert_close(scores_of(model, ids, mask).sequence_scores, expected)


@pytest.mark.parametrize(
    ("architecture", "overrides"), [("modernbert", {"classifier_pooling": "mean"}), ("t5", {})]
)
def test_no_single_reading_position(architecture, overrides):
    model, (ids, mask) = scorer(architecture, **overrides), padded()
    with pytest.raises(ModelError, match="does not read its score at one position"):
        scores_of(model, ids, mask, attention_layer=-1)


def test_a_score_read_at_the_last_column():
    model, (ids, mask) = scorer("bert"), padded()
    model.config.summary_type = "last"
    with pytest.raises(ModelError, match="last column"):
        scores_of(model, ids, mask)


def test_too_long_a_text():
    model = scorer("gpt2", max_position_embeddings=8)
    ids, mask = padded()
    with pytest.raises(DataError, match=r"9 tokens .* reads at most 8"):
        scores_of(model, ids, mask)


def test_a_row_without_tokens():
    ids, mask = padded()
    with pytest.raises(DataError, match=r"rows \[0\]"):
        scores_of(scorer("llama"), ids, mask & (torch.arange(3) > 0)[:, None])


def test_no_such_layer():
    ids, mask = padded()
    with pytest.raises(ConfigError, match="layer -3"):
        scores_of(scorer("llama"), ids, mask, attention_layer=-3)


def response_batch():
    return ResponseBatch(
        prompt_ids=tiny_ids(3, 4, seed=1),
        prompt_mask=padding_mask([4, 1, 3], side="left"),
        response_ids=tiny_ids(3, 6, seed=2),
        response_mask=padding_mask([3, 6, 5]),
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_response_scores_one_by_one(architecture):
    model, batch = scorer(architecture), response_batch()
    found = score_responses(model, batch, attention_layer=-1)
    assert found.prefix_scores.shape == (3, 7)
    for row in range(3):
        prompt = batch.prompt_ids[row, batch.prompt_mask[row]]
        response = batch.response_ids[row, batch.response_mask[row]]
        for length in range(len(response) + 1):
            text = torch.cat([prompt, response[:length]])[None]
            with torch.no_grad():
                assert_close(found.prefix_scores[row, length], model(text).logits[0, 0])
        assert_close(found.sequence_scores[row], found.prefix_scores[row, len(response)])
        whole = scores_of(model, text, torch.ones_like(text), attention_layer=-1).attention[0]
        assert_close(found.attention[row, : len(response)], whole[len(prompt) :])
        assert (found.prefix_scores[row, len(response) + 1 :] == 0).all()
        assert (found.attention[row, len(response) :] == 0).all()


def test_encoders_have_no_prefix_scores():
    found = score_responses(scorer("bert"), response_batch(), attention_layer=-1)
    assert found.prefix_scores is None
    assert found.attention.shape == (3, 6)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_micro_batches_change_nothing(architecture, micro_batch_size):
    model, batch = scorer(architecture), response_batch()
    whole = score_responses(model, batch, attention_layer=-1)
    parts = score_responses(model, batch, attention_layer=-1, micro_batch_size=micro_batch_size)
    assert_close(parts.sequence_scores, whole.sequence_scores)
    assert_close(parts.attention, whole.attention)
    if architecture == "llama":
        assert_close(parts.prefix_scores, whole.prefix_scores)


def test_micro_batches_are_sorted_by_length():
    model, batch, widths = scorer("llama"), response_batch(), []
    score_responses(model, batch)  # the first scores try once what the architecture does
    model.model.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    score_responses(model, batch, micro_batch_size=1)
    assert widths == [8, 7, 7]


def test_passes_of_few_tokens_change_nothing(monkeypatch):
    model, batch, shapes = scorer("llama"), response_batch(), []
    whole = score_responses(model, batch, attention_layer=-1)
    model.model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    score_responses(model, batch)
    assert shapes == [(3, 8)]
    monkeypatch.setattr(hf_passes, "_CPU_TOKENS", 14)
    parts = score_responses(model, batch, attention_layer=-1)
    assert shapes[1:] == [(1, 8), (2, 7)]
    for name in ("sequence_scores", "prefix_scores", "attention"):
        assert_close(getattr(parts, name), getattr(whole, name))


def test_weights_that_processes_gather_are_gathered_as_often_by_all(monkeypatch):
    model = scorer("llama")
    assert hf_passes.tokens_per_pass(model) == 512
    monkeypatch.setattr(hf_passes, "_gathers_in_every_pass", lambda _: True)
    assert hf_passes.tokens_per_pass(model) is None


def test_tokens_behind_the_response():
    model, batch = scorer("llama"), response_batch()
    mask = torch.cat([batch.prompt_mask, torch.ones(3, 6, dtype=torch.bool)], -1)
    found = score_responses(model, batch, attention_mask=mask, attention_layer=-1)
    whole = scores_of(model, batch.input_ids, mask, attention_layer=-1)
    assert_close(found.sequence_scores, whole.sequence_scores)
    assert_close(found.attention, whole.attention[:, 4:].masked_fill(~batch.response_mask, 0.0))


def test_tokens_inside_the_response_that_do_not_count():
    model, batch = scorer("llama"), response_batch()
    holed = ResponseBatch(
        batch.prompt_ids,
        batch.prompt_mask,
        batch.response_ids,
        batch.response_mask & (torch.arange(6) != 1),
    )
    expected = score_responses(model, batch, attention_layer=-1)
    found = score_responses(model, holed, attention_layer=-1)
    assert_close(found.sequence_scores, expected.sequence_scores)
    assert (found.attention[:, 1] == 0).all()
    assert_close(found.attention[:, 2:], expected.attention[:, 2:])


def test_scoring_needs_no_gradients_and_no_dropout():
    model, batch = scorer("gpt2", resid_pdrop=0.5), response_batch()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected = score_responses(model, batch).sequence_scores
    model.train()
    model.transformer.h[0].eval()
    found = score_responses(model, batch).sequence_scores
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert model.training
    assert not model.transformer.h[0].mlp.training


def test_nan_scores():
    model, batch = scorer("llama"), response_batch()
    with torch.no_grad():
        model.score.weight[0, 0] = float("nan")
    with pytest.raises(NumericError, match=r"NaN or infinite scores in rows \[0, 1, 2\]"):
        score_responses(model, batch)


def test_nan_on_padding_is_no_score():
    model, batch = scorer("llama"), response_batch()
    expected = score_responses(model, batch)

    def poison(_module, _args, output):
        output.last_hidden_state[~padding_mask([8, 7, 7])] = float("nan")

    model.model.register_forward_hook(poison)
    found = score_responses(model, batch)
    assert torch.equal(found.sequence_scores, expected.sequence_scores)
    assert torch.equal(found.prefix_scores, expected.prefix_scores)


@pytest.mark.parametrize("width", [0, 4])
def test_empty_or_right_padded_prompts(width):
    batch = ResponseBatch(
        prompt_ids=tiny_ids(3, width),
        prompt_mask=padding_mask([3, 4, 2], width=4)[:, :width],
        response_ids=tiny_ids(3, 6),
        response_mask=padding_mask([3, 6, 5]),
    )
    with pytest.raises(DataError, match="empty or padded on the right"):
        score_responses(scorer("llama"), batch)


def test_an_id_that_the_model_lacks_is_an_error_and_under_the_mask_is_not():
    model = scorer("llama")
    ids, mask = padded()
    unknown = ids.masked_fill(~mask, 41)
    expected = scores_of(model, ids, mask).sequence_scores
    assert torch.equal(scores_of(model, unknown, mask).sequence_scores, expected)
    unknown = ids.masked_fill(mask, 41)
    with pytest.raises(ModelError, match=r"knows 0 to 40.*without ids that are no token"):
        scores_of(model, unknown, mask)


def test_a_model_that_reads_images_too_scores_texts():
    model = tiny_gemma3()
    ids = tiny_ids(2, 9)
    out = reward_model_output(model, ids, torch.ones_like(ids).bool(), attention_layer=-1)
    torch.testing.assert_close(out.sequence_scores, model(input_ids=ids).logits[:, 0])
    shorter = model(input_ids=ids[:, :4]).logits[:, 0]
    torch.testing.assert_close(out.position_scores[:, 3], shorter)
    torch.testing.assert_close(out.attention.sum(-1), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_computes_in_float32_under_a_trunk_of_less(dtype):
    model = scorer("llama").to(dtype)
    ids = tiny_ids(2, 9)
    mask = torch.ones_like(ids).bool()
    hidden = model.model(ids, use_cache=False).last_hidden_state
    exact = hidden.double() @ model.score.weight[0].double()
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            found = reward_model_output(model, ids, mask).position_scores
        if isinstance(context, nullcontext):
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
        assert not torch.equal(found.to(dtype).float(), found)
