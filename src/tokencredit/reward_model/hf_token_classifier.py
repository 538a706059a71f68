"""Token classifiers: a score of every class on every response token, in one forward pass.

As in `hf_scores`, rows are moved to the left end before the model sees them, so that no logit
depends on padding or on the rest of the batch.
"""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tokencredit.batch import ResponseBatch, rows_of_like_length
from tokencredit.errors import NumericError
from tokencredit.masking import left_packed
from tokencredit.models.hf_architecture import require_readable
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_passes import (
    classifier_logits,
    row_places,
    separate_passes,
    tokens_per_pass,
)


def load_token_classifier(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A token-classification model and its tokenizer, ready to judge.

    Args:
        name_or_path: a folder or a Hub id.
        dtype: of the weights; logits are float32 in any case.
        attn_implementation: None for the model's default, which is the fast one.
        device: to put the model on.
        trust_remote_code: let Python code that comes with the model run.

    Raises:
        ModelError: nothing that can be loaded is there, or weights are missing, such as those of
            the head (of a language model, for example).
    """
    model = load_model(
        AutoModelForTokenClassification,
        name_or_path,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=trust_remote_code,
        expected="a model with a head that classifies tokens: train one with "
        "`tokencredit train-token-classifier`",
    )
    tokenizer = load_tokenizer(name_or_path, trust_remote_code=trust_remote_code)
    return model, tokenizer


def token_classifier_logits(
    model: nn.Module,
    batch: ResponseBatch,
    *,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None = None,
    micro_batch_size: int | None = None,
) -> Float[Tensor, "batch time classes"]:
    """The logits of every response token, without gradients and without dropout.

    Args:
        model: a token-classification model. A causal one (GPT-2, Llama, Qwen, ...) judges each
            token by what comes before it, an encoder by the whole response.
        batch: in the model's own tokens.
        attention_mask: real tokens of prompt and response, where some follow the last token that
            counts; `batch.attention_mask` by default.
        micro_batch_size: sequences per forward pass at most, those of like length together; by
            default as many as `tokens_per_pass` says. Changes time and memory, not the result.

    Returns:
        Logits at the tokens themselves, float32, zero outside the response mask.

    Raises:
        DataError: a row has no real token, or more than the model can read.
        NumericError: a logit is NaN or infinite.
    """
    real = (batch.attention_mask if attention_mask is None else attention_mask).bool()
    at_once = tokens_per_pass(model)
    batches = rows_of_like_length(real.sum(-1), micro_batch_size, tokens=at_once)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            parts = [_sequence_logits(model, batch.input_ids[rows], real[rows]) for rows in batches]
    finally:
        for module in training:
            module.training = True
    logits = torch.cat(parts)[torch.cat(batches).argsort()][:, batch.prompt_ids.shape[1] :]
    logits = logits.masked_fill(~batch.response_mask[:, :, None], 0.0)
    if not bool(logits.isfinite().all()):
        rows = (~logits.isfinite()).any(-1).any(-1).nonzero().flatten().tolist()
        raise NumericError(
            f"the token classifier gives NaN or infinite logits in rows {rows}; expected finite "
            "ones: look for NaN weights, or load it in float32 or bfloat16 rather than float16"
        )
    return logits


def _sequence_logits(
    model: nn.Module, input_ids: Int[Tensor, "batch sequence"], real: Bool[Tensor, "batch sequence"]
) -> Float[Tensor, "batch sequence classes"]:
    """Logits of all real tokens, zeros elsewhere, whatever the padding."""
    pretrained = pretrained_model(model)
    require_readable(pretrained, input_ids, real)
    ids, packed = left_packed(input_ids, real)
    packed_logits = token_logits(model, ids, packed.sum(-1))
    logits = packed_logits.new_zeros(*real.shape, packed_logits.shape[-1])
    logits[real] = packed_logits[packed]
    return logits


def token_logits(
    model: nn.Module, ids: Int[Tensor, "batch sequence"], lengths: Int[Tensor, "batch"]
) -> Float[Tensor, "batch sequence classes"]:
    """Logits of all tokens of rows that are padded on the right, with gradient.

    Args:
        model: a token-classification model, also inside a wrapper.
        ids: what is under padding may be anything.
        lengths: real tokens of each row.

    Returns:
        Logits of no row that depend on another, float32; on padding they may be anything.
    """
    groups = separate_passes(pretrained_model(model), ids, lengths, causal=False)
    parts = [classifier_logits(model, ids[rows], lengths[rows]).float() for rows in groups]
    wide = [nn.functional.pad(part, (0, 0, 0, ids.shape[1] - part.shape[1])) for part in parts]
    return torch.cat(wide)[row_places(groups, len(ids))]
