"""What a causal language model says about given responses, without ever holding all its logits.

The trunk of the model runs once. Then the model's own code after the trunk (output head, soft cap,
scale, whatever the architecture has there) runs on hidden states of response tokens alone, a chunk
at a time: the trunk is made to answer with the chunk. As for reward models, rows are moved to the
left end before the model sees them: positions count from the first real token, a causal model needs
no mask, and neither padding nor the rest of the batch changes a number.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokencredit.batch import ResponseBatch, rows_of_like_length
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    TokenCreditWarning,
)
from tokencredit.logprobs import sampled_logits, token_entropies, token_logprobs
from tokencredit.masking import left_packed
from tokencredit.models.hf_architecture import (
    reads_both_ways,
    require_known_ids,
    require_room,
)
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_passes import rescaling_length, tokens_per_pass
from tokencredit.models.hf_trunk import logits_behind_trunk, same_logits, trunk_output

Statistic = Callable[[Float[Tensor, "tokens vocab"], Int[Tensor, "tokens"]], Tensor]


# A float32 chunk of a vocabulary of 150,000 takes 300 MB.
CHUNK_SIZE = 512


def response_logprobs(
    model: nn.Module,
    batch: ResponseBatch,
    *,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    micro_batch_size: int | None = None,
) -> Float[Tensor, "batch time"]:
    """Log-probability of each response token after what stands before it, without gradient.

        log π(y_t | x, y_{<t})

    Args:
        model: a causal language model, with or without PEFT adapters; in the mode that it is in.
        batch: in the model's own tokens; ids under the masks may be anything.
        temperature: of sampling; the logits are divided by it.
        chunk_size: tokens whose logits exist at the same time.
        micro_batch_size: rows per forward pass at most, those of like length together; None for as
            many as `tokens_per_pass` says. Neither size changes the result.

    Returns:
        In nats, float32, on the model's device; zero where `batch.response_mask` is False.

    Raises:
        ConfigError: the temperature or a size is not positive.
        DataError: nothing stands before a response token, or a row does not fit the context.
        ModelError: a token id is not in the model's vocabulary, or there is no Hugging Face model.
        NumericError: the model gives NaN or infinite values.
    """
    return response_statistics(
        model,
        batch,
        token_logprobs,
        temperature=temperature,
        chunk_size=chunk_size,
        micro_batch_size=micro_batch_size,
    )


def response_entropies(
    model: nn.Module,
    batch: ResponseBatch,
    *,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    micro_batch_size: int | None = None,
) -> Float[Tensor, "batch time"]:
    """Entropy of the distribution that each response token was to be drawn from, in nats.

    Arguments, errors and what stands off the mask are those of `response_logprobs`.
    """
    return response_statistics(
        model,
        batch,
        lambda logits, _ids: token_entropies(logits),
        temperature=temperature,
        chunk_size=chunk_size,
        micro_batch_size=micro_batch_size,
    )


@torch.no_grad()
def response_statistics(
    model: nn.Module,
    batch: ResponseBatch,
    statistic: Statistic,
    *,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    micro_batch_size: int | None = None,
) -> Float[Tensor, "batch time *rest"]:
    """Any function of the logits and the id of each response token; several in one pass.

        both = response_statistics(
            model,
            batch,
            lambda logits, ids: torch.stack(
                [token_logprobs(logits, ids), token_entropies(logits)], dim=-1
            ),
        )

    Args:
        model: as in `response_logprobs`, and so the other arguments and the errors.
        batch: prompts and responses.
        statistic: from float32 logits, divided by the temperature, and the ids of the tokens that
            stand in their place, one row per token, to one entry or more per token.
        temperature: of sampling.
        chunk_size: tokens whose logits exist at the same time.
        micro_batch_size: rows per forward pass at most; None for as many as `tokens_per_pass` says.

    Returns:
        Float32, zero where `batch.response_mask` is False.

    Raises:
        ConfigError: the temperature or a size is not positive.
        DataError: nothing stands before a response token, or a row does not fit the context.
        ModelError: a token id is not in the model's vocabulary, or there is no Hugging Face model.
        NumericError: the model gives NaN or infinite values.
    """
    rows_at_once = max(1, len(batch)) if micro_batch_size is None else micro_batch_size
    if temperature <= 0 or chunk_size < 1 or rows_at_once < 1:
        raise ConfigError(
            f"temperature is {temperature}, chunk_size {chunk_size} and micro_batch_size "
            f"{micro_batch_size}; expected positive numbers"
        )
    _require_readable(model, batch)
    batch = batch.to(next(model.parameters()).device)
    lengths, found = batch.attention_mask.sum(-1), [torch.zeros(0, device=batch.prompt_ids.device)]
    batches = rows_of_like_length(lengths, rows_at_once, tokens=tokens_per_pass(model))
    for rows in batches:
        ids, predicting, token_ids = _packed(batch[rows])
        for logits in _logits_at(model, ids, predicting, chunk_size):
            here, token_ids = token_ids[: len(logits)], token_ids[len(logits) :]
            scaled = sampled_logits(logits, temperature=temperature)
            found.append(statistic(scaled, here.to(logits.device)).float().to(ids.device))
    values = torch.cat(found[1:] or found)
    result = values.new_zeros(*batch.response_mask.shape, *values.shape[1:])
    order = torch.cat([lengths[:0], *batches])
    result[batch.response_mask[order]] = values
    _require_finite(result)
    return result[order.argsort()]


def _packed(
    batch: ResponseBatch,
) -> tuple[Int[Tensor, "batch sequence"], Bool[Tensor, "batch sequence"], Int[Tensor, "tokens"]]:
    """Ids on the left, where response tokens are predicted, and these tokens in that order."""
    real = batch.attention_mask.bool()
    ids, _ = left_packed(batch.input_ids, real)
    counted = torch.cat([torch.zeros_like(batch.prompt_mask), batch.response_mask], dim=-1)
    packed, _ = left_packed(counted, real)
    predicting = torch.cat([packed[:, 1:], torch.zeros_like(packed[:, :1])], dim=-1)
    return ids, predicting, ids[packed]


def _logits_at(
    model: nn.Module, ids: Int[Tensor, "batch sequence"], predicting: Tensor, chunk_size: int
) -> Iterator[Float[Tensor, "tokens vocab"]]:
    """The model's logits where `predicting` is True, row by row, a chunk at a time."""
    if not bool(predicting.any()):
        return
    with trunk_output(model) as seen:
        own = model(input_ids=ids, use_cache=False, logits_to_keep=1, return_dict=True).logits
    if not seen:
        yield from _own_logits_at(model, ids, predicting, chunk_size)
        return
    trunk, output = seen[-1]
    # Prompt tuning puts virtual tokens before the real ones.
    hidden = output.last_hidden_state[:, -ids.shape[1] :]
    again = logits_behind_trunk(model, ids, trunk, output, hidden[0, -1:])
    if not same_logits(own[0, -1:], again):
        yield from _own_logits_at(model, ids, predicting, chunk_size)
        return
    for part in hidden[predicting.to(hidden.device)].split(chunk_size):
        yield logits_behind_trunk(model, ids, trunk, output, part)


