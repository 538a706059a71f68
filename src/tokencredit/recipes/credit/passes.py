"""The credit methods that `compare-credit` knows, as passes over texts that score tokens.

Some bring models of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokencredit.credit.methods import credit_method, token_credit
from tokencredit.credit.settings import CreditSettings, with_method
from tokencredit.models.hf_loading import context_length
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.credit.compare_settings import CompareCreditConfig
from tokencredit.recipes.credit.words import EncodedWords, Scorer, encoded_words
from tokencredit.scorers.evidence import Responses, gathered_evidence, response_scores
from tokencredit.scorers.hf_credit_models import CreditModels, FittedCredit, loaded_credit_models
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.scorers.hf_token_scores import CreditedScorer
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading


@dataclass(frozen=True)
class Pass:
    """Methods that are scored together, and the model whose tokens they score.

    Attributes:
        names: of the rows that it gives.
        scorer: from texts in the model's tokens to the token scores of all of them.
        model: that scores.
        reading: how the model reads.
    """

    names: tuple[str, ...]
    scorer: Scorer
    model: nn.Module
    reading: Reading

    def batches(
        self, texts: Sequence[MarkedText], config: CompareCreditConfig
    ) -> Iterator[tuple[list[int], EncodedWords]]:
        """The texts in the model's tokens."""
        return encoded_words(
            self.reading,
            texts,
            batch_size=config.batch_size,
            max_length=context_length(self.model, self.reading.tokenizer),
            device=next(self.model.parameters()).device,
        )


def reward_model_passes(
    config: CompareCreditConfig, model: nn.Module, reading: Reading
) -> list[Pass]:
    """The methods of the settings that need the reward model alone.

    Args:
        config: the settings.
        model: the reward model.
        reading: how it reads.
    """
    scorer = LocalScorer(model, reading, reading)
    cheap = [name for name in config.methods if credit_method(name).one_pass]
    passes = []
    if cheap:
        names = [row for name in cheap for row in _rows_of(name, config)]
        pay = partial(_scores_of_one_pass, scorer, cheap, config=config)
        passes = [Pass(tuple(names), pay, model, reading)]
    for name in config.methods:
        if name not in cheap:
            credited = _credited(scorer, with_method(config.credit, name), config)
            passes.append(
                Pass((name,), partial(_scores_of_words, credited, config), model, reading)
            )
    return passes


def other_passes(config: CompareCreditConfig, model: nn.Module, reading: Reading) -> list[Pass]:
    """The methods of the settings that have models of their own, which are loaded.

    Args:
        config: the settings.
        model: the reward model, for methods that need its score besides.
        reading: how it reads.

    Raises:
        ModelError: a model is not there or lacks what is needed.
        ConfigError: the implicit reward has no known reference.
    """
    loading = {**config.loading.of_frozen, "device": config.device}
    passes = []
    for settings in config.others:
        models = loaded_credit_models(settings, None, loading=loading)
        if config.loading.pad_token is not None:
            models.tokenizer.pad_token = config.loading.pad_token
        own = reading_of(models.model, models.tokenizer, config.reading)
        scorer = LocalScorer(model, reading, own)
        credited = replace(_credited(scorer, settings, config), models=models)
        pay = partial(_scores_of_words, credited, config)
        passes.append(Pass((settings.method,), pay, models.model, own))
    return passes


def _credited(
    scorer: LocalScorer, settings: CreditSettings, config: CompareCreditConfig
) -> CreditedScorer:
    models = CreditModels()
    if settings.fitted is not None:
        models = CreditModels(fitted=FittedCredit.read(settings.fitted))
    return CreditedScorer(
        scorer,
        scorer.writer,
        settings,
        models,
        segments=config.segments,
        micro_batch_size=4 * config.batch_size,
    )


def _rows_of(name: str, config: CompareCreditConfig) -> list[str]:
    """Names of the rows that a method of one pass has in the table."""
    if name != "attention":
        return [name]
    names = [f"attention, layer {layer}" for layer in config.attention_layers]
    return [*names, "attention, mean of layers"] if len(names) > 1 else names


def _scores_of_one_pass(
    scorer: LocalScorer, methods: Sequence[str], batch: EncodedWords, *, config: CompareCreditConfig
) -> dict[str, Float[Tensor, "batch time"]]:
    """What one forward pass says, or one per layer of attention."""
    layers = config.attention_layers if "attention" in methods else (-1,)
    by_layer = [
        response_scores(
            replace(scorer, attention_layer=layer),
            _responses(batch),
            attention="attention" in methods,
        )
        for layer in layers
    ]
    found: dict[str, Tensor] = {}
    for name in methods:
        credited = _credited(scorer, with_method(config.credit, name), config)
        ids = response_segments(config.segments, scorer.tokenizer, batch.encoded.batch)
        asked = replace(_responses(batch), segment_ids=ids)
        taken = by_layer if name == "attention" else by_layer[:1]
        paid = [credited.paid(asked, scores=scores) for scores in taken]
        if len(paid) > 1:
            paid.append(torch.stack(paid).mean(0))
        found |= dict(zip(_rows_of(name, config), paid, strict=True))
    return found


def _scores_of_words(
    credited: CreditedScorer, config: CompareCreditConfig, batch: EncodedWords
) -> dict[str, Float[Tensor, "batch time"]]:
    """Methods that ask more than once, of whole words; or that ask other models."""
    settings, responses = credited.credit, batch.encoded.batch
    needs = credit_method(settings.method).needs
    asked = _responses(batch)
    if "kept_tokens" in needs:
        words = batch.token_words.to(responses.response_mask.device)
        evidence = gathered_evidence(
            settings,
            credited.scorer,
            replace(asked, segment_ids=words),
            models=credited.models,
            micro_batch_size=credited.micro_batch_size,
        )
        return {settings.method: token_credit(evidence, settings)}
    ids = response_segments(config.segments, credited.tokenizer, responses)
    asked = replace(asked, segment_ids=ids)
    if settings.model is not None:  # the reward model reads the text, if it is asked at all
        own = None if "token_classes" not in needs else asked.attention_mask
        prompts = [text.prompt for text in batch.texts]
        told = prompts if any(prompts) else None
        asked = replace(asked, attention_mask=own, conversations=told)
    return {settings.method: credited.paid(asked)}


def _responses(batch: EncodedWords) -> Responses:
    mask = batch.encoded.attention_mask.bool()
    ended = torch.ones(len(mask), dtype=torch.bool, device=mask.device)  # marked texts are whole
    return Responses(batch.encoded.batch, attention_mask=mask, ended=ended)
