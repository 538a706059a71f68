import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import (
    CHAT_TEMPLATE,
    SlowTokenizer,
    byte_level,
    unigram,
    word_level,
    wordpiece,
)

from tokencredit.errors import DataError, ModelError
from tokencredit.text.hf_decoding import decoded_response, token_spans
from tokencredit.text.hf_encoding import encode_chats, encode_responses
from tokencredit.text.hf_reading import Reading

TOKENIZERS = {
    "byte-level": byte_level(),
    "byte-level, first token": byte_level(bos=True),
    "bytes": byte_level(merges=0),
    "word level": word_level(),
    "unigram": unigram(),
    "unigram, first token": unigram(bos=True),
    "wordpiece": wordpiece(),
}
PROMPTS = ["the film is", "one slow scene ,", "a"]
RESPONSES = [" a good café 日本 🙂 plot", " good", " bad , then good  "]
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def real(encoded, row):
    """Ids of one row without padding, tail included."""
    return encoded.batch.input_ids[row][encoded.attention_mask[row].bool()].tolist()


@every_tokenizer
def test_the_ids_are_those_of_the_joined_text(tokenizer):
    encoded = encode_responses(tokenizer, PROMPTS, RESPONSES)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        assert real(encoded, row) == tokenizer(prompt + response)["input_ids"]


@every_tokenizer
def test_padding_is_known_by_mask(tokenizer):
    batch = encode_responses(tokenizer, PROMPTS, RESPONSES).batch
    assert bool(batch.prompt_mask[:, -1].all())
    assert bool(batch.response_mask[:, 0].all())
    # False, then True; True, then False.
    assert bool((batch.prompt_mask.int().diff(dim=-1) >= 0).all())
    assert bool((batch.response_mask.int().diff(dim=-1) <= 0).all())


@every_tokenizer
def test_a_batch_equals_its_rows(tokenizer):
    together = encode_responses(tokenizer, PROMPTS, RESPONSES)
    for row in range(len(PROMPTS)):
        alone = encode_responses(tokenizer, [PROMPTS[row]], [RESPONSES[row]])
        assert alone.response_spans == [together.response_spans[row]]
        assert real(alone, 0) == real(together, row)
        assert alone.batch.lengths.tolist() == [together.batch.lengths[row]]


@every_tokenizer
def test_spans_cover_the_response(tokenizer):
    encoded = encode_responses(tokenizer, PROMPTS, RESPONSES)
    for spans, response in zip(encoded.response_spans, RESPONSES, strict=True):
        covered = set().union(*(range(*span) for span in spans))
        assert set(range(len(response.rstrip()))) <= covered <= set(range(len(response)))
        assert spans == sorted(spans)
    assert encoded.batch.lengths.tolist() == [len(spans) for spans in encoded.response_spans]


def test_spans_literal():
    encoded = encode_responses(word_level(), ["the film is"], [" good , 日本"])
    assert encoded.response_spans == [[(0, 5), (5, 7), (7, 10)]]


def test_bytes_of_a_character_share_its_span():
    encoded = encode_responses(byte_level(merges=0), ["a"], ["é🙂!"])
    assert encoded.response_spans == [[(0, 1)] * 2 + [(1, 2)] * 4 + [(2, 3)]]


def test_a_token_on_the_border_belongs_to_the_response():
    """'the fi' + 'lm' has one token for 'film', which no prompt of 'the fi' alone would have."""
    encoded = encode_responses(word_level(), ["the fi"], ["lm is good"])
    assert encoded.batch.prompt_ids.shape == (1, 1)
    assert encoded.response_spans == [[(0, 2), (2, 5), (5, 10)]]


def test_a_space_between_prompt_and_response():
    """Wherever the space is written, it is part of the token behind it."""
    tokenizer = byte_level()
    before = encode_responses(tokenizer, ["the film is "], ["good"])
    behind = encode_responses(tokenizer, ["the film is"], [" good"])
    torch.testing.assert_close(before.batch.input_ids, behind.batch.input_ids)
    assert (before.response_spans, behind.response_spans) == ([[(0, 4)]], [[(0, 5)]])


@pytest.mark.parametrize("prompt", ["the film is", "<bos>the film is"])
def test_one_beginning_of_sequence(prompt):
    tokenizer = byte_level(bos=True)
    ids = real(encode_responses(tokenizer, [prompt], [" good"]), 0)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_first_token_stands_for_an_empty_prompt():
    encoded = encode_responses(byte_level(bos=True), [""], ["good film"])
    assert encoded.batch.prompt_ids.tolist() == [[1]]
    assert encoded.response_spans[0][0][0] == 0


