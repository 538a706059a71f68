"""A tiny language model, reward models beside it, and their plain unbatched forward passes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny_models import PAD_ID, padding_mask, tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.decoding.hf_guide import RewardGuide

PROMPT_LENGTHS = [6, 3, 5]


def language_model(architecture: str = "llama", **overrides: Any) -> Any:
    """Logits far enough from uniform, and without an end of sequence unless told so."""
    model = tiny_model(architecture, auto_class=AutoModelForCausalLM, **overrides)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD_ID
    return model


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a batch padded on the left."""
    mask = padding_mask(PROMPT_LENGTHS, side="left")
    return tiny_ids(*mask.shape, seed=5).masked_fill(~mask, PAD_ID), mask


def next_logits_of(model: Any) -> Callable[[Sequence[int]], list[float]]:
    @torch.no_grad()
    def next_logits(ids: Sequence[int]) -> list[float]:
        return model(torch.tensor([list(ids)])).logits[0, -1].tolist()

    return next_logits


def score_of(model: Any) -> Callable[[Sequence[int]], float]:
    """The score of the model's own forward, which reads the last id where none is padding."""

    @torch.no_grad()
    def score(ids: Sequence[int]) -> float:
        hidden = model.base_model(torch.tensor([list(ids)])).last_hidden_state
        return float(model.score(hidden)[0, -1, 0])

    return score


def responses(
    model: Any, guide: RewardGuide, ids: torch.Tensor, mask: torch.Tensor, **options: Any
) -> torch.Tensor:
    """What `generate()` gives behind the prompts, greedily unless told otherwise."""
    settings = {"max_new_tokens": 8, "do_sample": False} | options
    if "custom_generate" not in settings:
        guide.attention_mask = mask
    sequences = model.generate(
        ids, attention_mask=mask.long(), logits_processor=[guide], **settings
    )
    return sequences[:, ids.shape[1] :]
