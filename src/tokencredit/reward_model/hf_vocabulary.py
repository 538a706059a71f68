"""Numbers from the logits of a language model in training, without ever holding all its logits.

As in `tokencredit.models.hf_logprobs`, the trunk runs once and the rest of the model on a chunk of
hidden states at a time; here with gradient. Each chunk of logits is forgotten and made again when
the gradient comes back: memory holds one chunk, and the head over the vocabulary runs twice.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokencredit.errors import DataError, ModelError
from tokencredit.masking import left_packed
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_joined_rows import JoinedRows, joined_arguments
from tokencredit.models.hf_logprobs import CHUNK_SIZE
from tokencredit.models.hf_trunk import logits_behind_trunk, same_logits, trunk_output


def trained_statistics(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"],
    counted: Bool[Tensor, "batch sequence"],
    statistic: Callable[..., Tensor],
    *,
    frozen: Sequence[nn.Module] = (),
    beside: Float[Tensor, "batch time entries"] | None = None,
    chunk_size: int = CHUNK_SIZE,
    joined: JoinedRows | None = None,
) -> Float[Tensor, "batch time *rest"]:
    """Any function of the logits in the place of each counted token, and of its id, with gradient.

    Args:
        model: a causal language model, with or without PEFT adapters.
        input_ids: padded on either side or both; ids under the mask may be anything.
        attention_mask: real tokens.
        counted: the tokens that are asked about.
        statistic: from float32 logits and the ids that stand in their place, one row per token, to
            one entry or more per token. The logits of frozen models come next, and `beside` last.
        frozen: other causal language models that read the same ids, without gradient.
        beside: numbers that are known of each counted token, from column 0 on; None for none.
        chunk_size: tokens whose logits exist at the same time.
        joined: the real ids of these rows, several in one; None reads each row whole.

    Returns:
        Float32, counted tokens moved to the left end, zero after them.

    Raises:
        DataError: nothing stands before a counted token.
        ModelError: a model cannot be run after its trunk alone.
    """
    real = attention_mask.bool()
    ids, _ = left_packed(input_ids, real)
    asked, _ = left_packed(counted & real, real)
    _require_something_before(asked)
    places = asked[:, 1:].nonzero(as_tuple=True)
    logits_of, states = _head_and_states(model, ids, places, joined)
    packed, _ = left_packed(asked, asked)
    with torch.no_grad():
        others = [_head_and_states(one, ids, places, joined) for one in frozen]
    heads = [head for head, _ in others]
    inputs = [states, ids[asked], *(other for _, other in others)]
    if beside is not None:
        inputs.append(beside.to(ids.device)[:, : packed.shape[1]][packed])

    def of_chunk(hidden: Tensor, token_ids: Tensor, *known: Tensor) -> Tensor:
        with torch.no_grad():
            further = [head(other).float() for head, other in zip(heads, known, strict=False)]
        numbers = known[len(heads) :]
        return statistic(logits_of(hidden).float(), token_ids, *further, *numbers).float()

    chunks = zip(*(torch.split(part, chunk_size) for part in inputs), strict=True)
    values = torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])
    result = values.new_zeros(*packed.shape, *values.shape[1:])
    result[packed] = values
    return result


def _head_and_states(
    model: nn.Module,
    ids: Int[Tensor, "batch sequence"],
    places: tuple[Tensor, ...],
    joined: JoinedRows | None,
) -> tuple[Callable[[Tensor], Tensor], Float[Tensor, "tokens width"]]:
    """What stands after the trunk, as a function of states, and the states before these places."""
    arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if joined is not None:
        arguments = joined_arguments(model, joined)
        rows, columns = places
        places = (
            joined.groups.to(rows.device)[rows],
            joined.columns.to(rows.device)[rows, columns],
        )
    with trunk_output(model) as seen:
        own = model(**arguments, logits_to_keep=1, return_dict=True).logits
    trunk, output = _the_trunk(model, seen)
    hidden = output.last_hidden_state
    _require_alike(model, own[0], logits_behind_trunk(model, ids, trunk, output, hidden[0, -1:]))
    return partial(logits_behind_trunk, model, ids, trunk, output), hidden[places]


def _require_something_before(asked: Bool[Tensor, "batch sequence"]) -> None:
    if not bool(asked.any()):
        raise DataError("no token is asked about; expected at least one in the batch")
    lonely = asked[:, 0].nonzero().flatten().tolist()
    if lonely:
        raise DataError(
            f"rows {lonely} begin with a token that is asked about; expected at least one token "
            "before it, such as a beginning of sequence"
        )


def _the_trunk(model: nn.Module, seen: list[tuple[nn.Module, Any]]) -> tuple[nn.Module, Any]:
    if not seen:
        raise ModelError(
            f"{type(pretrained_model(model)).__name__} has no part that gives hidden states; "
            "expected a causal language model with a trunk of its own"
        )
    return seen[-1]


def _require_alike(model: nn.Module, own: Tensor, again: Tensor) -> None:
    """The way around the trunk gives the model's own logits, up to its precision."""
    if not same_logits(own, again):
        raise ModelError(
            f"{type(pretrained_model(model)).__name__} gives other logits when it is run after "
            "its trunk alone; expected a causal language model whose head sees hidden states only"
        )