def test_closing_tokens_are_seen_but_do_not_count():
    tokenizer = wordpiece()
    encoded = encode_responses(tokenizer, ["the film is"] * 2, [" good", " good and bad"])
    sep = tokenizer.sep_token_id
    for row, length in enumerate(encoded.batch.lengths.tolist()):
        assert encoded.batch.response_ids[row, length] == sep
        assert real(encoded, row)[-1] == sep
    assert bool(encoded.attention_mask.sum() == encoded.batch.attention_mask.sum() + 2)


def test_an_end_of_sequence_can_be_a_response_token():
    tokenizer = byte_level()
    encoded = encode_responses(tokenizer, ["the film is"], [" good"], append_eos=True)
    assert encoded.batch.response_ids[0, -1] == tokenizer.eos_token_id
    assert bool(encoded.batch.response_mask.all())
    assert encoded.response_spans[0][-1] == (5, 5)


def test_some_responses_can_end_and_others_not():
    tokenizer = byte_level()
    ended = [True, False, True]
    encoded = encode_responses(tokenizer, PROMPTS, RESPONSES, append_eos=ended)
    assert [real(encoded, row)[-1] == tokenizer.eos_token_id for row in range(3)] == ended


def test_an_end_of_sequence_that_the_tokenizer_adds_is_not_doubled():
    tokenizer = wordpiece()
    tokenizer.eos_token = "[SEP]"
    encoded = encode_responses(tokenizer, ["the film is"], [" good"], append_eos=True)
    assert real(encoded, 0) == tokenizer("the film is good")["input_ids"]
    assert bool(encoded.batch.response_mask[0, -1])


def test_an_end_of_sequence_that_is_not_there():
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        encode_responses(wordpiece(), ["a"], [" good"], append_eos=True)


def test_chats_are_rendered_by_the_template():
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    conversations = [
        [{"role": "user", "content": "rate this film"}],
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "rate the plot"},
        ],
    ]
    answers = ["a good café 🙂", " bad"]
    encoded = encode_chats(tokenizer, conversations, answers)
    for row, (conversation, answer) in enumerate(zip(conversations, answers, strict=True)):
        messages = [*conversation, {"role": "assistant", "content": answer}]
        rendered = tokenizer.apply_chat_template(messages, return_dict=False)
        assert real(encoded, row) == rendered
        length = len(encoded.response_spans[row])
        ids = encoded.batch.response_ids[row]
        assert tokenizer.decode(ids[:length]) == answer
        assert ids[length] == tokenizer.eos_token_id
        assert encoded.batch.response_mask[row].sum() == length
        assert encoded.response_spans[row][-1][1] == len(answer)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE.replace("<bos>", "")])
def test_a_first_token_is_not_added_to_a_rendered_chat(template):
    tokenizer = byte_level(bos=True, chat_template=template)
    encoded = encode_chats(tokenizer, [[{"role": "user", "content": "hello"}]], ["good"])
    beginnings = 2 if "<bos>" in template else 0  # what the template writes, one per message
    assert real(encoded, 0).count(tokenizer.bos_token_id) == beginnings


def test_a_token_that_reaches_past_the_response_belongs_to_it():
    """The template writes an s behind the response, and 'films' is one token."""
    template = "{% for message in messages %}{{ message['content'] }}s {% endfor %}"
    tokenizer = word_level(chat_template=template)
    encoded = encode_chats(tokenizer, [[{"role": "user", "content": "rate"}]], ["good film"])
    assert encoded.response_spans == [[(0, 4), (4, 9)]]
    assert encoded.attention_mask.sum() == 3


def test_a_template_may_trim_the_response():
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    tokenizer = word_level(chat_template=template)
    encoded = encode_chats(tokenizer, [[{"role": "user", "content": "rate"}]], ["  good film "])
    assert encoded.response_spans == [[(2, 6), (6, 11)]]


def test_a_template_that_rewrites_the_response_is_read_as_it_renders():
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper")
    tokenizer = byte_level(chat_template=template)
    encoded = encode_chats(tokenizer, [[{"role": "user", "content": "rate"}]], ["good"])
    assert tokenizer.decode(real(encoded, 0)).count("GOOD") == 1
    assert {(0, 0)} == set(encoded.response_spans[0])


