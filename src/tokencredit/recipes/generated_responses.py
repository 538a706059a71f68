"""The responses of `generate`, one per prompt, by the method that its settings name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.hf_generate import GuidedOutput, guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.recipes.policy_setup import left_padded
from tokencredit.recipes.searched_responses import (
    SEARCH_METHODS,
    sampled_positions,
    searched_responses,
)
from tokencredit.recipes.token_scorer import policy_scores
from tokencredit.recipes.vocabulary_scores import VOCABULARY_METHODS, vocabulary_sequence_scores


@dataclass(frozen=True)
class Models:
    """Everything that speaks; `implicit` is what DPO trained and its reference."""

    policy: Any
    tokenizer: Any
    reward_model: Any
    reward_tokenizer: Any
    held_out: tuple[Any, Any] | None
    implicit: tuple[Any, Any] | None = None


class Found(NamedTuple):
    """One response per prompt, and what is known of them.

    Attributes:
        batch: the responses.
        guided: what the guide knew at every token, of methods that choose token by token.
        positions: tokens that the models read for each response, where it is known: `lm_positions`
            and `reward_positions`.
    """

    batch: ResponseBatch
    guided: GuidedOutput | None
    positions: dict[str, Tensor]


def responses(
    config: Any,
    models: Models,
    rows: list[list[int]],
    *,
    scorer: Callable[[Any, Models], Any],
) -> Found:
    """One response per prompt by the method of the settings.

    Args:
        config: the settings of `generate`.
        models: that they name.
        rows: token ids of the prompts.
        scorer: makes what scores candidates, of methods that choose token by token.
    """
    prompt_ids, prompt_mask = left_padded(rows, models.tokenizer.pad_token_id)
    device = models.policy.device
    prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
    if config.method in SEARCH_METHODS:
        found = searched_responses(config, models, prompt_ids, prompt_mask)
        read = {"lm_positions": found.lm_positions, "reward_positions": found.scorer_positions}
        return Found(found.batch, None, read)
    limits: dict[str, Any] = {
        "attention_mask": prompt_mask.long(),
        "max_new_tokens": config.max_new_tokens,
        "min_new_tokens": config.min_new_tokens or None,
        "pad_token_id": models.tokenizer.pad_token_id,
        "eos_token_id": models.tokenizer.eos_token_id,
    }
    if config.method in ("unguided", "best-of-n"):
        copies = config.n if config.method == "best-of-n" else 1
        sequences = models.policy.generate(
            prompt_ids, **limits, do_sample=True, top_k=0, num_return_sequences=copies
        )
        batch = _batch(models, prompt_ids, prompt_mask, sequences)
        positions = sampled_positions(batch, copies)
        return Found(batch if copies == 1 else _best(models, batch, copies), None, positions)
    settings = GUIDANCE_METHODS[config.method]
    chosen = {"guidance_beta": config.guidance_beta, "top_k": config.top_k}
    guide = RewardGuide(
        scorer(config, models),
        **settings.guide | {k: v for k, v in chosen.items() if v is not None},
        top_p=config.top_p,
        attention_mask=prompt_mask,
        eos_token_id=models.tokenizer.eos_token_id,
    )
    output = models.policy.generate(
        prompt_ids,
        **limits,
        **settings.sampling,
        logits_processor=[guide],
        custom_generate=guided_generate,
        return_dict_in_generate=True,
    )
    batch = _batch(models, prompt_ids, prompt_mask, output.sequences)
    return Found(batch, output, {})


def _batch(
    models: Models, prompt_ids: Tensor, prompt_mask: Tensor, sequences: Tensor
) -> ResponseBatch:
    """Prompts and what follows them, up to and with the first end of sequence."""
    copies = len(sequences) // len(prompt_ids)
    response = sequences[:, prompt_ids.shape[1] :]
    eos = models.tokenizer.eos_token_id
    ends = response == (-1 if eos is None else eos)
    ended_before = ends.cumsum(-1) - ends.long() > 0
    return ResponseBatch(
        prompt_ids.repeat_interleave(copies, 0),
        prompt_mask.repeat_interleave(copies, 0),
        response,
        ~ended_before,
    )


def _best(models: Models, batch: ResponseBatch, copies: int) -> ResponseBatch:
    """The best of every `copies` responses by the guiding reward model."""
    scores = policy_scores(
        models.reward_model, models.reward_tokenizer, models.tokenizer, batch
    ).sequence_scores
    best = scores.view(-1, copies).argmax(-1)
    return batch[torch.arange(len(best), device=best.device) * copies + best]


def judged(config: Any, models: Models, batch: ResponseBatch, chats: Any) -> dict[str, Tensor]:
    """Scores of the responses by the guiding reward model, and by the other if there is one.

    A guide over the vocabulary gives its own value of the response, see
    `vocabulary_sequence_scores`.
    """

    def by(judge: tuple[Any, Any]) -> Tensor:
        return policy_scores(*judge, models.tokenizer, batch, conversations=chats).sequence_scores

    found: dict[str, Tensor] = {}
    if config.method in VOCABULARY_METHODS:
        found["score"] = vocabulary_sequence_scores(
            models.reward_model,
            batch,
            method=config.method,
            eos_token_id=models.tokenizer.eos_token_id,
        )
    else:
        found["score"] = by((models.reward_model, models.reward_tokenizer))
    if models.held_out is not None:
        found["held_out_score"] = by(models.held_out)
    return found
