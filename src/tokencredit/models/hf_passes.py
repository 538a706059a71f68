"""Which rows may go through a model together: those that do not change each other's scores.

Most architectures hide padding by their mask, and no more is asked of them. No configuration says
which ones do, so it is tried: once for each model, with two short passes.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from tokencredit.errors import DataError, ModelError, TokenCreditError, TokenCreditWarning
from tokencredit.models.hf_architecture import (
    config_value,
    context_limit,
    padding_id,
    vocabulary_width,
)

# How far what is said of a row may move with its company, as a share of the largest number.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 0.25
# Tokens of the longer row that is tried, where the model reads so many; the other has half.
_TRIED = 12

# On a CPU rows of larger passes leave the caches, and padding costs as much as any other token.
_CPU_TOKENS = 512

_alone_as_together: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def tokens_per_pass(model: nn.Module) -> int | None:
    """How many tokens, padding included, make a good pass without gradients; None for all.

    On the CPU 512: rows of different lengths take less time than in one pass, with less padding,
    and rows of one length hardly more (`benchmarks/passes.py`). Processes that gather the weights
    of a model together in every pass make as many passes as each other, and so no more than asked.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    return _CPU_TOKENS if on_cpu and not _gathers_in_every_pass(model) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def rescaling_length(model: Any) -> int | None:
    """The length beyond which a model reads every position of a text in another way.

    LongRoPE has one set of frequencies for texts up to the length of pretraining, and another for
    longer ones. None for models with one set.

    Source: Ding et al. 2024, arXiv 2402.13753.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    lengths = [
        int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(lengths, default=None)


def separate_passes(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch sequence"],
    lengths: Int[Tensor, "batch"],
    *,
    causal: bool,
) -> list[Int[Tensor, "some"]]:
    """Indices of rows, one group for each pass: rows of a group do not change each other's scores.

    One group of all rows for nearly every architecture. Rows of one length go together where the
    model reads padding, or names no id for it; those with as many ends of sequence where the model
    reads its score at the last one; and apart those beyond `rescaling_length`. Where processes
    gather the weights of the model together in every pass, each makes as many as the one that needs
    most: its last group comes again. `row_places` finds the rows.

    Args:
        model: a classifier of sequences or of tokens.
        ids: padded on the right.
        lengths: real tokens of each row.
        causal: whether it scores prefixes, with padding after them unmasked.

    Raises:
        ModelError: it is said to be causal, and later tokens change what it says of earlier ones.
        DataError: a model that reads its score at the end of sequence is given a row without one.
    """
    in_step = _gathers_in_every_pass(model)
    keys: list[tuple[int, ...]] = [()] * len(ids)
    limit = rescaling_length(model)
    if limit is not None:
        keys = [(int(beyond),) for beyond in (lengths > limit).tolist()]
    if causal:
        _require_causal(model)
    else:
        ends = _end_id(model)
        if ends is not None:
            real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            counts = ((ids == ends) & real).sum(-1).tolist()
            _require_ends(model, ends, counts)
            keys = [(*key, count) for key, count in zip(keys, counts, strict=True)]
        pad = config_value(model, "pad_token_id")
        apart = pad is None or pad == ends
        unlike = bool((lengths != lengths[:1]).any())
        # To try a model takes passes too, which all processes make or none.
        if (unlike or in_step) and (apart or not hides_padding(model)) and unlike:
            keys = [(*key, length) for key, length in zip(keys, lengths.tolist(), strict=True)]
    groups = [[at for at, key in enumerate(keys) if key == one] for one in sorted(set(keys))]
    if in_step:
        groups += groups[-1:] * (_most_of_all(len(groups), ids.device) - len(groups))
    return [torch.tensor(group, device=ids.device) for group in groups]


def row_places(groups: Sequence[Int[Tensor, "_"]], rows: int) -> Int[Tensor, "{rows}"]:
    """Where each row stands among those of all groups, the first time that it is there.

    Args:
        groups: of `separate_passes`.
        rows: how many there are.

    >>> row_places([torch.tensor([1, 2]), torch.tensor([0]), torch.tensor([0])], 3).tolist()
    [2, 0, 1]
    """
    return torch.cat(list(groups))[:rows].argsort()


def _gathers_in_every_pass(model: nn.Module) -> bool:
    """Whether processes gather weights together (FSDP, ZeRO-3) and so have to keep in step."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = (FSDPModule, FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def _most_of_all(count: int, device: torch.device) -> int:
    """The largest count of all processes."""
    most = torch.tensor(count, device=device)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    return int(most)


def classifier_logits(
    model: nn.Module,
    ids: Int[Tensor, "batch sequence"],
    lengths: Int[Tensor, "batch"],
    **segments: Tensor,
) -> Float[Tensor, "batch ..."]:
    """What the head of a model says of rows of one group of `separate_passes`.

    Args:
        model: a classifier of sequences or of tokens, also inside a PEFT wrapper.
        ids: padded on the right; what is under padding may be anything.
        lengths: real tokens of each row.
        **segments: `token_type_ids`, for encoders that read pairs.

    Raises:
        ModelError: the model does not take the rows, with its own words.
    """
    return _classified(model, ids, lengths, **segments).logits


def _classified(model: nn.Module, ids: Tensor, lengths: Tensor, **more: Any) -> Any:
    """The output of a classifier for rows that are padded on the right."""
    width = int(lengths.max())
    real = torch.arange(width, device=ids.device) < lengths[:, None]
    ids = ids[:, :width].masked_fill(~real, padding_id(model))
    try:
        return model(input_ids=ids, attention_mask=real.long(), **more)
    except TokenCreditError:
        raise
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__} does not take the texts: {error}; expected a model whose "
            "configuration is complete (pad_token_id, eos_token_id), and texts that its "
            "architecture can read"
        ) from error


