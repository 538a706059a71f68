"""Tiny language models whose keys can be kept, for the tests of what is read once."""

from typing import Any

from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("opt", {}),
    ("gpt_neox", {}),
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 24}),
    ("gemma", {}),
    ("gemma2", {"sliding_window": 24, "attn_logit_softcapping": 20.0}),
    ("gemma3_text", {"sliding_window": 24}),
]
"""Names and changes, with windows that hold the texts of these tests."""


def causal(family: str, **changes: Any) -> Any:
    """A tiny language model; Gemma 2 and BLOOM have eager attention alone."""
    if family in ("gemma2", "bloom"):
        changes["attn_implementation"] = "eager"
    return tiny_model(family, auto_class=AutoModelForCausalLM, **changes)