def test_a_template_that_refuses_the_messages():
    tokenizer = byte_level(chat_template="{{ raise_exception('no system turn') }}")
    with pytest.raises(DataError, match=r"refuses messages with the roles \['system', 'assistant'"):
        encode_chats(tokenizer, [[{"role": "system", "content": "rate"}]], ["good"])


def test_chats_without_a_template():
    with pytest.raises(ModelError, match="has no chat template"):
        encode_chats(byte_level(), [[{"role": "user", "content": "rate"}]], ["good"])


def test_an_empty_response_is_an_error_unless_it_is_to_be_kept():
    with pytest.raises(DataError, match="response 1 is empty"):
        encode_responses(byte_level(), ["a", "a"], [" good", ""])
    kept = encode_responses(byte_level(), ["a", "a"], [" good", ""], empty="keep")
    assert kept.batch.lengths.tolist() == [1, 0]
    alone = encode_responses(byte_level(), ["a"], [""], empty="keep")
    assert alone.batch.response_mask.tolist() == [[False]]
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    chat = encode_chats(tokenizer, [[{"role": "user", "content": "a"}]], [""], empty="keep")
    assert chat.batch.lengths.tolist() == [0]
    assert chat.attention_mask[0, -1] == 1


def test_a_response_of_spaces_has_no_tokens_in_some_tokenizers():
    with pytest.raises(DataError, match="response 0 has no tokens"):
        encode_responses(word_level(), ["the film"], ["  "])


def test_an_empty_prompt_needs_a_first_token():
    with pytest.raises(DataError, match="no token precedes response 1"):
        encode_responses(byte_level(), ["a", ""], [" good", "good"])


def test_an_empty_prompt_stands_for_the_start_of_a_sequence():
    tokenizer = byte_level()
    encoded = Reading(tokenizer).encoded(["a", ""], [" good", "good"])
    assert encoded.batch.prompt_ids[1, -1] == tokenizer.bos_token_id
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="no token that begins a sequence"):
        Reading(tokenizer).encoded([""], ["good"])


def test_a_text_that_is_too_long():
    encode_responses(word_level(), ["the film is"], [" good"], max_length=4)
    with pytest.raises(DataError, match=r"row 0 has 4 tokens, 3 of them in the prompt.*at most 3"):
        encode_responses(word_level(), ["the film is"], [" good"], max_length=3)


def test_prompts_and_responses_in_different_numbers():
    with pytest.raises(DataError, match="2 prompts and 1 responses"):
        encode_responses(byte_level(), ["a", "a"], [" good"])
    with pytest.raises(DataError, match="no responses"):
        encode_responses(byte_level(), [], [])


def test_a_tokenizer_without_offsets():
    with pytest.raises(ModelError, match=r"SlowTokenizer.*cannot give character offsets"):
        encode_responses(SlowTokenizer(), ["a"], [" good"])


def test_a_tokenizer_without_a_pad_token():
    with pytest.raises(ModelError, match="has no pad token"):
        encode_responses(byte_level(pad_token=None), ["a"], [" good"])


def test_the_pad_token_changes_nothing_but_what_lies_under_the_mask():
    """The end of sequence as pad token, and counted at the end of each response."""
    usual = encode_responses(byte_level(), PROMPTS, RESPONSES, append_eos=True)
    ended = encode_responses(byte_level(pad_token="<eos>"), PROMPTS, RESPONSES, append_eos=True)
    torch.testing.assert_close(usual.batch.response_mask, ended.batch.response_mask)
    torch.testing.assert_close(usual.attention_mask, ended.attention_mask)
    assert [real(usual, row) for row in range(3)] == [real(ended, row) for row in range(3)]


@every_tokenizer
def test_decoding_gives_the_spans_of_encoding(tokenizer):
    """Found by decoding ids alone, wherever decoding gives the text back."""
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        encoded = encode_responses(tokenizer, [prompt], [response])
        batch = encoded.batch
        prompt_ids = batch.prompt_ids[0].tolist()
        response_ids = batch.response_ids[0][batch.response_mask[0]].tolist()
        decoded = decoded_response(tokenizer, prompt_ids, response_ids)
        if decoded.prompt + decoded.response == prompt + response:
            assert decoded.response == response
            # Unigram gives the space before a word to whichever piece of it comes first.
            assert decoded.spans == encoded.response_spans[0]
        assert len(decoded.spans) == len(response_ids)


