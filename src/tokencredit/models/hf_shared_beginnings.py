"""The tokens that rows of a batch begin with, read once for all rows that share them.

Prompts of one chat model begin with the same system message, and responses to one prompt with that
prompt. A causal model has the same keys and values there in every row, so one row is enough; the
others attend to them. Gradients go through them and add up, as they do over rows.
"""

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tokencredit.errors import TokenCreditWarning
from tokencredit.models.hf_architecture import accepts, reads_both_ways, text_positions
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_kept_keys import attention_windows, cache_argument, rescales_positions
from tokencredit.models.hf_passes import ordinary_ids
from tokencredit.models.hf_short_attention import runs_layers_again

# Fewer shared tokens than this are read with their rows: the second pass has its price too.
LEAST = 8
# Where prompts stand several times: tokens that have to be saved, on the CPU and elsewhere, and
# their share of all tokens.
_PRICE, _PRICE_ELSEWHERE = 256, 4096
_WORTHWHILE = 0.1
# How far a state may move, as a share of the largest: by the rounding of other matrix shapes alone.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 0.1

_reads_beginnings: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def shared_beginning(
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Int[Tensor, "batch sequence"],
    *,
    kept: int,
) -> int:
    """How many tokens all rows begin with, 0 for a single row.

    Args:
        input_ids: each row's tokens in one piece, padded on the left, or on both sides.
        attention_mask: 1 on real tokens.
        kept: columns at the right end that no beginning may reach into.

    >>> ids = torch.tensor([[0, 5, 6, 7, 8], [5, 6, 7, 9, 8]])
    >>> mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    >>> shared_beginning(ids, mask, kept=1), shared_beginning(ids, mask, kept=3)
    (3, 1)
    """
    if len(input_ids) < 2:
        return 0
    starts = attention_mask.argmax(-1)
    longest = input_ids.shape[1] - kept - int(starts.max())
    columns = starts[:, None] + torch.arange(max(longest, 0), device=input_ids.device)
    beginnings = input_ids.gather(1, columns)
    same = (beginnings == beginnings[:1]) & attention_mask.gather(1, columns).bool()
    return int(same.all(0).long().cumprod(0).sum())


def pass_arguments(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Int[Tensor, "batch sequence"],
    *,
    columns: int,
    once: bool = True,
) -> dict[str, Any]:
    """Arguments for a forward pass that is asked about the last columns alone.

    What all rows begin with is read here, once, where the model gives the same states that way:
    the pass is then of what comes after it. So is each prompt that several rows have, where that
    saves more.

    Args:
        model: a Hugging Face model, also inside a PEFT wrapper, that masks later tokens.
        input_ids: padded on the left, or on both sides.
        attention_mask: 1 on real tokens.
        columns: how many of the last columns are asked about.
        once: False reads every row whole.
    """
    pretrained = pretrained_model(model)
    width = input_ids.shape[1] - columns
    if once:
        length = shared_beginning(input_ids, attention_mask, kept=columns)
        owners = distinct_rows(input_ids[:, :width], attention_mask[:, :width])
        by_all = (len(input_ids) - 1) * length if length >= LEAST else 0
        on_cpu = input_ids.device.type == "cpu"
        by_some = saved_by_reading_once(owners, width, columns, on_cpu=on_cpu)
        if max(by_all, by_some) and may_begin_once(model, input_ids.shape[1]):
            if by_some > by_all:
                return _after_prompts(pretrained, input_ids, attention_mask, owners, width)
            return _after_beginning(pretrained, input_ids, attention_mask, length)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": text_positions(attention_mask),
        "use_cache": False,
    }


