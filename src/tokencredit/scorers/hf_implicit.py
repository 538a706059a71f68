"""Responses scored by the log-ratio of two language models: the implicit reward of DPO."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import rows_of_like_length
from tokencredit.errors import ConfigError
from tokencredit.evaluation.prefix_accuracy import FRACTIONS, scores_at_fractions
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.models.hf_vocabularies import require_same_vocabulary
from tokencredit.text.hf_token_rows import EncodedText, response_batch


def implicit_fraction_scores(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    rows: Sequence[EncodedText],
    *,
    dpo_beta: float,
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> Float[Tensor, "rows fractions"]:
    """Implicit reward of each response when 20, 40, 60, 80 and 100 % of it have been seen.

        β Σ_{t ≤ ⌈f T⌉} log(π(y_t | x, y_{<t}) / π_ref(y_t | x, y_{<t}))

    Everything from the first response token to the end of the row counts, what a chat template
    puts after the answer too: that is what DPO trained.

    Args:
        model: the one that DPO trained.
        reference: the one that it started from.
        rows: prompts with their responses.
        dpo_beta: of the training, which gives the score its unit, nats.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.

    Raises:
        NumericError: a model gives NaN or infinite values.

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 5, without the term of the prompt
    alone, which cancels in pairs.
    """
    model.eval()
    scores = torch.empty(len(rows), len(FRACTIONS))
    for some in rows_of_like_length(torch.tensor([len(row) for row in rows]), batch_size):
        batch = response_batch([rows[row] for row in some], pad_id=pad_id)
        with context:
            ratios = response_logprobs(model, batch) - response_logprobs(reference, batch)
        prefix_scores = dpo_beta * ratios.cumsum(-1).cpu()
        scores[some] = scores_at_fractions(prefix_scores, batch.response_mask)
    return scores


def loaded_reference(
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    argument: str = "reference",
    **loading: Any,
) -> PreTrainedModel:
    """A frozen language model beside the one in training, which must read the same ids.

    Args:
        name_or_path: folder or Hub id of a causal language model.
        tokenizer: of the trained model.
        argument: what the caller names it, for the message.
        **loading: as `load_model` takes it.

    Raises:
        ModelError: nothing that can be loaded is there, or its vocabulary is another.
    """
    trust = bool(loading.get("trust_remote_code", False))
    other = load_tokenizer(name_or_path, trust_remote_code=trust)
    require_same_vocabulary(tokenizer, other, argument=f"the {argument} {name_or_path!r}")
    return load_model(AutoModelForCausalLM, name_or_path, **loading)


def stored_reference(
    model_config: Any, *, reference: str | None = None, dpo_beta: float | None = None
) -> tuple[str, float]:
    """Reference and dpo_beta of a model, from the settings or as `train-implicit-reward` left them.

    Args:
        model_config: of the trained model; holds `dpo_reference` and `dpo_beta` if that recipe
            made it.
        reference: overrides what the configuration says.
        dpo_beta: overrides what the configuration says.

    Raises:
        ConfigError: neither says it.
    """
    reference = reference or getattr(model_config, "dpo_reference", None)
    dpo_beta = dpo_beta or getattr(model_config, "dpo_beta", None)
    if reference is None or dpo_beta is None:
        missing = [
            name
            for name, value in (("reference", reference), ("dpo_beta", dpo_beta))
            if value is None
        ]
        raise ConfigError(
            f"{' and '.join(missing)} not given, and the model's configuration does not say; "
            "expected what it was trained with by DPO: name it in the settings"
        )
    return reference, dpo_beta
