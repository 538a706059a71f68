"""The responses of `generate`, one per prompt, by the method that its settings name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.hf_generate import GuidedOutput, guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.decoding.search.hf_cascade import cascade_sampling
from tokencredit.decoding.search.hf_implicit_search import implicit_beam_search, implicit_scorer
from tokencredit.decoding.search.hf_segment_search import (
    SearchOutput,
    speculative_rejection,
    tree_search,
)
from tokencredit.decoding.search.implicit_rules import layer_lengths
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_vocabularies import require_same_vocabulary
from tokencredit.sampling import Sampling
from tokencredit.scorers.local import policy_scores
from tokencredit.scorers.vocabulary import VOCABULARY_METHODS, vocabulary_sequence_scores
from tokencredit.text.hf_token_rows import left_padded


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


SEARCH_METHODS = ("cards", "chunk-beam", "tree-bon", "speculative-rejection", "implicit-beam")


IMPLICIT_METHODS = ("tree-bon", "implicit-beam")
"""Those that need a model that DPO trained."""


def require_search_settings(config: Any) -> None:
    """Refuse settings of `generate` that no search can have.

    Raises:
        ConfigError: one is out of its range, missing, or there for another method.
    """
    for name in ("chunk_tokens", "children", "layers", "max_proposals"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected at least 1")
    if config.beams is not None and config.beams < 1:
        raise ConfigError(f"beams is {config.beams}; expected at least 1, or None")
    if config.method == "cards" and config.target_reward is None:
        raise ConfigError(
            "target_reward is not given for method 'cards'; expected what a good response scores "
            "by this reward model: `generate --method best-of-n` shows what can be had"
        )
    if (config.method in IMPLICIT_METHODS) != (config.implicit_model is not None):
        raise ConfigError(
            f"implicit_model is {config.implicit_model!r} and method {config.method!r}; expected a "
            f"model that DPO trained for {', '.join(IMPLICIT_METHODS)}, and for no other"
        )
    if config.implicit_reference is not None and config.implicit_model is None:
        raise ConfigError(
            f"implicit_reference is {config.implicit_reference!r} without implicit_model; "
            "expected both, or neither"
        )
    if config.method == "tree-bon":
        layer_lengths(config.max_new_tokens, config.layers)
        if config.n % config.children:
            raise ConfigError(
                f"n is {config.n} and children {config.children}; expected a multiple of children: "
                "every layer of the tree has n beginnings"
            )


def loaded_implicit(
    config: Any, policy: Any, tokenizer: Any, **loading: Any
) -> tuple[Any, Any] | None:
    """The model that DPO trained and its reference, the policy by default; None if none is needed.

    Raises:
        ModelError: a model is missing, or reads other ids than the policy.
    """
    if config.implicit_model is None:
        return None
    found = []
    for setting in ("implicit_model", "implicit_reference"):
        name = getattr(config, setting)
        if name is None:
            found.append(policy)
            continue
        other = load_tokenizer(name, trust_remote_code=config.trust_remote_code)
        require_same_vocabulary(tokenizer, other, argument=f"{setting} {name!r}")
        found.append(load_model(AutoModelForCausalLM, name, **loading).eval())
    return found[0], found[1]


def searched_responses(
    config: Any,
    models: Any,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
) -> SearchOutput:
    """One response per prompt by the search that the settings name.

    Args:
        config: the settings of `generate`.
        models: that they name.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
    """
    eos = models.tokenizer.eos_token_id
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens,
        top_k=config.top_k or 0,
        top_p=config.top_p,
    )
    ids = {
        "eos_token_ids": () if eos is None else (eos,),
        "pad_token_id": models.tokenizer.pad_token_id,
    }

    def score(batch: ResponseBatch) -> Float[Tensor, "batch"]:
        return policy_scores(
            models.reward_model, models.reward_tokenizer, models.tokenizer, batch
        ).sequence_scores

    if config.method == "implicit-beam":
        return implicit_beam_search(
            models.implicit[0],
            prompt_ids,
            prompt_mask,
            sampling,
            **ids,
            beams=config.beams or 5,
            top_k=10 if config.top_k is None else config.top_k,
            reference=models.implicit[1],
        )
    prompts = (models.policy, prompt_ids, prompt_mask)
    if config.method == "cards":
        return cascade_sampling(
            *prompts,
            score,
            sampling,
            **ids,
            target_reward=config.target_reward,
            acceptance_beta=config.acceptance_beta,
            threshold_start=config.threshold_start,
            entropy_threshold=config.entropy_threshold,
            max_proposals=config.max_proposals,
        )
    if config.method == "speculative-rejection":
        return speculative_rejection(
            *prompts,
            score,
            sampling,
            **ids,
            n=config.n,
            rejection_share=config.rejection_share,
            check_every=config.chunk_tokens,
        )
    if config.method == "chunk-beam":
        return tree_search(
            *prompts,
            score,
            sampling,
            **ids,
            keep=config.beams or 1,
            children=config.n,
            lengths=_chunks(config.max_new_tokens, config.chunk_tokens),
        )
    return tree_search(
        *prompts,
        implicit_scorer(*models.implicit),
        sampling,
        **ids,
        keep=config.n // config.children,
        children=config.children,
        lengths=layer_lengths(config.max_new_tokens, config.layers),
        final_score=score,
        passes=2,
    )


def sampled_positions(batch: ResponseBatch, copies: int) -> dict[str, Int[Tensor, "prompts"]]:
    """What `generate()` and a scoring of all copies read, as `SearchOutput` counts it.

    The last token of a response is drawn and not read; the prompt is read for every copy.
    """
    prompts, responses = batch.prompt_mask.sum(-1), batch.lengths
    read = torch.stack([prompts + responses - 1, prompts + responses]).view(2, -1, copies).sum(-1)
    return {"lm_positions": read[0], "reward_positions": read[1] if copies > 1 else 0 * read[1]}


def _chunks(tokens: int, chunk: int) -> list[int]:
    """Full chunks, and what is left as the last."""
    return [min(chunk, tokens - start) for start in range(0, tokens, chunk)]