@torch.no_grad()
def prompts_read_once(
    model: nn.Module,
    prompt_ids: Int[Tensor, "rows prompt"],
    prompt_mask: Int[Tensor, "rows prompt"],
    *,
    new_tokens: int,
) -> dict[str, Any]:
    """Keys and values of all prompts but their last tokens, as an argument for `generate()`.

    Args:
        model: a causal language model, also inside a PEFT wrapper.
        prompt_ids: padded on the left.
        prompt_mask: 1 on real tokens.
        new_tokens: how many may follow.

    Returns:
        The argument by its name; empty where little would be saved, or where the model cannot go
        on from keys that it is handed.
    """
    pretrained, width = pretrained_model(model), prompt_ids.shape[1] - 1
    ids, mask = prompt_ids[:, :width], prompt_mask[:, :width]
    owners = distinct_rows(ids, mask)
    on_cpu = ids.device.type == "cpu"
    if not saved_by_reading_once(owners, width, 1 + new_tokens, on_cpu=on_cpu):
        return {}
    # Models of several parts count positions by what their own first pass has seen.
    if pretrained.config.get_text_config() is not pretrained.config:
        return {}
    if not may_begin_once(model, prompt_ids.shape[1] + new_tokens):
        return {}
    return cache_argument(pretrained, _keys_of(pretrained, ids, mask, owners))


def distinct_rows(ids: Int[Tensor, "rows columns"], mask: Int[Tensor, "rows columns"]) -> list[int]:
    """The number of each row among those that differ, in the order in which they come.

    Args:
        ids: tokens.
        mask: 1 on real tokens.

    >>> distinct_rows(torch.tensor([[5, 6], [5, 7], [5, 6]]), torch.ones(3, 2).long())
    [0, 1, 0]
    """
    numbers: dict[tuple[int, ...], int] = {}
    told = torch.cat([ids.masked_fill(mask == 0, 0), mask], dim=-1).tolist()
    return [numbers.setdefault(tuple(row), len(numbers)) for row in told]


def saved_by_reading_once(owners: list[int], width: int, rest: int, *, on_cpu: bool) -> int:
    """Tokens less to read where each distinct beginning is read once; 0 where these are few.

    Args:
        owners: the number of each row's beginning, as of `distinct_rows`.
        width: columns of the beginnings.
        rest: columns after them.
        on_cpu: whether a pass costs little beside its tokens.

    >>> saved_by_reading_once([0] * 8 + [1] * 8, 100, 40, on_cpu=True)
    1400
    """
    saved = (len(owners) - len(set(owners))) * width
    price = _PRICE if on_cpu else _PRICE_ELSEWHERE
    return saved if saved >= max(price, _WORTHWHILE * len(owners) * (width + rest)) else 0


def _keys_of(model: PreTrainedModel, ids: Tensor, mask: Tensor, owners: list[int]) -> DynamicCache:
    """Keys and values of each row's beginning, of which every distinct one is read once."""
    firsts = [owners.index(number) for number in range(max(owners) + 1)]
    ids, mask = ids[firsts], mask[firsts]
    # One layer's keys grow by the row's own: no layer of this cache cuts them to a window.
    cache = DynamicCache()
    model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=text_positions(mask),
        use_cache=True,
        **cache_argument(model.base_model, cache),
    )
    cache.batch_select_indices(torch.tensor(owners, device=ids.device))
    return cache


def _after_prompts(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    owners: list[int],
    width: int,
) -> dict[str, Any]:
    """Arguments for what comes after the first columns, with the keys and values of those."""
    cache = _keys_of(model, input_ids[:, :width], attention_mask[:, :width], owners)
    return {
        "input_ids": input_ids[:, width:],
        "attention_mask": attention_mask,
        "position_ids": text_positions(attention_mask)[:, width:],
        "use_cache": True,
        **cache_argument(model, cache),
    }


