"""The methods of `generate` that search over segments of responses, by name."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.hf_branching_texts import TextSampling
from tokencredit.decoding.hf_cascade import cascade_sampling
from tokencredit.decoding.hf_implicit_search import implicit_beam_search, implicit_scorer
from tokencredit.decoding.hf_segment_search import (
    SearchOutput,
    speculative_rejection,
    tree_search,
)
from tokencredit.decoding.implicit_search_rules import layer_lengths
from tokencredit.errors import ConfigError
from tokencredit.hf_loading import load_model, load_tokenizer
from tokencredit.hf_logprobs import require_same_vocabulary
from tokencredit.recipes.token_scorer import policy_scores

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
    sampling = TextSampling(
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens,
        top_k=config.top_k or 0,
        top_p=config.top_p,
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=models.tokenizer.pad_token_id,
    )

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
            n=config.n,
            rejection_share=config.rejection_share,
            check_every=config.chunk_tokens,
        )
    if config.method == "chunk-beam":
        return tree_search(
            *prompts,
            score,
            sampling,
            keep=config.beams or 1,
            children=config.n,
            lengths=_chunks(config.max_new_tokens, config.chunk_tokens),
        )
    return tree_search(
        *prompts,
        implicit_scorer(*models.implicit),
        sampling,
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
