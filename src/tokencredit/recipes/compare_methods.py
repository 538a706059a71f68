"""The credit methods that `compare-credit` knows, as passes over texts that score tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.hf_loading import context_length
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.compare_config import CompareCreditConfig
from tokencredit.recipes.compare_scores import EncodedWords, Scorer, encoded_words
from tokencredit.recipes.reward_texts import reads_eos
from tokencredit.recipes.text_credit import ONE_PASS, text_credit
from tokencredit.recipes.token_scorer import credited
from tokencredit.reward_model.hf_backbone import score_responses


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
