import json
from types import SimpleNamespace

import pytest
from readings import text_marks
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, word_level, wordpiece

from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.text.hf_known_readings import (
    reading_of,
    remember_reading,
    stored_reading,
    written_by,
)
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_rendering import rendered_chat
from tokencredit.text.reading_settings import ReadingSettings, require_writer

ASK = [{"role": "user", "content": "rate this film"}]
THINKS = (
    "{% for m in messages %}<bos>{{ m['role'] }}\n"
    "{% set said = m['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{{ said if m['role'] == 'assistant' else m['content'] }}"
    "<eos>\n{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def chat(template=CHAT_TEMPLATE):
    return Reading(byte_level(chat_template=template), "chat", turn_ends=(2,))


def text_of(reading, encoded, row=0):
    ids = encoded.batch.input_ids[row][encoded.attention_mask[row].bool()]
    return reading.tokenizer.decode(ids)


def answer_of(reading, encoded, row=0):
    batch = encoded.batch
    return reading.tokenizer.decode(batch.response_ids[row][batch.response_mask[row]])


def test_an_answer_that_was_cut_off_stays_open():
    reading = chat()
    ended, cut = (reading.encoded([ASK], ["good"], ended=end) for end in (True, False))
    assert text_of(reading, ended) == text_of(reading, cut) + "<eos>\n"
    assert ended.response_spans == cut.response_spans


def test_rows_can_end_or_not_each_for_itself():
    reading = Reading(byte_level(), append_eos=True)
    encoded = reading.encoded(["a", "a"], [" good", " good"], ended=[True, False])
    assert answer_of(reading, encoded, 0) == " good<eos>"
    assert answer_of(reading, encoded, 1) == " good"


@pytest.mark.parametrize("close", ["", "<eos>", "<eos>\n"])
def test_what_is_rendered_is_not_rendered_again(close):
    reading = chat()
    prompt = "<bos>user\nrate this film<eos>\n<bos>assistant\n"
    encoded = reading.encoded([prompt], ["good" + close])
    assert text_of(reading, encoded) == text_of(reading, reading.encoded([ASK], ["good"]))
    assert encoded.response_spans == [[(0, 4)]] or answer_of(reading, encoded) == "good"


def test_a_rendered_prompt_without_its_first_token_gets_it():
    template = "{{ bos_token }}" + CHAT_TEMPLATE.replace("<bos>", "[").replace("<eos>", "]")
    reading = chat(template)
    rendered = "[user\nrate this film]\n[assistant\n"
    whole = text_of(reading, reading.encoded([ASK], ["good"]))
    assert whole.startswith("<bos>[user")
    assert text_of(reading, reading.encoded([rendered], ["good"])) == whole
    assert reading.prompt_rows([rendered], where="x") == reading.prompt_rows([ASK], where="x")


@pytest.mark.parametrize(
    ("answer", "shown", "first"),
    [
        ("<think>hm</think>good", "good", 17),
        ("a </think>\n\nplot", "plot", 12),
        ("good", "good", 0),
        ("<think>not closed", "<think>not closed", 0),
    ],
)
def test_what_a_template_takes_out_is_not_read(answer, shown, first):
    reading = chat(THINKS)
    encoded = reading.encoded([ASK], [answer])
    assert text_of(reading, encoded).endswith(f"assistant\n{shown}<eos>\n")
    spans = encoded.response_spans[0]
    assert spans[0][0] == first
    assert spans[-1][1] == len(answer)
    assert answer_of(reading, encoded) == shown


def test_nothing_that_a_policy_writes_is_an_error():
    for template in (CHAT_TEMPLATE, THINKS):
        reading = chat(template)
        for answer in ("", " ", "\n\n", "<think>", "</think>", "<eos>", "{{ x }}", "\ue000", "�"):
            for ended in (True, False):
                reading.encoded([ASK], [answer], ended=ended, empty="keep")


EMPTY = {
    "plain": lambda: Reading(byte_level()),
    "plain, closed": lambda: Reading(byte_level(), append_eos=True),
    "chat": chat,
    "chat without special tokens": text_marks,
    "pair": lambda: Reading(wordpiece(), "pair"),
}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("name", EMPTY)
def test_what_closes_an_empty_response_is_no_token_of_it(name, ended):
    reading = EMPTY[name]()
    for prompt in ("rate", ASK) if reading.template == "chat" else ("rate",):
        empty = reading.encoded([prompt], [""], ended=ended, empty="keep")
        closed = name == "plain, closed" and ended
        assert answer_of(reading, empty) == ("<eos>" if closed else "")
        assert empty.response_spans == ([[(0, 0)]] if closed else [[]])
        whole = reading.encoded([prompt], ["good"], ended=ended)
        without = text_of(reading, whole).replace("good ", "").replace("good", "")
        assert text_of(reading, empty) == without


def test_a_conversation_that_ends_with_the_assistant_is_gone_on_with():
    reading = chat()
    begun = [*ASK, {"role": "assistant", "content": "a very"}]
    encoded = reading.encoded([begun], [" good plot"])
    whole = reading.encoded([ASK], ["a very good plot"])
    assert text_of(reading, encoded) == text_of(reading, whole)
    assert answer_of(reading, encoded) == " good plot"
    (row,) = reading.prompt_rows([begun], where="x")
    assert reading.tokenizer.decode(row).endswith("<bos>assistant\na very")


def test_an_empty_prompt_is_plain_text_in_every_reading():
    for reading in (chat(), Reading(byte_level())):
        assert text_of(reading, reading.encoded([""], ["good"])) == "<bos>good"


def test_an_encoder_with_a_chat_template_keeps_its_own_tokens():
    tokenizer = wordpiece()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
    reading = Reading(tokenizer, "chat")
    ids = reading.encoded([ASK], ["good"]).batch.input_ids[0].tolist()
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id


def test_pairs_are_those_of_the_tokenizer():
    reading = Reading(wordpiece(), "pair")
    encoded = reading.encoded(["rate this film", ASK], ["a good plot", "a good plot"])
    expected = reading.tokenizer("rate this film", "a good plot")["input_ids"]
    assert encoded.batch.input_ids[0].tolist() == encoded.batch.input_ids[1].tolist() == expected
    assert answer_of(reading, encoded) == "a good plot"


@pytest.mark.parametrize("tokenizer", [word_level(bos=True), wordpiece()], ids=["bos", "cls"])
def test_the_token_that_begins_a_sequence_stays_when_a_row_is_cut(tokenizer):
    reading = Reading(tokenizer)
    (whole,) = reading.rows(["the film is very good and"], [" the plot is bad"])
    for length in range(6, len(whole)):
        (cut,) = reading.rows(
            ["the film is very good and"], [" the plot is bad"],
            max_length=length, truncation="prompt-start",
        )  # fmt: skip
        assert len(cut) == length
        assert cut.input_ids[0] == whole.input_ids[0]
        assert sum(cut.response_mask) == sum(whole.response_mask)


def test_both_sides_of_a_pair_keep_the_same_prompt():
    reading = Reading(word_level(bos=True))
    ((one, other),) = reading.pairs(
        ["the film is very good and the plot"], [" is bad"], [" is very very very good"],
        max_length=9, truncation="prompt-start",
    )  # fmt: skip
    assert one.input_ids[: one.start] == other.input_ids[: other.start]
    assert len(other) == 9 > len(one)


def test_a_writer_without_a_chat_template_writes_plain_text():
    assert written_by(byte_level()).template == "plain"


def described(**config):
    return SimpleNamespace(config=SimpleNamespace(**config))


def test_it_is_found_out_for_models_of_others():
    encoder = tiny_model("bert", vocab_size=90, num_labels=1)
    assert reading_of(encoder, wordpiece()).template == "pair"
    two = tiny_model("bert", vocab_size=90, num_labels=2)
    assert reading_of(two, wordpiece()).template == "plain"
    assert reading_of(described(), byte_level()).template == "plain"
    found = reading_of(described(), byte_level(chat_template=CHAT_TEMPLATE))
    assert (found.template, found.append_eos) == ("chat", False)


def test_a_trained_model_remembers_and_settings_come_first():
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    model = described()
    remember_reading(
        reading_of(model, tokenizer, ReadingSettings("plain"), training=True),
        model.config,
        ReadingSettings(turn_ends=("<pad>",)),
    )
    json.dumps(model.config.reading)  # stands in config.json
    found = reading_of(model, tokenizer)
    assert (found.template, found.append_eos, found.origin) == ("plain", True, "as trained")
    assert tokenizer.pad_token_id in found.turn_ends
    other = reading_of(model, tokenizer, ReadingSettings("chat", append_eos=False))
    assert (other.template, other.append_eos) == ("chat", False)
    assert other.origin == "as set; trained as 'plain'"
    assert stored_reading(described(eos_appended=False).config) == {"append_eos": False}


def test_a_chat_template_can_be_named(tmp_path):
    (tmp_path / "t.jinja").write_text(CHAT_TEMPLATE)
    for given in (CHAT_TEMPLATE, str(tmp_path / "t.jinja")):
        settings = ReadingSettings(chat_template=given)
        assert reading_of(described(), byte_level(), settings).template == "chat"
    with pytest.raises(ConfigError, match=r"reading.chat_template is 'nowhere'"):
        reading_of(described(), byte_level(), ReadingSettings(chat_template="nowhere"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ReadingSettings("chat"), "has no chat template"),
        (ReadingSettings("pair"), "no token between sentences"),
        (ReadingSettings(turn_ends=("two words",)), "shall end a turn"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        reading_of(described(), byte_level(), settings)


def test_a_model_whose_configuration_says_something_unknown():
    with pytest.raises(ConfigError, match="'sideways'"):
        reading_of(described(reading={"template": "sideways"}), byte_level())


def test_a_template_that_leaves_the_answer_out():
    with pytest.raises(ModelError, match="leaves out what the assistant says"):
        chat("{{ messages[0]['content'] }}").encoded([ASK], ["good"])


def test_places_of_a_rewritten_answer_are_found():
    template = CHAT_TEMPLATE.replace(
        "message['content']", "message['content'] | replace('very ', '')"
    )
    shown = rendered_chat(byte_level(chat_template=template), ASK, "a very good plot")
    text = shown.text[shown.start : shown.stop]
    assert text == "a good plot"
    at = text.index("good")
    assert shown.span(at, at + 4) == (7, 11)


def test_conversations_where_texts_are_joined():
    with pytest.raises(DataError, match="reads texts as 'plain'"):
        Reading(byte_level()).prompt_rows([ASK], where="the prompts")


def test_what_a_policy_is_not_asked():
    require_writer(ReadingSettings("chat"), name="policy_reading")
    with pytest.raises(ConfigError, match=r"policy_reading.append_eos is True"):
        require_writer(ReadingSettings(append_eos=True), name="policy_reading")
