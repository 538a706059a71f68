import copy
import threading

import pytest
import tiny_models
import torch
from tiny_models import (
    DECODERS,
    ENCODERS,
    PAD_ID,
    VOCAB_SIZE,
    padding_mask,
    tiny_ids,
    tiny_model,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    FNetConfig,
    FNetModel,
    PreTrainedModel,
)
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokencredit.errors import ConfigError, ModelError, TokenCreditWarning
from tokencredit.models.hf_attention import pretrained_model, recorded_attention

LENGTHS = [9, 5, 7]
ONLY_EAGER = {"gemma2"}
POSITIONS = {
    "right": torch.tensor([[8, 4], [4, 2], [6, 0]]),
    "left": torch.tensor([[8, 4], [8, 5], [8, 2]]),
    "none": torch.tensor([[8, 0], [3, 8], [5, 6]]),
}


def padded(side):
    mask = padding_mask([9, 9, 9] if side == "none" else LENGTHS, side=side)
    return tiny_ids(3, 9).masked_fill(~mask, PAD_ID), mask


def eager_rows(model, ids, mask, positions, layer):
    """The oracle: the same weights, run eagerly, all maps kept."""
    config = copy.deepcopy(model.config)
    eager = type(model)._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        output = eager.base_model(ids, attention_mask=mask.long(), output_attentions=True)
    maps = output.attentions[layer].mean(1)
    return maps[torch.arange(len(ids))[:, None], positions]


def rows_of(model, ids, mask, positions, layer=-1):
    with torch.no_grad(), recorded_attention(model, positions, mask, layer=layer) as record:
        model(ids, attention_mask=mask.long())
    return record.rows


def assert_equal_rows(found, expected):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS, "modernbert"])
def test_rows_equal_eager_output_attentions(architecture, attn_implementation, side):
    if architecture in ONLY_EAGER and attn_implementation == "sdpa":
        attn_implementation = "eager"
    model = tiny_model(architecture, attn_implementation=attn_implementation)
    (ids, mask), positions = padded(side), POSITIONS[side]
    for layer in (0, -1):
        expected = eager_rows(model, ids, mask, positions, layer)
        assert_equal_rows(rows_of(model, ids, mask, positions, layer), expected)
        # Far enough apart that a wrong row would not pass.
        assert (expected[:, 0] - expected[:, 1]).abs().amax(-1).min() > 0.01


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "bert"])
def test_batch_of_one(architecture):
    model, ids = tiny_model(architecture), tiny_ids(1, 9)
    mask, positions = torch.ones(1, 9, dtype=torch.bool), torch.tensor([[8]])
    expected = eager_rows(model, ids, mask, positions, -1)
    assert_equal_rows(rows_of(model, ids, mask, positions), expected)


def test_padding_gets_nothing_and_rows_sum_to_one():
    ids, mask = padded("left")
    rows = rows_of(tiny_model("llama"), ids, mask, POSITIONS["left"])
    assert (rows.masked_select(~mask[:, None].expand_as(rows)) == 0).all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(3, 2))


def flash_like(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """What flash attention computes, from the arguments flash attention gets."""
    length = key.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.mT * scaling
    if kwargs.get("softcap") is not None:
        logits = (logits / kwargs["softcap"]).tanh() * kwargs["softcap"]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = distance < 0 if module.is_causal else distance < -length
    if kwargs.get("sliding_window") is not None:
        hidden = hidden | (distance.abs() >= kwargs["sliding_window"])
    if attention_mask is not None:
        assert attention_mask.ndim == 2
        hidden = hidden | ~attention_mask[:, None, None, :].bool()
    logits = logits.masked_fill(hidden, -1e30)
    if kwargs.get("s_aux") is not None:
        sink = kwargs["s_aux"].view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], -1)
    output = logits.softmax(-1)[..., :length] @ value
    return output.transpose(1, 2).contiguous(), None


@pytest.fixture
def flash_implementation():
    AttentionInterface.register("key_masked", flash_like)
    AttentionMaskInterface.register("key_masked", flash_attention_mask)
    yield "key_masked"
    del AttentionInterface._global_mapping["key_masked"]
    del AttentionMaskInterface._global_mapping["key_masked"]


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("llama", {}),
        ("mistral", {}),
        ("gemma2", {"attn_logit_softcapping": 2.0}),
        ("gpt_oss", {}),
        ("bert", {}),
        ("modernbert", {}),
    ],
)
def test_rows_from_the_arguments_of_flash_attention(
    architecture, overrides, side, flash_implementation
):
    model = tiny_model(architecture, attn_implementation="eager", **overrides)
    model.set_attn_implementation(flash_implementation)
    (ids, mask), positions = padded(side), POSITIONS[side]
    for layer in (0, 1):
        expected = eager_rows(model, ids, mask, positions, layer)
        assert_equal_rows(rows_of(model, ids, mask, positions, layer), expected)