def _own_logits_at(
    model: nn.Module, ids: Int[Tensor, "batch sequence"], predicting: Tensor, chunk_size: int
) -> Iterator[Float[Tensor, "tokens vocab"]]:
    """Logits at the response tokens from whole forward passes, one for each row."""
    warnings.warn(
        f"{type(pretrained_model(model)).__name__} cannot be run after its trunk alone: each row "
        "is run by itself, and all its logits are held at the same time",
        TokenCreditWarning,
        stacklevel=2,
    )
    for row, columns in zip(ids, predicting, strict=True):
        if bool(columns.any()):
            places = columns.nonzero().flatten()
            first, end = int(places[0]), int(places[-1]) + 1
            output = model(input_ids=row[None, :end], use_cache=False, logits_to_keep=end - first)
            yield from output.logits[0, places - end].split(chunk_size)


def _require_readable(model: nn.Module, batch: ResponseBatch) -> None:
    """That every response token has one before it, a place in the context and an embedding."""
    lonely = batch.response_mask[:, :1].any(-1) & ~batch.prompt_mask.any(-1)
    if bool(lonely.any()):
        raise DataError(
            f"rows {lonely.nonzero().flatten().tolist()} begin with a response token; expected at "
            "least one token before it, such as a beginning of sequence"
        )
    backbone = pretrained_model(model)
    real = batch.attention_mask.bool()
    longest, limit = int(real.sum(-1).max()) if len(batch) else 0, rescaling_length(backbone)
    require_room(backbone, longest)
    if reads_both_ways(backbone):
        raise ModelError(
            f"{type(backbone).__name__} reads in both directions (is_decoder is false), so that "
            "what it says of a token knows the token; expected a causal language model"
        )
    if limit is not None and longest > limit:
        raise DataError(
            f"the longest text has {longest} tokens; beyond {limit} {type(backbone).__name__} "
            "reads all positions in another way (LongRoPE), and its log-probabilities are neither "
            "those that tokens were drawn by nor independent of the batch: expected shorter texts"
        )
    require_known_ids(backbone, batch.input_ids[real])


def _require_finite(values: Tensor) -> None:
    bad = ~values.isfinite().flatten(1).all(-1)
    if bool(bad.any()):
        raise NumericError(
            f"the language model gives NaN or infinite values in {int(bad.sum())} responses; "
            "expected finite ones: look for NaN weights, or load it in float32 or bfloat16 rather "
            "than float16"
        )
