import re

import pytest
import torch
from readings import encode_responses
from tiny_tokenizers import byte_level, unigram, word_level

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, DataError
from tokencredit.text.hf_decoding import response_text_segments
from tokencredit.text.segments import require_tiling, segment_lengths

TEXTS = ["good . café 日本。bad, then 🙂 film .", "one slow scene , then a plot ."]
TOKENIZERS = {
    "byte-level": byte_level(),
    "bytes": byte_level(merges=0),
    "word level": word_level(texts=TEXTS * 4),
    "unigram": unigram(texts=TEXTS * 4),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
RESPONSES = [" the film is good . the plot is bad , and slow .", " a good film", " bad . good"]
PROMPTS = ["one film .", "a", "one slow scene , then"]


def texts_of(tokenizer, batch, segment_ids, row):
    """Each segment's ids decoded alone, without spaces."""
    count = int(segment_ids[row].max()) + 1
    own = [batch.response_ids[row][segment_ids[row] == k].tolist() for k in range(count)]
    return [tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in own]


@every_tokenizer
def test_sentences_and_clauses_of_ids(tokenizer):
    batch = encode_responses(tokenizer, PROMPTS, RESPONSES, append_eos=True).batch
    sentences = response_text_segments(tokenizer, batch, kind="sentence")
    clauses = response_text_segments(tokenizer, batch, kind="clause")
    for segment_ids in (sentences, clauses):
        require_tiling(segment_ids, batch.response_mask)
    if tokenizer is not TOKENIZERS["word level"]:  # which knows only some of these words
        found = [texts_of(tokenizer, batch, sentences, row) for row in range(3)]
        assert found == [
            ["thefilmisgood.", "theplotisbad,andslow."],
            ["agoodfilm"],
            ["bad.", "good"],
        ]
        assert texts_of(tokenizer, batch, clauses, 0)[1:] == ["theplotisbad,", "andslow."]


def words_of(text):
    return [word.span() for word in re.finditer(r"\w+", text)]


@every_tokenizer
def test_phrases_and_spans_of_ids(tokenizer):
    batch = encode_responses(tokenizer, PROMPTS, RESPONSES, append_eos=True).batch
    phrases = response_text_segments(tokenizer, batch, kind="phrase", length=3)
    words = response_text_segments(tokenizer, batch, kind="spans", function=words_of)
    for segment_ids in (phrases, words):
        require_tiling(segment_ids, batch.response_mask)
    if tokenizer is not TOKENIZERS["word level"]:
        assert texts_of(tokenizer, batch, phrases, 0) == [
            *("thefilm", "isgood.", "theplot", "isbad,", "andslow.")
        ]
        assert texts_of(tokenizer, batch, words, 1) == ["a", "good", "film"]


def test_what_is_no_span_of_the_text_is_an_error():
    batch = encode_responses(byte_level(), ["a"], [" bad"]).batch
    with pytest.raises(DataError, match=r"the span \(2, 9\) of a unit in a text of 4 characters"):
        response_text_segments(byte_level(), batch, kind="spans", function=lambda _: [(2, 9)])


@pytest.mark.parametrize("merges", [0, 60])
def test_characters_of_many_bytes_stay_whole(merges):
    tokenizer = byte_level(merges=merges)
    batch = encode_responses(tokenizer, ["a"], [" café 日本。good 🙂 film"]).batch
    segment_ids = response_text_segments(tokenizer, batch, kind="sentence")
    assert texts_of(tokenizer, batch, segment_ids, 0) == ["café日本。", "good🙂film"]


def test_tokens_that_the_policy_did_not_choose_have_no_segment():
    """The middle sentence is a tool's: it leaves no gap in the numbers."""
    tokenizer = byte_level()
    batch = encode_responses(tokenizer, ["a"], [" good . bad . good ."]).batch
    whole = response_text_segments(tokenizer, batch, kind="sentence")
    assert segment_lengths(whole).shape == (1, 3)
    chosen = ResponseBatch(
        batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask & (whole != 1)
    )
    segment_ids = response_text_segments(tokenizer, chosen, kind="sentence")
    require_tiling(segment_ids, chosen.response_mask)
    assert torch.equal(segment_ids, torch.where(whole == 2, 1, torch.where(whole == 1, -1, whole)))


def test_a_row_without_response():
    batch = encode_responses(byte_level(), ["a", "a"], ["", " bad . good"], empty="keep").batch
    segment_ids = response_text_segments(byte_level(), batch, kind="sentence")
    assert segment_ids[0].eq(-1).all()
    assert segment_ids[1].max() == 1


def test_no_such_kind(unchecked):
    batch = encode_responses(byte_level(), ["a"], [" b"]).batch
    with pytest.raises(ConfigError, match="kind is 'word'"):
        response_text_segments(byte_level(), batch, kind="word")
