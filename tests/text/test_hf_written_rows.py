import torch
from readings import chat, text_marks
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.batch import ResponseBatch
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import ended_responses, written_rows

ASK = [{"role": "user", "content": "rate this film"}]


def test_a_written_response_stands_in_marks_of_text():
    reading = text_marks()
    batch = ResponseBatch.of_rows([[5]] * 2, [[70, 2], [70, 71]], pad_token_id=0)
    rows = written_rows(reading, batch, [ASK, ASK], torch.tensor([True, False]))
    said = reading.tokenizer.decode([70])
    before = "### user:\nrate this film\n### assistant:\n"
    ids = [row[real] for row, real in zip(rows.batch.input_ids, rows.attention_mask, strict=True)]
    assert reading.tokenizer.decode(ids[0]) == f"{before}{said}\n"
    assert reading.tokenizer.decode(ids[1]) == before + reading.tokenizer.decode([70, 71])


def test_written_ids_are_read_as_they_were_drawn():
    """Not as the tokenizer would cut their text: "good" in letters stays in letters."""
    reading = chat(byte_level(chat_template=CHAT_TEMPLATE))
    letters = [
        i for c in "good" for i in reading.tokenizer(c, add_special_tokens=False)["input_ids"]
    ]
    batch = ResponseBatch.of_rows([[5], [5]], [[*letters, 2], letters], pad_token_id=0)
    ended = ended_responses(batch, reading.turn_ends).any(-1)
    assert ended.tolist() == [True, False]
    rows = written_rows(reading, batch, [ASK, ASK], ended)
    frame = reading.encoded([ASK], ["good"]).batch
    for row, closing in (
        (0, [2, *reading.tokenizer("\n", add_special_tokens=False)["input_ids"]]),
        (1, []),
    ):
        ids = rows.batch.input_ids[row][rows.attention_mask[row]].tolist()
        assert ids == [*frame.prompt_ids[0].tolist(), *letters, *closing]
    assert rows.batch.response_mask.sum(-1).tolist() == [len(letters) + 1, len(letters)]


def test_an_end_that_the_model_does_not_read_still_counts():
    reading = Reading(byte_level(), append_eos=False, turn_ends=(2,))
    batch = ResponseBatch.of_rows([[5]], [[9, 2]], pad_token_id=0)
    rows = written_rows(reading, batch, None, torch.tensor([True]))
    assert rows.batch.response_mask.tolist() == [[True, True]]
    assert rows.attention_mask.tolist() == [[True, True, False]]
