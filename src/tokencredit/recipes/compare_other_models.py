"""Credit methods of `compare-credit` that bring models of their own."""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tokencredit.credit.discriminator import discriminator_credit
from tokencredit.credit.log_ratio import log_ratio_credit
from tokencredit.errors import ModelError
from tokencredit.hf_loading import load_model, load_tokenizer
from tokencredit.hf_logprobs import response_logprobs
from tokencredit.recipes.compare_config import CompareCreditConfig
from tokencredit.recipes.compare_methods import Pass
from tokencredit.recipes.compare_scores import EncodedWords
from tokencredit.recipes.implicit_scores import loaded_reference, stored_reference
from tokencredit.reward_model.hf_token_classifier import (
    load_token_classifier,
    token_classifier_logits,
)


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
