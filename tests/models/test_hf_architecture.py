"""What architectures allow: one predicate each, for scoring, training and decoding alike."""

import pytest
import torch
from tiny_models import DECODERS, ENCODERS, PAD_ID, tiny_gemma3, tiny_ids, tiny_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForSequenceClassification

from tokencredit.errors import DataError, ModelError
from tokencredit.models.hf_architecture import (
    config_value,
    context_limit,
    is_causal,
    padding_id,
    require_prefix_scores,
    require_room,
    sequence_classifier,
    text_positions,
)


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inside = model


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_decoders_score_prefixes_also_under_a_wrapper(name):
    model = tiny_model(name, attn_implementation="eager")
    assert is_causal(model) == is_causal(Wrapped(model)) == (name in DECODERS)


def test_a_zero_from_json_says_that_positions_see_later_ones():
    # Two predicates stood here once: that of scoring took only booleans for an answer and called
    # such a model causal, that of decoding did not.
    model = tiny_model("llama")
    model.config.is_causal = 0
    assert not is_causal(model)
    model.config.is_causal = 1
    assert is_causal(model)


@pytest.mark.parametrize("said", [None, "full", [False]])
def test_what_is_no_number_says_nothing(said):
    # And that of decoding failed where a layer held a list of that name.
    model = tiny_model("llama")
    model.model.layers[0].is_causal = said
    assert is_causal(model)


def test_no_prefix_scores_without_a_head_on_every_position():
    require_prefix_scores(tiny_model("llama"), instead="another")
    with pytest.raises(ModelError, match=r"BertFor.* gives prefixes no score; .*: take another"):
        require_prefix_scores(tiny_model("bert"), instead="another")


def test_a_classifier_is_found_under_wrappers():
    model = tiny_model("bert")
    assert sequence_classifier(Wrapped(model)) is model


def test_a_head_of_another_name_will_do():
    # Scoring took any head, decoding those of known names: a head of whatever name is one.
    model = tiny_model("bert")
    model.reward = model.classifier
    del model.classifier
    assert sequence_classifier(model) is model


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
def test_no_head_or_one_over_the_vocabulary(auto_class):
    with pytest.raises(ModelError, match="no head that scores a sequence"):
        sequence_classifier(tiny_model("llama", auto_class=auto_class))


def test_what_is_no_reward_model():
    with pytest.raises(ModelError, match="holds no Hugging Face model"):
        sequence_classifier(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="has 3 outputs"):
        sequence_classifier(tiny_model("llama", num_labels=3))


def test_a_score_read_at_the_last_column():
    model = tiny_model("bert")
    model.config.summary_type = "last"
    with pytest.raises(ModelError, match="at the last column, padding or not"):
        sequence_classifier(model)


def test_room_up_to_the_last_position_and_no_further():
    model = tiny_model("llama", max_position_embeddings=12)
    assert isinstance(model, LlamaForSequenceClassification)
    assert context_limit(model) == 12
    require_room(model, 12)
    with pytest.raises(DataError, match=r"has 13 tokens and LlamaFor.* reads at most 12"):
        require_room(model, 13)


def test_room_without_end_where_no_limit_is_known():
    model = tiny_model("t5", attn_implementation="eager")
    del model.config.max_position_embeddings
    assert context_limit(model) is None
    require_room(model, 10**9)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_positions_count_real_tokens_and_stay_at_the_limit(dtype):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).to(dtype)
    assert text_positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert text_positions(mask, limit=3).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_of_a_configuration_of_several_parts_the_text_counts():
    model = tiny_gemma3()
    assert is_causal(model)
    assert any(vars(module).get("is_causal") is False for module in model.modules())
    assert (padding_id(model), config_value(model, "vocab_size")) == (PAD_ID, 41)
    assert context_limit(model) == 64


def test_roberta_never_uses_its_first_positions():
    model = tiny_model("roberta", pad_token_id=1)
    assert context_limit(model) == 62
    with pytest.raises(DataError, match="reads at most 62"):
        require_room(model, 63)
    with torch.no_grad():
        assert model(input_ids=tiny_ids(1, 62)).logits.shape == (1, 1)
