"""What a causal language model says of the token after each of some texts.

Texts that begin alike are read together: the beginning once, and after it what each goes on with.
So K questions about one text cost a pass over the text and one over what differs.
"""

import warnings
from collections.abc import Sequence
from itertools import chain, pairwise
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from tokencredit.batch import ResponseBatch, padded_rows
from tokencredit.errors import NumericError, TokenCreditWarning
from tokencredit.models.hf_architecture import (
    accepts,
    reads_both_ways,
    require_known_ids,
    require_room,
)
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_kept_keys import (
    attention_windows,
    cache_argument,
    layer_masks,
    rescales_positions,
)
from tokencredit.models.hf_logprobs import response_statistics
from tokencredit.models.hf_passes import ordinary_ids
from tokencredit.models.hf_shared_beginnings import LEAST
from tokencredit.models.hf_short_attention import runs_layers_again

# Rows that may begin alike and go together, and tokens of all of them, the beginning once.
_MOST_ROWS, _MOST_TOKENS = 64, 2**13
# Tokens that a group has to save, since it takes passes of its own. On a GPU a pass costs as much
# as many tokens do.
_PRICE, _PRICE_ON_GPU = 32, 1024
# How far what is said may move, as a share of the largest: by the rounding of other shapes alone.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 0.1

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def next_logprobs(
    model: nn.Module,
    rows: Sequence[list[int]],
    tokens: Sequence[int],
    *,
    pad_id: int,
    micro_batch_size: int | None = None,
) -> Float[Tensor, "rows tokens"]:
    """Log-probabilities of some tokens after each row, in nats.

    Neither the rows beside one nor padding change what is said of it, up to rounding.

    Args:
        model: a causal language model, in the mode that it is in.
        rows: token ids, at least one each.
        tokens: whose log-probabilities are asked for.
        pad_id: fills padding.
        micro_batch_size: rows per forward pass; None for as many as is good.

    Raises:
        DataError: a row does not fit the context.
        ModelError: an id is not in the model's vocabulary, or the model reads both ways.
        NumericError: the model gives NaN or infinite values.
    """
    device = next(model.parameters()).device
    found = torch.zeros(len(rows), len(tokens), device=device)
    groups = _groups(model, rows, micro_batch_size, on_gpu=device.type != "cpu")
    alone = [group[0] for group in groups if len(group) == 1]
    if alone:
        some = [rows[row] for row in alone]
        found[alone] = _whole_rows(model, some, tokens, pad_id, micro_batch_size)
    for group in groups:
        if len(group) > 1:
            found[group] = _after_beginning(model, [rows[row] for row in group], tokens)
    if not bool(found.isfinite().all()):
        raise NumericError(
            f"the language model gives NaN or infinite log-probabilities after "
            f"{int((~found.isfinite().all(-1)).sum())} texts; expected finite ones: look for NaN "
            "weights, or load it in float32 or bfloat16 rather than float16"
        )
    return found


def beginning_groups(
    rows: Sequence[Sequence[int]], *, most_rows: int, most_tokens: int, price: int, least: int = 1
) -> list[list[int]]:
    """Rows that begin alike, in groups that save most: all that their beginnings save, less prices.

    A group of k rows that share n tokens reads (k - 1) n tokens less than its rows apart. Groups
    are runs of the sorted rows.

    Args:
        rows: token ids; the last one of a row is never shared.
        most_rows: of a group.
        most_tokens: of a group, what its rows share counted once.
        price: in tokens, of a group of more than one row.
        least: tokens that a group must share.

    Returns:
        Indices of the rows, each in one group.

    >>> rows = [[1, 2, 3, 9], [5, 6], [1, 2, 3, 8], [1, 2, 7]]
    >>> beginning_groups(rows, most_rows=4, most_tokens=100, price=1)
    [[2, 0, 3], [1]]
    """
    order = sorted(range(len(rows)), key=lambda row: list(rows[row]))
    alike = [_alike(rows[a], rows[b]) for a, b in pairwise(order)]
    saved, first = [0] * (len(rows) + 1), list(range(-1, len(rows)))
    for end in range(1, len(rows) + 1):
        saved[end] = saved[end - 1]
        read = len(rows[order[end - 1]])
        shared = read - 1
        for begin in range(end - 2, max(-1, end - 1 - most_rows), -1):
            row = rows[order[begin]]
            shared, read = min(shared, alike[begin], len(row) - 1), read + len(row)
            once = (end - begin - 1) * shared
            if shared < least or read - once > most_tokens:
                break
            value = saved[begin] + once - price
            if value > saved[end]:
                saved[end], first[end] = value, begin
    groups, end = [], len(rows)
    while end:
        groups.append(order[first[end] : end])
        end = first[end]
    return groups[::-1]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _groups(
    model: nn.Module, rows: Sequence[list[int]], micro_batch_size: int | None, *, on_gpu: bool
) -> list[list[int]]:
    """Which rows are read together after one beginning; each alone where the model cannot."""
    found = beginning_groups(
        rows,
        most_rows=min(_MOST_ROWS, micro_batch_size or _MOST_ROWS),
        most_tokens=_MOST_TOKENS,
        price=_PRICE_ON_GPU if on_gpu else _PRICE,
        least=LEAST,
    )
    if len(found) == len(rows) or not _reads_beginnings_once(model):
        return [[row] for row in range(len(rows))]
    return found


