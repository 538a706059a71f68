import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokencredit.toy.hf_tokenizer import toy_tokenizer
from tokencredit.toy.reviews import VOCABULARY, sample_prompt, sample_review
from tokencredit.toy.truth import split_words


@pytest.fixture(scope="module", params=["fresh", "saved"])
def tokenizer(request, tmp_path_factory) -> PreTrainedTokenizerFast:
    tokenizer = toy_tokenizer()
    if request.param == "saved":
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def test_special_tokens_are_four_different_ones(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.unk_token_id] == [0, 1, 2, 3]
    assert len(tokenizer) == len(VOCABULARY) + 4


def test_token_t_is_word_t(tokenizer):
    review = sample_review(random.Random(0))
    ids = tokenizer(review)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[1:]) == split_words(review)


def test_offsets_name_the_words(tokenizer):
    review = "The plot is dull, but it works."
    encoded = tokenizer(review, add_special_tokens=False, return_offsets_mapping=True)
    words = [review[start:end] for start, end in encoded["offset_mapping"]]
    assert words == ["The", "plot", "is", "dull", ",", "but", "it", "works", "."]


def test_decoded_text_encodes_to_the_same_ids(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.randrange(len(tokenizer)) for _ in range(30)]
        text = tokenizer.decode(ids)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_decoded_parts_join_to_the_decoded_whole(tokenizer):
    ids = tokenizer(sample_review(random.Random(1)), add_special_tokens=False)["input_ids"]
    for cut in range(len(ids)):
        assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:]) == tokenizer.decode(ids)
    assert tokenizer.decode(ids) == " " + sample_review(random.Random(1))


def test_unknown_words_and_case(tokenizer):
    assert tokenizer("PLOT zxqy", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids("plot"),
        tokenizer.unk_token_id,
    ]


def test_batches_of_prompts_are_padded_on_the_left(tokenizer):
    rng = random.Random(0)
    batch = tokenizer([sample_prompt(rng) for _ in range(8)], padding=True, return_tensors="pt")
    assert batch["attention_mask"][:, -1].all()
    assert (batch["input_ids"] == 0).any()