def _after_beginning(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, length: int
) -> dict[str, Any]:
    """Arguments for the rest of each row, with the keys and values of what they begin with."""
    batch, sequence = input_ids.shape
    starts = attention_mask.argmax(-1, keepdim=True)
    first = int(starts[0])
    beginning = slice(first, first + length)
    cache = _keys_of(model, input_ids[:, beginning], attention_mask[:, beginning], [0] * batch)
    # The rows without their beginnings: padding on the left moves right by that length.
    columns = torch.arange(length, sequence, device=input_ids.device)
    moved = (columns - length < starts).expand(batch, -1)
    ids = input_ids[:, length:]
    rest = attention_mask[:, length:].masked_fill(moved, 0)
    positions = (rest.cumsum(-1) - 1 + length).clamp(min=0)
    seen = torch.cat([rest.new_ones(batch, length), rest], dim=-1)
    return {
        "input_ids": ids,
        "attention_mask": seen,
        "position_ids": positions,
        "use_cache": True,
        **cache_argument(model, cache),
    }


def may_begin_once(model: nn.Module, sequence: int) -> bool:
    """Whether keys of a beginning can be handed to a model, for rows of this length.

    Tried once for each model, as it computes here: under autocast where its passes are.
    """
    if not takes_beginnings(model, sequence):
        return False
    pretrained = pretrained_model(model)
    if pretrained not in _reads_beginnings:
        _reads_beginnings[pretrained] = _gives_the_same(pretrained)
    return _reads_beginnings[pretrained]


def takes_beginnings(model: nn.Module, sequence: int) -> bool:
    """Whether nothing that is known of a model forbids to hand it keys of a beginning.

    Args:
        model: a Hugging Face model, also inside a PEFT wrapper.
        sequence: tokens of the longest row.
    """
    pretrained = pretrained_model(model)
    if runs_layers_again(pretrained):
        return False  # such a layer takes no cache
    if reads_both_ways(pretrained) or rescales_positions(pretrained):
        return False
    if not any(accepts(pretrained, name) for name in ("cache", "past_key_values")):
        return False
    windows = attention_windows(pretrained)
    # In a short window padding would stand between the beginning and the rest.
    return windows is not None and all(w is None or w >= sequence for w in windows.values())


@torch.no_grad()
def _gives_the_same(model: PreTrainedModel) -> bool:
    """Whether two short rows have the same states after beginnings that are read once.

    Warns, that once, where they have not, or where the model does not take such a pass.
    """
    device = next(model.parameters()).device
    found = ordinary_ids(model)
    half = len(found) // 2
    # The second row is shorter, so that there is padding after the beginning.
    other = [0] * (half // 2) + found[:half] + found[half:][::-1][: len(found) - half - half // 2]
    ids = torch.tensor([found, other], device=device)
    mask = torch.ones_like(ids)
    mask[1, : half // 2] = 0
    last = len(found) - half - half // 2
    whole = {"input_ids": ids, "attention_mask": mask, "position_ids": text_positions(mask)}
    try:
        apart = model.base_model(**whole, use_cache=False).last_hidden_state[:, -last:]
        arguments = _after_beginning(model, ids, mask, half)
        together = model.base_model(**arguments).last_hidden_state[:, -last:]
        arguments = _after_prompts(model, ids, mask, [0, 1], ids.shape[1] - last)
        by_prompts = model.base_model(**arguments).last_hidden_state
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        difference = f"does not take keys of a beginning ({type(error).__name__}: {error})"
    else:
        error_size = max(float((apart - one).abs().max()) for one in (together, by_prompts))
        scale = float(apart.abs().max())
        coarse = torch.is_autocast_enabled(device.type)
        tolerance = _TOLERANCES.get(apart.dtype, _COARSE_TOLERANCE)
        if error_size <= (_COARSE_TOLERANCE if coarse else tolerance) * scale:
            return True
        difference = (
            f"gives other states after keys of a beginning (by {error_size:.3g} of {scale:.3g})"
        )
    warnings.warn(
        f"{type(model).__name__} {difference}: what prompts begin with is read again in every row, "
        "which takes longer",
        TokenCreditWarning,
        stacklevel=2,
    )
    return False
