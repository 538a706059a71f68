"""Tiny reward models in folders, as `save_pretrained` leaves them."""

from pathlib import Path
from typing import Any

from tiny_models import tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_reward_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    architecture: str = "gpt2",
    **overrides: Any,
) -> PreTrainedModel:
    """Save a random reward model with this tokenizer; return it."""
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 128} | overrides
    model = tiny_model(architecture, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