def test_sinks_leave_less_than_one():
    model = tiny_model("gpt_oss", attn_implementation="eager")
    ids, mask = padded("none")
    assert (rows_of(model, ids, mask, POSITIONS["none"]).sum(-1) < 0.999).all()


def test_the_implementation_still_does_the_attention(monkeypatch):
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs),
    )
    model, (ids, mask) = tiny_model("llama"), padded("right")
    with torch.no_grad():
        alone = model(ids, attention_mask=mask.long()).logits
        with recorded_attention(model, POSITIONS["right"], mask):
            beside = model(ids, attention_mask=mask.long()).logits
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert torch.equal(alone, beside)


class LargestTensor(TorchDispatchMode):
    """The number of entries of the largest tensor any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return output


def test_no_map_of_all_queries_is_made():
    length = 128
    model = tiny_model("llama", max_position_embeddings=length)
    ids, mask = tiny_ids(1, length), torch.ones(1, length, dtype=torch.bool)
    with LargestTensor() as seen:
        rows_of(model, ids, mask, torch.tensor([[length - 1]]))
    assert seen.largest < length * length


def test_inference_mode_and_autocast():
    model, (ids, mask) = tiny_model("llama"), padded("right")
    expected = rows_of(model, ids, mask, POSITIONS["right"])
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        recorded_attention(model, POSITIONS["right"], mask) as record,
    ):
        model(ids, attention_mask=mask.long())
    assert record.rows.dtype == torch.float32
    torch.testing.assert_close(record.rows, expected, rtol=0.0, atol=0.01)
    torch.testing.assert_close(record.rows.sum(-1), torch.ones(3, 2))


def test_rows_carry_no_gradient_and_the_model_keeps_its_own():
    model, (ids, mask) = tiny_model("llama"), padded("right")
    with recorded_attention(model, POSITIONS["right"], mask) as record:
        model(ids, attention_mask=mask.long()).logits.sum().backward()
    assert not record.rows.requires_grad
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_inside_a_peft_wrapper():
    peft = pytest.importorskip("peft")
    model, (ids, mask) = tiny_model("llama"), padded("right")
    expected = rows_of(model, ids, mask, POSITIONS["right"])
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2))
    assert_equal_rows(rows_of(wrapped.eval(), ids, mask, POSITIONS["right"]), expected)


@pytest.mark.parametrize("layers", [(0, 1), (1, 1)])
def test_contexts_can_be_nested(layers):
    model, (ids, mask) = tiny_model("llama"), padded("right")
    one, other = POSITIONS["right"][:, :1], POSITIONS["right"][:, 1:]
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with (
        torch.no_grad(),
        recorded_attention(model, one, mask, layer=layers[0]) as outer,
        recorded_attention(model, other, mask, layer=layers[1]) as inner,
    ):
        model(ids, attention_mask=mask.long())
    assert_equal_rows(outer.rows, rows_of(model, ids, mask, one, layers[0]))
    assert_equal_rows(inner.rows, rows_of(model, ids, mask, other, layers[1]))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


@pytest.mark.parametrize("layer", [0, -1])
def test_the_latest_pass_counts(layer):
    model, (ids, mask) = tiny_model("llama"), padded("none")
    positions = POSITIONS["none"]
    with torch.no_grad(), recorded_attention(model, positions, mask, layer=layer) as record:
        model(ids.flip(0), attention_mask=mask.long())
        model(ids, attention_mask=mask.long())
    assert_equal_rows(record.rows, rows_of(model, ids, mask, positions, layer))


def test_other_models_and_threads_are_not_recorded():
    model, other, (ids, mask) = tiny_model("llama"), tiny_model("llama"), padded("right")
    with recorded_attention(model, POSITIONS["right"], mask) as record:
        other(ids, attention_mask=mask.long())
        thread = threading.Thread(target=lambda: model(ids, attention_mask=mask.long()))
        thread.start()
        thread.join()
        assert record.recorded is None


@pytest.mark.parametrize("where", ["attention", "body"])
def test_everything_is_as_before_after_an_exception(where, monkeypatch):
    model, (ids, mask) = tiny_model("llama"), padded("right")
    attention = model.model.layers[-1].self_attn
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    expected = rows_of(model, ids, mask, POSITIONS["right"])

    def fail(*_):
        raise RuntimeError("on purpose")

    handle = attention.o_proj.register_forward_pre_hook(fail)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        recorded_attention(model, POSITIONS["right"], mask),
    ):
        model(ids, attention_mask=mask.long()) if where == "attention" else fail()
    handle.remove()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    for module in (attention, model.model):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert_equal_rows(rows_of(model, ids, mask, POSITIONS["right"]), expected)


@pytest.mark.parametrize("architecture", ["bloom", "albert"])
def test_fallback_runs_eagerly_with_one_warning(architecture):
    implementation = "eager" if architecture == "bloom" else "sdpa"
    model = tiny_model(architecture, attn_implementation=implementation)
    (ids, mask), positions = padded("right"), POSITIONS["right"]
    expected = eager_rows(model, ids, mask, positions, 0)
    with pytest.warns(TokenCreditWarning, match="runs twice") as caught:
        rows = rows_of(model, ids, mask, positions, 0)
    assert len(caught) == 1
    assert_equal_rows(rows, expected)
    assert model.config._attn_implementation == implementation


def test_layers_that_share_one_module_need_no_fallback_at_the_last():
    model = tiny_model("albert")
    (ids, mask), positions = padded("right"), POSITIONS["right"]
    expected = eager_rows(model, ids, mask, positions, -1)
    assert_equal_rows(rows_of(model, ids, mask, positions), expected)


def test_a_layer_that_hands_nothing_to_the_interface_is_noticed(monkeypatch):
    import transformers.models.llama.modeling_llama as modeling_llama

    class Private:
        def get_interface(self, name, eager):
            return eager if name == "eager" else sdpa

    model, sdpa = tiny_model("llama"), ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Private())
    (ids, mask), positions = padded("left"), POSITIONS["left"]
    expected = eager_rows(model, ids, mask, positions, -1)
    with pytest.warns(TokenCreditWarning, match="layer -1 of LlamaModel"):
        rows = rows_of(model, ids, mask, positions)
    assert_equal_rows(rows, expected)
    assert model.config._attn_implementation == "sdpa"


class WithoutOptions(PreTrainedModel):
    config_class = FNetConfig

    def forward(self, input_ids):
        return input_ids


def test_a_second_pass_that_reads_in_another_way_is_refused():
    ids, mask = tiny_ids(1, 9), padding_mask([9])
    settings = {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}
    tiny_models.ARCHITECTURES["falcon"] = settings
    fast, eager = (tiny_model("falcon", attn_implementation=name) for name in ("sdpa", "eager"))
    positions = torch.tensor([[8]])
    with (
        pytest.raises(ModelError, match=r"gives other states .*attn_implementation='eager'"),
        pytest.warns(TokenCreditWarning, match="runs twice"),
        recorded_attention(fast.base_model, positions, mask),
    ):
        fast.base_model(input_ids=ids)
    with (
        pytest.warns(TokenCreditWarning, match="runs twice"),
        recorded_attention(eager.base_model, positions, mask) as record,
    ):
        maps = eager.base_model(input_ids=ids, output_attentions=True).attentions
    torch.testing.assert_close(record.rows[0, 0], maps[-1][0].mean(0)[8], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", [FNetModel, WithoutOptions])
def test_a_model_without_attention(model_class):
    model = model_class(FNetConfig(vocab_size=VOCAB_SIZE, hidden_size=8, num_hidden_layers=1))
    ids, mask = tiny_ids(1, 4), torch.ones(1, 4, dtype=torch.bool)
    with (
        pytest.raises(ModelError, match="gives no attention weights"),
        recorded_attention(model.eval(), torch.tensor([[3]]), mask),
    ):
        model(ids)


def test_no_such_layer():
    model, (ids, mask) = tiny_model("llama"), padded("right")
    with pytest.raises(ConfigError, match="layer 2 of LlamaModel, which has 2 attention layers"):
        rows_of(model, ids, mask, POSITIONS["right"], 2)


def test_rows_before_any_pass():
    model, (_, mask) = tiny_model("llama"), padded("right")
    with (
        recorded_attention(model, POSITIONS["right"], mask) as record,
        pytest.raises(ModelError, match="no attention was recorded"),
    ):
        _ = record.rows


def test_not_a_hugging_face_model():
    with pytest.raises(ModelError, match="holds no Hugging Face model"):
        pretrained_model(torch.nn.Linear(1, 1))