def test_decoding_a_character_that_never_ends():
    """Generation was cut inside a character, and inside another one bytes are missing."""
    tokenizer = byte_level(merges=0)
    smile, letter = (tokenizer(text)["input_ids"] for text in ("🙂", "a"))
    decoded = decoded_response(tokenizer, letter, [*smile[:2], *letter, *smile, *smile[:3]])
    assert decoded.response.startswith("\ufffd")
    assert decoded.response.endswith("a🙂\ufffd")
    end = len(decoded.response)
    assert decoded.spans[-3:] == [(end - 1, end)] * 3
    assert decoded.spans[-7:-3] == [(end - 2, end - 1)] * 4


def test_decoding_a_character_that_a_special_token_cuts_off():
    tokenizer = byte_level(merges=0)
    letter, smile = tokenizer("a🙂")["input_ids"][:1], tokenizer("🙂")["input_ids"]
    decoded = decoded_response(tokenizer, letter, [smile[0], tokenizer.eos_token_id])
    assert decoded.spans == [(0, 1), (1, 1)]


def test_decoding_a_character_that_begins_in_the_prompt():
    tokenizer = byte_level(merges=0)
    smile = tokenizer("🙂")["input_ids"]
    decoded = decoded_response(tokenizer, smile[:2], smile[2:])
    assert (decoded.prompt, decoded.response, decoded.spans) == ("", "🙂", [(0, 1), (0, 1)])


def test_decoding_leaves_special_tokens_out():
    tokenizer = byte_level()
    good, eos = tokenizer(" good")["input_ids"], tokenizer.eos_token_id
    decoded = decoded_response(tokenizer, [tokenizer.bos_token_id], [eos, *good, eos, eos])
    assert decoded.response == " good"
    assert decoded.spans == [(0, 0), (0, 5), (5, 5), (5, 5)]
    assert token_spans(tokenizer, [eos]) == [(0, 0)]
    assert token_spans(tokenizer, []) == []


def test_decoding_behind_special_tokens_only():
    """A leading-space rule looks past special tokens: the window of context must reach further."""
    tokenizer = unigram()
    eos, good = tokenizer.eos_token_id, tokenizer("good film")["input_ids"]
    decoded = decoded_response(tokenizer, tokenizer("a")["input_ids"] + [eos] * 9, good)
    assert decoded.response == " good film"
    assert decoded.spans[-1][1] == len(decoded.response)


def test_slow_tokenizers_can_decode():
    tokenizer = SlowTokenizer()
    assert token_spans(tokenizer, tokenizer("good")["input_ids"]) == [(i, i + 1) for i in range(4)]


@given(st.lists(st.integers(0, 319), max_size=20), st.sampled_from(["byte-level", "unigram"]))
def test_spans_of_any_ids_are_in_order_and_inside_the_text(ids, name):
    tokenizer = TOKENIZERS[name]
    ids = [token for token in ids if token < len(tokenizer)]
    decoded = decoded_response(tokenizer, ids[:3], ids[3:])
    assert len(decoded.spans) == len(ids[3:])
    ends = [0, *(end for _, end in decoded.spans)]
    assert ends == sorted(ends)
    assert all(0 <= start <= end <= len(decoded.response) for start, end in decoded.spans)


def test_bytes_of_no_character_are_not_decoded_over_and_over(monkeypatch):
    tokenizer = byte_level()
    lone = tokenizer.convert_tokens_to_ids("Ģ")  # a byte that goes on a character
    ids = [*([lone] * 40 + tokenizer("a")["input_ids"]) * 25, lone]
    read, decode = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **k: read.append(len(ids)) or decode(ids))
    decoded = decoded_response(tokenizer, [], ids)
    assert decoded.response == ("\ufffd" * 40 + "a") * 25 + "\ufffd"
    assert [decoded.spans[at] for at in (40, 81)] == [(0, 41), (41, 82)]
    assert sum(read) < 30 * len(ids)


def test_half_of_a_character_is_no_text():
    tokenizer = byte_level(bos=True, chat_template=CHAT_TEMPLATE)
    with pytest.raises(DataError, match="text 1 holds the lone surrogate"):
        encode_responses(tokenizer, ["a", "a"], [" good", " \ud83d good"])
    with pytest.raises(DataError, match="text 0 holds the lone surrogate"):
        encode_chats(tokenizer, [[{"role": "user", "content": "\udc00"}]], [" good"])
