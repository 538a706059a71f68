from types import SimpleNamespace

from readings import training_reading
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.recipes.run.shown_reading import reading_line, shown_example
from tokencredit.text.reading_settings import ReadingSettings


def test_the_line_and_the_example_say_what_is_read():
    reading = training_reading(
        SimpleNamespace(reading=ReadingSettings()), byte_level(chat_template=CHAT_TEMPLATE)
    )
    assert "closed by '<eos>\\n'" in reading_line(reading)
    (row,) = reading.rows([[{"role": "user", "content": "rate this film"}]], ["good"])
    shown = shown_example(reading, row)
    assert "<bos>assistant" in shown
    assert "read at the last one" in shown
    counted = [at >= row.start for at in range(len(row))]
    learnt = shown_example(reading, row, counted=counted)
    assert learnt.endswith(f"those that the loss counts in brackets ({len(row) - row.start})")
    assert "['<eos>']" in learnt