def causal_states(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch sequence"],
    *,
    around: AbstractContextManager[Any] | None = None,
) -> tuple[Float[Tensor, "batch sequence width"], Any]:
    """Hidden states at every token, each as if its text ended there.

    Args:
        model: a causal model.
        ids: padded on the right, rows of one group of `separate_passes`.
        around: a context for the pass over whole texts.

    Returns:
        The states, and what the context gave.
    """
    limit = rescaling_length(model)
    beginnings = None
    # Processes that keep in step make two passes over short texts, too: others may have long ones.
    if limit is not None and (ids.shape[1] > limit or _gathers_in_every_pass(model)):
        beginnings = model.base_model(ids[:, :limit], use_cache=False).last_hidden_state
    with around or nullcontext() as given:
        states = model.base_model(ids, use_cache=False).last_hidden_state
    if beginnings is not None:
        states = torch.cat([beginnings, states[:, beginnings.shape[1] :]], dim=1)
    return states, given


def hides_padding(model: nn.Module) -> bool:
    """Whether a row has the same logits beside a longer one as alone, tried once for each model.

    Warns, that once, where it has not: rows of one length then go through the model together.
    """

    def asked(ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        short = ids.shape[1] // 2
        lengths = torch.tensor([short, ids.shape[1]], device=ids.device)
        rows = ids.repeat(2, 1)
        end = _end_id(model)
        if end is not None:
            rows[[0, 1], lengths - 1] = end
        alone = _logits_and_states(model, rows[:1], lengths[:1])
        together = _logits_and_states(model, rows, lengths)
        sides = [(one, two[:1]) for one, two in zip(alone, together, strict=True)]
        sides = [
            (one, two[:, :short] if one.ndim == 3 and one.shape[1] == short else two)
            for one, two in sides
        ]
        kept = [(one, two) for one, two in sides if one.shape == two.shape]
        return [one for one, _ in kept], [two for _, two in kept]

    known = model in _alone_as_together
    same = _tried(model, asked)
    if same or known:
        return same
    warnings.warn(
        f"{type(model).__name__} does not hide padding by its mask: texts of one length go through "
        "it together, and no others, which takes longer",
        TokenCreditWarning,
        stacklevel=2,
    )
    return False


def _require_causal(model: PreTrainedModel) -> None:
    """Reject a model that is said to be causal, whose later tokens change earlier states."""

    def asked(ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        states = model.base_model(ids, use_cache=False).last_hidden_state
        beginning = ids[:, : ids.shape[1] // 2]
        alone = model.base_model(beginning, use_cache=False).last_hidden_state
        return [alone], [states[:, : alone.shape[1]]]

    if not _tried(model, asked):
        raise ModelError(
            f"{type(model).__name__} has a score for every prefix, and later tokens change those "
            "of earlier ones; expected a model in which no position sees later ones: its scores "
            "of prefixes, and of texts beside longer ones, would be wrong"
        )


def _logits_and_states(model: nn.Module, ids: Tensor, lengths: Tensor) -> list[Tensor]:
    """What the head says, and the states of all layers: a head may read little of them."""
    output = _classified(model, ids, lengths, output_hidden_states=True)
    found = [output.logits]
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        found += getattr(output, name, None) or ()
    return found


def _tried(model: nn.Module, asked: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]) -> bool:
    """Whether two ways to ask a model give the same, up to rounding; tried once for each model."""
    if model in _alone_as_together:
        return _alone_as_together[model]
    device = next(model.parameters()).device
    ids = torch.tensor([ordinary_ids(model)], device=device)
    devices = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        evaluating(model),
        torch.random.fork_rng(devices=devices),
        torch.autocast(device.type, enabled=False),
    ):
        same = all(_agree(one, other) for one, other in zip(*asked(ids), strict=True))
    _alone_as_together[model] = same
    return same


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by rounding alone; NaN is told of where scores are read."""
    error, scale = float((one - other).abs().max()), float(one.abs().max())
    allowed = _TOLERANCES.get(one.dtype, _COARSE_TOLERANCE)
    return not math.isfinite(error) or error <= allowed * scale


def ordinary_ids(model: Any) -> list[int]:
    """Ids of a row to try, none of which the configuration gives a meaning."""
    config = model.config
    values = [value for name, value in config.get_text_config().to_dict().items() if "_id" in name]
    special = {value for value in values if isinstance(value, int)}
    special |= {one for value in values if isinstance(value, list) for one in value}
    size = vocabulary_width(model)
    found = [at for at in range(size) if at not in special][-4 * _TRIED :] or [0]
    limits = (_TRIED, context_limit(model), rescaling_length(model))
    number = max(2, min(limit for limit in limits if limit is not None))
    return [found[(7 * at) % len(found)] for at in range(number)]


def _end_id(model: nn.Module) -> int | None:
    """The end of sequence at whose last place a model reads its score; None for other models."""
    config: Any = model.config
    pools = type(model).__name__.endswith("ForSequenceClassification") and not hasattr(
        model, "score"
    )
    if not (pools and getattr(config, "is_encoder_decoder", False)):
        return None
    end = config_value(model, "eos_token_id")
    return end[0] if isinstance(end, list) else end


def _require_ends(model: nn.Module, end: int, counts: list[int]) -> None:
    """Reject rows without the token at which their score would be read."""
    without = [row for row, count in enumerate(counts) if not count]
    if without:
        raise DataError(
            f"rows {without} do not hold the token {end}, at whose last place "
            f"{type(model).__name__} reads its score; expected it at the end of every text: take "
            "a tokenizer that adds it, or have it appended"
        )
