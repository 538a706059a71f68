"""The credit methods that `compare-credit` knows, as passes over texts that score tokens.

Some bring models of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tokencredit.credit.implicit import log_ratio_credit
from tokencredit.credit.token_judges import discriminator_credit
from tokencredit.errors import ModelError
from tokencredit.models.hf_loading import context_length, load_model, load_tokenizer
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.credit.compare_settings import CompareCreditConfig
from tokencredit.recipes.credit.words import EncodedWords, Scorer, encoded_words
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.reward_model.hf_token_classifier import (
    load_token_classifier,
    token_classifier_logits,
)
from tokencredit.scorers.evidence import ONE_PASS, text_credit
from tokencredit.scorers.implicit import loaded_reference, stored_reference
from tokencredit.scorers.token_scores import credited
from tokencredit.text.hf_rendering import reads_eos


@dataclass(frozen=True)
class Pass:
    """Methods that are scored together, and the model whose tokens they score.

    Attributes:
        names: of the rows that it gives.
        scorer: from texts in the model's tokens to the token scores of all of them.
        model: that scores.
        tokenizer: of the model.
    """

    names: tuple[str, ...]
    scorer: Scorer
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def batches(
        self, texts: Sequence[MarkedText], config: CompareCreditConfig
    ) -> Iterator[tuple[list[int], EncodedWords]]:
        """The texts in the model's tokens."""
        return encoded_words(
            self.tokenizer,
            texts,
            batch_size=config.batch_size,
            template=config.template,
            append_eos=bool(reads_eos(self.model)),
            max_length=context_length(self.model, self.tokenizer),
            device=next(self.model.parameters()).device,
        )


def reward_model_passes(
    config: CompareCreditConfig, model: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> list[Pass]:
    """The methods of the settings that need the reward model alone.

    Args:
        config: the settings.
        model: the reward model.
        tokenizer: its tokenizer.
    """
    cheap = _names_of_scored(config)
    passes = [Pass(cheap, partial(_scored, model, config=config), model, tokenizer)]
    passes += [
        Pass((name,), partial(_asked_again, model, name=name, config=config), model, tokenizer)
        for name in config.methods
        if name not in ONE_PASS
    ]
    return passes if cheap else passes[1:]


def _names_of_scored(config: CompareCreditConfig) -> tuple[str, ...]:
    """Names of the rows that need nothing but forward passes over the whole texts."""
    rows = {name: [name] for name in ONE_PASS}
    rows["attention"] = _attention_names(config)
    return tuple(row for method in config.methods for row in rows.get(method, []))


def _attention_names(config: CompareCreditConfig) -> list[str]:
    names = [f"attention, layer {layer}" for layer in config.attention_layers]
    return [*names, "attention, mean of layers"] if len(names) > 1 else names


def _scored(
    model: nn.Module, batch: EncodedWords, *, config: CompareCreditConfig
) -> dict[str, Float[Tensor, "batch time"]]:
    """What one forward pass says, or one per layer of attention."""
    mask = batch.encoded.batch.response_mask
    layers = config.attention_layers if "attention" in config.methods else (None,)
    by_layer = [
        score_responses(
            model,
            batch.encoded.batch,
            attention_mask=batch.encoded.attention_mask,
            attention_layer=layer,
        )
        for layer in layers
    ]
    found: dict[str, Tensor] = {}
    for name in config.methods:
        if name == "attention":
            spread = [credited(name, scores, mask) for scores in by_layer]
            spread.append(torch.stack(spread).mean(0))
            found |= dict(zip(_attention_names(config), spread, strict=False))
        elif name in ONE_PASS:
            found[name] = text_credit(
                name,
                model,
                batch.encoded.batch,
                by_layer[0],
                credit_decay=config.smoothing_decay,
            )
    return found


def _asked_again(
    model: nn.Module, batch: EncodedWords, *, name: str, config: CompareCreditConfig
) -> dict[str, Float[Tensor, "batch time"]]:
    """Methods that need more than the scores of the whole texts."""
    responses = batch.encoded.batch
    credit = text_credit(
        name,
        model,
        responses,
        None,
        attention_mask=batch.encoded.attention_mask,
        segment_ids=batch.token_words.to(responses.response_mask.device),
        gradient_steps=config.gradient_steps,
        window_width=config.window_width,
        shapley_samples=config.shapley_samples,
        seed=config.seed,
        micro_batch_size=4 * config.batch_size,
    )
    return {name: credit}


def other_passes(config: CompareCreditConfig) -> list[Pass]:
    """The methods of the settings that have models of their own, which are loaded.

    Args:
        config: the settings.

    Raises:
        ModelError: a model is not there or lacks what is needed.
        ConfigError: the implicit reward has no known reference.
    """
    return [*_implicit_reward_pass(config), *_token_classifier_pass(config)]


def _implicit_reward_pass(config: CompareCreditConfig) -> Iterator[Pass]:
    if config.implicit_reward is None:
        return
    loading = _loading(config)
    model = load_model(AutoModelForCausalLM, config.implicit_reward, **loading)
    tokenizer = _tokenizer(config, config.implicit_reward)
    reference_name, dpo_beta = stored_reference(
        model.config, reference=config.implicit_reference, dpo_beta=None
    )
    reference = loaded_reference(reference_name, tokenizer, **loading)

    def log_ratio(batch: EncodedWords) -> dict[str, Float[Tensor, "batch time"]]:
        responses = batch.encoded.batch
        credit = log_ratio_credit(
            response_logprobs(model, responses),
            response_logprobs(reference, responses),
            responses.response_mask,
            dpo_beta=dpo_beta,
        )
        return {"implicit-reward": credit}

    yield Pass(("implicit-reward",), log_ratio, model, tokenizer)


def _token_classifier_pass(config: CompareCreditConfig) -> Iterator[Pass]:
    if config.token_classifier is None:
        return
    model, tokenizer = load_token_classifier(config.token_classifier, **_loading(config))
    if model.config.num_labels != 2:
        raise ModelError(
            f"the token classifier {config.token_classifier!r} has {model.config.num_labels} "
            "classes; expected two, a bad and a good token"
        )

    def judged(batch: EncodedWords) -> dict[str, Float[Tensor, "batch time"]]:
        logits = token_classifier_logits(
            model, batch.encoded.batch, attention_mask=batch.encoded.attention_mask
        )
        mask = batch.encoded.batch.response_mask
        return {"token-classifier": discriminator_credit(logits, mask)}

    yield Pass(("token-classifier",), judged, model, tokenizer)


def _tokenizer(config: CompareCreditConfig, name: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(
        name, pad_token=config.pad_token, trust_remote_code=config.trust_remote_code
    )


def _loading(config: CompareCreditConfig) -> dict[str, Any]:
    return {
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        "device": config.device,
        "trust_remote_code": config.trust_remote_code,
    }
