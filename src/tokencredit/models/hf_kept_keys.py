"""Which keys of a Hugging Face model can be kept, how they are handed to it, what it sees."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.models.hf_architecture import accepts


def attention_windows(model: PreTrainedModel) -> dict[str, int | None] | None:
    """How far back each type of attention layer sees, None for all the way.

    None instead of the whole where the model sees in another way than a mask of our own can say:
    flash attention, recurrent layers, chunks, biases by distance.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return None
    if not accepts(model.base_model, "position_ids"):
        return None
    other = ("alibi", "attention_chunk_size", "attention_layers", "attention_types")
    if any(getattr(config, name, None) for name in other):
        return None
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return {"sliding_attention": window}
    windows = {"full_attention": None, "sliding_attention": window}
    if not set(layer_types) <= set(windows):
        return None
    return {kind: windows[kind] for kind in windows if kind in layer_types}


def rescales_positions(model: PreTrainedModel) -> bool:
    """Whether keys depend on how long the text will be, so that no cache of them is exact."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    types = [str(kind.get("rope_type")) for kind in kinds]
    return any("dynamic" in rope_type or rope_type == "longrope" for rope_type in types)


def cache_argument(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """Kept keys and values, by the name that the forward pass of this model has for them.

    From transformers 5.24 on it is `cache`; the former name warns there and goes away in 5.40.
    """
    return {"cache" if accepts(model, "cache") else "past_key_values": cache}


def shared_columns(
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    other_ids: Int[Tensor, "other_batch other"] | None,
    other_mask: Bool[Tensor, "other_batch other"] | None,
) -> int:
    """How many columns two batches of texts share at their left end, in all rows."""
    if other_ids is None or other_mask is None or len(ids) != len(other_ids):
        return 0
    width = min(ids.shape[1], other_ids.shape[1])
    same = (ids[:, :width] == other_ids[:, :width]) & (mask[:, :width] == other_mask[:, :width])
    return int(same.all(0).long().cumprod(0).sum()) if width else 0


def layer_masks(
    model: PreTrainedModel,
    visible: Bool[Tensor, "batch queries keys"],
    distances: Int[Tensor, "batch queries keys"],
) -> Tensor | dict[str, Tensor]:
    """What each query sees, as the layers of a model take it: one mask, or one for each type.

    Args:
        model: whose `attention_windows` are known.
        visible: True where a query may see a key, whatever the window of a layer.
        distances: how far back a key stands in the text of its query.
    """
    masks = {
        kind: _additive(visible if window is None else visible & (distances < window), model.dtype)
        for kind, window in (attention_windows(model) or {}).items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _additive(
    visible: Bool[Tensor, "batch queries keys"], dtype: torch.dtype
) -> Float[Tensor, "batch 1 queries keys"]:
    """A mask that is added to the logits: eager attention would add a bool one as well."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
