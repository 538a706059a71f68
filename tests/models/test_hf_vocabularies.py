import pytest
from tiny_tokenizers import byte_level

from tokencredit.models.hf_vocabularies import token_ids_without_text


def test_rows_behind_the_last_token_have_no_text():
    tokenizer = byte_level()
    size = len(tokenizer)
    assert token_ids_without_text(tokenizer, size) == []
    assert token_ids_without_text(tokenizer, size + 3) == [size, size + 1, size + 2]
    tokenizer.add_tokens(["<more>"])
    assert token_ids_without_text(tokenizer, size + 3) == [size + 1, size + 2]


def test_holes_in_the_vocabulary_have_no_text(monkeypatch: pytest.MonkeyPatch):
    tokenizer = byte_level()
    vocabulary = tokenizer.get_vocab() | {"<late>": len(tokenizer) + 2}
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: vocabulary)
    size = len(vocabulary) - 1
    assert token_ids_without_text(tokenizer, size + 4) == [size, size + 1, size + 3]