def _whole_rows(
    model: nn.Module,
    rows: Sequence[list[int]],
    tokens: Sequence[int],
    pad_id: int,
    micro_batch_size: int | None,
) -> Float[Tensor, "rows tokens"]:
    ids, mask = padded_rows(rows, fill=pad_id, side="left")
    # A token stands where the answer would: what is said of this place is read, not the token.
    answers = torch.full((len(rows), 1), tokens[0])
    there = torch.ones(len(rows), 1, dtype=torch.bool)
    return response_statistics(
        model,
        ResponseBatch(ids, mask, answers, there),
        lambda logits, _ids: logits.log_softmax(-1)[:, list(tokens)],
        micro_batch_size=micro_batch_size,
    )[:, 0]


@torch.no_grad()
def _after_beginning(
    model: nn.Module, rows: Sequence[list[int]], tokens: Sequence[int]
) -> Float[Tensor, "rows tokens"]:
    """Log-probabilities after rows whose common beginning is read once.

    What comes after it stands in one row, each part of which sees the beginning and itself: the
    keys of the beginning are copied for none.
    """
    backbone, device = pretrained_model(model), next(model.parameters()).device
    require_room(backbone, max(map(len, rows)) + 1)  # and the answer
    shared = min(_alike(rows[0], row) for row in rows)
    shared = min(shared, min(map(len, rows)) - 1)
    ends = [row[shared:] for row in rows]
    ids = torch.tensor([*rows[0][:shared], *chain(*ends)], device=device)
    require_known_ids(backbone, ids)
    owner = torch.tensor([at for at, end in enumerate(ends) for _ in end], device=device)
    steps = torch.tensor([step for end in ends for step in range(len(end))], device=device)
    before = torch.arange(shared, device=device)
    places = torch.cat([before, shared + steps])
    same = (owner[:, None] == owner) & (steps[:, None] >= steps)
    visible = torch.cat([same.new_ones(len(owner), shared), same], dim=-1)
    distances = shared + steps[:, None] - places
    # One layer's keys grow by the row's own: no layer of this cache cuts them to a window.
    cache = DynamicCache()
    backbone.base_model(
        input_ids=ids[None, :shared], use_cache=True, **cache_argument(backbone.base_model, cache)
    )
    last = torch.tensor([len(end) for end in ends], device=device).cumsum(0) - 1
    logits = model(
        input_ids=ids[None, shared:],
        attention_mask=layer_masks(backbone, visible[None], distances[None]),
        position_ids=places[None, shared:],
        use_cache=True,
        logits_to_keep=last,
        return_dict=True,
        **cache_argument(backbone, cache),
    ).logits[0]
    return logits.float().log_softmax(-1)[:, list(tokens)]


def _reads_beginnings_once(model: nn.Module) -> bool:
    """Whether a model says the same of rows whose beginning it reads once; tried once for each."""
    backbone = pretrained_model(model)
    if attention_windows(backbone) is None or rescales_positions(backbone):
        return False
    if runs_layers_again(backbone) or reads_both_ways(backbone):
        return False
    if not any(accepts(backbone, name) for name in ("cache", "past_key_values")):
        return False
    if backbone not in _tried:
        _tried[backbone] = _gives_the_same(model)
    return _tried[backbone]


@torch.no_grad()
def _gives_the_same(model: nn.Module) -> bool:
    """Whether three short rows are followed by the same; warns, that once, where they are not."""
    found = ordinary_ids(pretrained_model(model))
    half = len(found) // 2
    rows = [found, [*found[:half], *found[half:][::-1]], found[: half + 1]]
    tokens = sorted(set(found))
    apart = _whole_rows(model, rows, tokens, 0, None)
    try:
        together = _after_beginning(model, rows, tokens)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        difference = f"does not take keys of a beginning ({type(error).__name__}: {error})"
    else:
        error_size, scale = float((apart - together).abs().max()), float(apart.abs().max())
        if error_size <= _TOLERANCES.get(next(model.parameters()).dtype, _COARSE_TOLERANCE) * scale:
            return True
        difference = f"says other things after keys of a beginning (by {error_size:.3g} nats)"
    warnings.warn(
        f"{type(pretrained_model(model)).__name__} {difference}: what questions begin with is read "
        "again for every one of them, which takes longer",
        TokenCreditWarning,
        stacklevel=2,
    )
    return False
