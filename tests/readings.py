"""Readings for tests, made from tokenizers alone."""

from types import SimpleNamespace

from tokencredit.scorers.local import LocalScorer
from tokencredit.text.hf_known_readings import reading_of, written_by
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings


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
