"""The attention probabilities of a few queries, from queries, keys and what each query sees."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def attention_rows(
    queries: Float[Tensor, "batch heads rows width"],
    keys: Float[Tensor, "batch key_heads sequence width"],
    visible: Bool[Tensor, "batch #heads rows sequence"],
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    bias: Float[Tensor, "#batch #heads rows sequence"] | None = None,
    sinks: Float[Tensor, "heads"] | None = None,
) -> Float[Tensor, "batch rows sequence"]:
    """Attention probabilities of a few queries, heads averaged, in float32.

    Args:
        queries: those wanted, as the layer uses them (rotated, normalised).
        keys: of every position; fewer heads than queries where heads share keys.
        visible: which keys each query sees.
        scaling: factor on the logits; one over the root of the width by default.
        softcap: bound of the logits, through a scaled tanh.
        bias: added to the logits.
        sinks: per head, the logit of one more key that is left out of the result.

    >>> eye = torch.eye(2)[None, None]
    >>> attention_rows(eye, eye, torch.tensor([[[[True, False], [False, True]]]]))
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        shared = queries.float().reshape(*keys.shape[:2], -1, keys.shape[3])
        logits = (shared @ keys.float().mT).view(*queries.shape[:3], -1)
        logits = logits * (queries.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if bias is not None:
            logits = logits + bias.float()
        logits = logits.masked_fill(~visible, torch.finfo(torch.float32).min)
        if sinks is not None:
            sink = sinks.float()[:, None, None].expand(*logits.shape[:3], 1)
            logits = torch.cat([logits, sink], dim=-1)
        return logits.softmax(-1)[..., : keys.shape[2]].mean(1)


def at_positions(
    values: Shaped[Tensor, "#batch heads #queries last"], positions: Int[Tensor, "batch rows"]
) -> Shaped[Tensor, "batch heads rows last"]:
    """The entries at each row's query positions, of values that may be the same for all."""
    if values.shape[2] == 1:
        return values.expand(len(positions), -1, positions.shape[1], -1)
    values = values.expand(len(positions), -1, -1, -1)
    index = positions[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index)


def visible_by_distance(
    positions: Int[Tensor, "batch rows"], length: int, *, causal: bool, window: int | None
) -> Bool[Tensor, "batch 1 rows sequence"]:
    """Which keys causality and a sliding window leave to each query."""
    distance = positions[:, None, :, None] - torch.arange(length, device=positions.device)
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return visible if window is None else visible & (distance.abs() < window)
