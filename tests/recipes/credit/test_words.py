import pytest
import torch
from readings import chat, plain
from saved_models import save_reward_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, wordpiece

from tokencredit.errors import NumericError, ShapeError
from tokencredit.preference.marked_texts import MarkedText, words_of
from tokencredit.recipes.credit.words import as_scorer, encoded_words, kept_words, scores_of_words
from tokencredit.reward_model.hf_perturbed import scores_without_tokens

RESPONSES = ["a good  café 日本 🙂 plot ", "\n bad", "one slow scene , then a good one"]
TEXTS = [MarkedText("", response, ((),)) for response in RESPONSES]
TOKENIZERS = {"byte-level": byte_level, "with bos": lambda: byte_level(bos=True), "bert": wordpiece}


def batch_of(texts=TEXTS, tokenizer=None, *, append_eos=False):
    tokenizer = tokenizer or byte_level()
    reading = plain(tokenizer, append_eos=append_eos)
    if tokenizer.chat_template is not None:
        reading = chat(tokenizer)
    batches = list(encoded_words(reading, texts, batch_size=8))
    ((rows, batch),) = batches
    return rows, batch


def paying(batch, wanted):
    """One nat for every token whose characters hold some of the wanted ones, split evenly."""
    scores = torch.zeros(batch.encoded.batch.response_mask.shape)
    for row, (text, spans) in enumerate(
        zip(batch.texts, batch.encoded.response_spans, strict=True)
    ):
        for column, (start, end) in enumerate(spans):
            scores[row, column] = float(wanted in text.response[start:end])
    return scores


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_pays_one_word_pays_that_word_and_no_other(name):
    rows, batch = batch_of(tokenizer=TOKENIZERS[name]())
    words = scores_of_words(paying(batch, "oo"), batch, name="it")
    for row, scores in zip(rows, words, strict=True):
        for (start, end), score in zip(words_of(RESPONSES[row]), scores, strict=True):
            assert (score > 0) == ("oo" in RESPONSES[row][start:end])


@pytest.mark.parametrize("append_eos", [False, True])
def test_sums_are_kept_but_for_tokens_without_characters(append_eos):
    rows, batch = batch_of(append_eos=append_eos)
    mask = batch.encoded.batch.response_mask
    scores = torch.randn(mask.shape).masked_fill(~mask, float("nan"))
    for words, paid, counted, spans in zip(
        scores_of_words(scores, batch, name="it"),
        scores,
        mask,
        batch.encoded.response_spans,
        strict=True,
    ):
        visible = paid[counted][: len(spans) - append_eos]
        assert sum(words) == pytest.approx(float(visible.sum()), abs=1e-5)
    assert sorted(rows) == [0, 1, 2]


def test_batches_hold_every_text_once_the_longest_first():
    batches = list(encoded_words(plain(byte_level()), TEXTS, batch_size=2))
    assert [rows for rows, _ in batches] == [[2, 0], [1]]
    assert [text for rows, batch in batches for text in batch.texts] == [
        TEXTS[row] for row in (2, 0, 1)
    ]


def test_texts_alone_are_read_as_they_are_and_prompts_are_rendered():
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    _, alone = batch_of(tokenizer=tokenizer)
    _, asked = batch_of([MarkedText("rate", "good", ((),))], tokenizer)
    assert alone.encoded.batch.prompt_ids.shape[1] == 1
    assert "user" in tokenizer.decode(asked.encoded.batch.prompt_ids[0])


def test_tokens_know_their_words():
    _, batch = batch_of(append_eos=True)
    nowhere = batch.word_mask.shape[1]
    for text, ids, spans, mask in zip(
        batch.texts,
        batch.token_words.tolist(),
        batch.encoded.response_spans,
        batch.encoded.batch.response_mask,
        strict=True,
    ):
        words = words_of(text.response)
        assert ids[len(spans) - 1] == nowhere
        assert set(ids[len(spans) :]) <= {-1}
        assert int(mask.sum()) == len(spans)
        for at, (start, end) in zip(ids, spans, strict=False):
            piece = text.response[start:end].strip()
            assert at == nowhere or piece in text.response[slice(*words[at])]
        assert set(ids) - {nowhere, -1} == set(range(len(words)))


def test_keeping_words_is_keeping_their_tokens(tmp_path):
    tokenizer = byte_level()
    model = save_reward_model(tmp_path, tokenizer)
    texts = [MarkedText("", "a good film", ((),)), MarkedText("", "bad", ((),))]
    _, batch = batch_of(texts, tokenizer)
    by_tokens = scores_without_tokens(model, batch.encoded.batch)
    keep = torch.tensor([[[True, False, True], [False] * 3], [[True, False, False], [False] * 3]])
    scores = kept_words(by_tokens, batch)(keep)
    start = tokenizer.bos_token_id

    def score(text):
        ids = torch.tensor([[start, *(tokenizer(text)["input_ids"] if text else [])]])
        return model(input_ids=ids).logits.item()

    expected = [[score("a film"), score("")], [score("bad"), score("")]]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=1e-3)


def test_what_is_not_a_score_per_token():
    _, batch = batch_of()
    mask = batch.encoded.batch.response_mask
    with pytest.raises(ShapeError, match="'mine' gives token scores of shape"):
        scores_of_words(torch.zeros(3, 2), batch, name="mine")
    with pytest.raises(NumericError, match="'mine' gives NaN"):
        scores_of_words(torch.full(mask.shape, torch.nan), batch, name="mine")


def test_a_scorer_of_ones_own():
    _, batch = batch_of()
    scorer = as_scorer("mine", lambda responses: responses.response_mask.float())
    assert torch.equal(scorer(batch)["mine"], batch.encoded.batch.response_mask.float())
