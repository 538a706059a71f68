"""Readings for tests, made from tokenizers alone."""

from types import SimpleNamespace

from tiny_tokenizers import byte_level

from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.text.hf_known_readings import reading_of, written_by
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings

TEXT_MARKS = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


def plain(tokenizer, *, append_eos=False):
    return Reading(tokenizer, "plain", append_eos, written_by(tokenizer).turn_ends)


def chat(tokenizer):
    return Reading(tokenizer, "chat", False, written_by(tokenizer).turn_ends)


def encoded_texts(tokenizer, prompts, responses, *, append_eos, **options):
    texts = all(isinstance(prompt, str) for prompt in prompts)
    reading = plain(tokenizer, append_eos=append_eos) if texts else chat(tokenizer)
    return reading.rows(prompts, responses, **options)


def local_scorer(model, tokenizer, policy_tokenizer, *, reading=None, **options):
    read = reading_of(model, tokenizer, reading or ReadingSettings())
    return LocalScorer(model, read, written_by(policy_tokenizer), **options)


def training_reading(settings, tokenizer):
    """What a decoder is trained to read by these settings."""
    model = SimpleNamespace(config=SimpleNamespace())
    return reading_of(model, tokenizer, settings.reading, training=True)


def text_marks():
    """A template of mere text, whose opening and closing are one token where nothing is between."""
    tokenizer = byte_level(texts=["a\n\n", "\n\n"] * 30, chat_template=TEXT_MARKS)
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    return Reading(tokenizer, "chat")
