"""Which tokens end a turn: what the tokenizer, the files and the chat template declare."""

import pytest
import torch
from tiny_models import tiny_config
from tiny_tokenizers import byte_level, word_level
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tokencredit.errors import ConfigError
from tokencredit.models.hf_ends import template_end_id, turn_end_ids

TURNS = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
EOS = 2  # of every tiny tokenizer


def with_eot(template=TURNS):
    tokenizer = byte_level(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<eot>"]})
    return tokenizer, tokenizer.convert_tokens_to_ids("<eot>")


def test_the_tokenizer_alone_knows_its_end_of_sequence():
    assert turn_end_ids(byte_level()) == (EOS,)


def test_a_tokenizer_without_end_of_sequence_declares_none():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    assert turn_end_ids(tokenizer) == ()


def test_the_template_shows_how_it_ends_an_assistants_turn():
    tokenizer, eot = with_eot()
    assert template_end_id(tokenizer) == eot
    assert turn_end_ids(tokenizer) == (EOS, eot)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "{{ raise_exception('no assistant') }}",
    ],
)
def test_a_template_that_writes_no_control_token_ends_nothing(template):
    tokenizer, _ = with_eot(template)
    assert turn_end_ids(tokenizer) == (EOS,)


def test_a_space_before_the_end_and_text_after_it_do_not_hide_it():
    tokenizer, eot = with_eot("{% for m in messages %}{{ m['content'] }} <eot>\n<eos>{% endfor %}")
    assert template_end_id(tokenizer) == eot


def test_every_id_of_the_generation_settings_ends():
    assert turn_end_ids(byte_level(), GenerationConfig(eos_token_id=[7, EOS, 9])) == (EOS, 7, 9)


def test_generation_settings_and_configuration_of_a_model():
    model = AutoModelForCausalLM.from_config(tiny_config("llama", eos_token_id=[EOS, 11]))
    model.generation_config.eos_token_id = [7, 9]
    assert turn_end_ids(byte_level(), model) == (EOS, 7, 9, 11)
    assert turn_end_ids(byte_level(), model.config) == (EOS, 11)


def test_the_text_part_of_a_configuration_counts():
    config = AutoConfig.for_model("gemma3", text_config={"eos_token_id": 12}, eos_token_id=[11])
    assert turn_end_ids(byte_level(), config) == (EOS, 11, 12)


def test_the_default_of_a_configuration_class_is_no_declaration():
    # Llama's default is 2: a word to a tokenizer that says something else there.
    tokenizer = word_level()
    words = tokenizer.get_vocab()
    tokenizer.eos_token = next(word for word, id_ in words.items() if id_ == 20)
    tokenizer.unk_token = next(word for word, id_ in words.items() if id_ == 2)
    config = tiny_config("llama", eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    assert turn_end_ids(tokenizer, model) == (20,)
    model.generation_config = GenerationConfig(eos_token_id=2)  # said on purpose
    assert turn_end_ids(tokenizer, model) == (20, 2)


def test_ids_that_the_tokenizer_lacks_are_left_out():
    tokenizer = byte_level()
    assert turn_end_ids(tokenizer, GenerationConfig(eos_token_id=[-1, 50256, EOS])) == (EOS,)


def test_further_ends_are_texts_of_one_token():
    tokenizer = byte_level()
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert turn_end_ids(tokenizer, extra=["\n", "<unk>"]) == (EOS, newline, 3)


def test_a_further_end_of_several_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"'User:' shall end a turn and is \d tokens"):
        turn_end_ids(byte_level(), extra=["User:"])


def test_a_saved_model_declares_what_its_generation_file_says(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config("llama", eos_token_id=EOS))
    model.generation_config.eos_token_id = [EOS, *range(4, 8)]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert turn_end_ids(byte_level(), loaded) == (EOS, 4, 5, 6, 7)
