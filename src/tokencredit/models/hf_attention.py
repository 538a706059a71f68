"""A few attention rows of one layer, recorded beside any attention implementation.

`output_attentions=True` forces the eager implementation and keeps every (head, query, key) map of
every layer. Credit needs the rows of one or a few queries of one layer. Here they are computed
from the queries and keys that this layer hands to transformers' attention interface, while SDPA,
flash or eager attention does its own work unchanged: extra memory is linear in the length.

While the chosen layer runs, and only then, its implementation's entry in the interface is one that
first computes the rows; everything else a model does sees its own configuration.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokencredit.errors import ConfigError, ModelError, TokenCreditWarning
from tokencredit.models.attention_rows import at_positions, attention_rows, visible_by_distance

_interface_lock = threading.RLock()

# How far states of two attention implementations may lie apart, as a share of the largest.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 0.25


@dataclass
class AttentionRecord:
    """What `recorded_attention` saw of the latest forward pass.

    Attributes:
        recorded: the rows; None before the first forward pass.
    """

    recorded: Float[Tensor, "batch rows sequence"] | None = None

    @property
    def rows(self) -> Float[Tensor, "batch rows sequence"]:
        """Attention probabilities, heads averaged, that each query position pays to every position.

        Raises:
            ModelError: no forward pass of the model ran inside the context.
        """
        if self.recorded is None:
            raise ModelError(
                "no attention was recorded; expected a forward pass of the model inside "
                "`with recorded_attention(model, ...)`, on the same thread"
            )
        return self.recorded


@contextmanager
def recorded_attention(
    model: nn.Module,
    query_positions: Int[Tensor, "batch rows"],
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"],
    *,
    layer: int = -1,
) -> Iterator[AttentionRecord]:
    """Record what some positions attend to in one layer while the model runs inside the context.

        a_{q,k} = 1/H · Σ_h softmax_k(s · Q_{h,q} · K_{h,k} + m_{q,k})

    The rows equal `output_attentions[layer].mean(1)` of the eager implementation at these queries.
    Where a layer does not go through transformers' attention interface, the model is run a second
    time with eager attention, with a warning.

    Args:
        model: a Hugging Face model, also inside a PEFT or other wrapper.
        query_positions: columns of `input_ids` whose attention is wanted.
        attention_mask: the one the forward pass is given, or the real tokens where it is given
            none.
        layer: index into `output_attentions`; negative counts from the last.

    Yields:
        A record whose `rows` are float32, without gradient, zero on padding; each row sums to 1
        (to less where the layer has attention sinks).

    Raises:
        ModelError: there is no Hugging Face model, it gives no attention even when eager, or only
            that of a pass with other states.
        ConfigError: the model has no such layer.

    Source: one row of the softmax of Vaswani et al. 2017, arXiv 1706.03762, equation 1.
    """
    recorder = _Recorder(model, query_positions, attention_mask.bool(), layer)
    handles = recorder.attach()
    try:
        yield recorder.record
    finally:
        for handle in handles:
            handle.remove()


def pretrained_model(model: nn.Module) -> PreTrainedModel:
    """The outermost Hugging Face model, under any wrappers.

    Raises:
        ModelError: there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ModelError(
        f"{type(model).__name__} holds no Hugging Face model; expected a PreTrainedModel, or a "
        "wrapper such as PEFT's around one"
    )


def _rows_of_call(
    module: Any,
    query: Tensor,
    key: Tensor,
    mask: Any,
    positions: Int[Tensor, "batch rows"],
    real: Bool[Tensor, "batch sequence"],
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> Float[Tensor, "batch rows sequence"] | None:
    """The rows of one call of an attention function; None where its mask cannot be read by rows.

    Masks come as SDPA's (bool, four axes), as eager's (added to the logits), or as flash
    attention's: none or one of the keys, with causality and window as arguments.
    """
    length = real.shape[1]
    if not query.shape[::2] == key.shape[::2] == real.shape or not isinstance(mask, Tensor | None):
        return None
    positions, visible = positions.to(key.device), real.to(key.device)[:, None, None]
    bias = None if position_bias is None else at_positions(position_bias, positions)
    if mask is not None and mask.ndim == 4:
        mask_rows = at_positions(mask[..., :length], positions)
        if mask.dtype == torch.bool:
            visible = visible & mask_rows
        else:
            bias = mask_rows if bias is None else bias + mask_rows
    else:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        visible = visible & visible_by_distance(
            positions, length, causal=causal, window=sliding_window
        )
    return attention_rows(
        at_positions(query, positions).detach(),
        key.detach(),
        visible.expand(-1, -1, positions.shape[1], -1),
        scaling=scaling,
        softcap=softcap,
        bias=bias,
        sinks=s_aux,
    )


def _attention_layers(backbone: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The modules behind `output_attentions`, in order, and where in their outputs the maps lie."""
    stack = backbone.get_decoder()
    specs = (getattr(stack, "_can_record_outputs", None) or {}).get("attentions", [])
    wanted = [
        (target, (getattr(spec, "layer_name", None) or "").strip("."), getattr(spec, "index", 1))
        for spec in (specs if isinstance(specs, list) else [specs])
        if isinstance(target := getattr(spec, "target_class", spec), type)
    ]
    layers: list[tuple[nn.Module, int]] = []
    module: nn.Module
    for path, module in stack.named_modules():
        for target, parent, index in wanted:
            if isinstance(module, target) and (not parent or parent in path.split(".")):
                layers.append((module, index))
    return layers


def _eager_pass(backbone: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> Any:
    """A forward pass with eager attention that returns all maps; None without attention."""
    config = backbone.config
    before = {key: getattr(config, key)._attn_implementation for key in config.sub_configs}
    before[""] = config._attn_implementation
    kwargs = kwargs | {"output_attentions": True, "return_dict": True}
    try:
        if before[""] != "eager":
            backbone.set_attn_implementation("eager")
        with torch.no_grad():
            return backbone(*args, **kwargs)
    except TypeError:  # A model without attention takes no such argument.
        return None
    finally:
        if before[""] != "eager":
            backbone.set_attn_implementation(before)


def _put_back(name: str, attention: Callable[..., Any]) -> None:
    """The interface as it was: an entry of all its instances, or one of this instance alone."""
    if AttentionInterface().get(name) is attention:
        del ALL_ATTENTION_FUNCTIONS[name]
    else:
        ALL_ATTENTION_FUNCTIONS[name] = attention


class _Recorder:
    """The hooks of one `recorded_attention` context; passes on other threads are not its own."""

    def __init__(self, model: nn.Module, positions: Tensor, real: Tensor, layer: int) -> None:
        self.backbone = pretrained_model(model).base_model
        self.positions, self.real, self.layer = positions, real, layer
        self.record = AttentionRecord()
        layers = _attention_layers(self.backbone)
        known = -len(layers) <= layer < len(layers)
        self.module: nn.Module | None = layers[layer][0] if known else None
        self.map_index = layers[layer][1] if known else 1
        self.thread, self.rerunning, self.calls = threading.get_ident(), False, 0
        self.replaced: list[tuple[str, Callable[..., Any]]] = []

    def attach(self) -> list[Any]:
        """Hook the backbone and the layer; where contexts are nested the inner ends first."""
        handles = [
            self.backbone.register_forward_pre_hook(self.before_model),
            self.backbone.register_forward_hook(self.after_model, prepend=True, with_kwargs=True),
        ]
        if self.module is not None:
            handles += [
                self.module.register_forward_pre_hook(self.before_layer),
                self.module.register_forward_hook(self.after_layer, prepend=True, always_call=True),
            ]
        return handles

    @property
    def listening(self) -> bool:
        """Whether the pass under way is one to record."""
        return not self.rerunning and threading.get_ident() == self.thread

    def before_model(self, *_: Any) -> None:
        """Forget the pass before."""
        if self.listening:
            self.record.recorded, self.calls = None, 0

    def before_layer(self, module: Any, *_: Any) -> None:
        """Put the recording function into the interface; eager functions are not found there."""
        name = getattr(module, "config", self.backbone.config)._attn_implementation
        if self.listening and name in ALL_ATTENTION_FUNCTIONS:
            _interface_lock.acquire()
            self.replaced.append((name, ALL_ATTENTION_FUNCTIONS[name]))
            ALL_ATTENTION_FUNCTIONS[name] = self.recording(ALL_ATTENTION_FUNCTIONS[name])

    def recording(self, attention: Callable[..., Any]) -> Callable[..., Any]:
        """The attention function, which first records the rows of the chosen layer."""

        def recorded(
            module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
        ) -> Any:
            if self.listening:
                rows = _rows_of_call(module, query, key, mask, self.positions, self.real, **kwargs)
                self.record.recorded = rows
            return attention(module, query, key, value, mask, **kwargs)

        return recorded

    def after_layer(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Take it out again, after an exception too; eager attention returns its map."""
        if not self.listening:
            return
        self.calls += 1
        if self.replaced:
            _put_back(*self.replaced.pop())
            _interface_lock.release()
        elif isinstance(output, tuple) and len(output) > self.map_index:
            self.record.recorded = self.rows_of_map(output[self.map_index])

    def after_model(self, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Run the pass again with eager attention where nothing was recorded.

        Some architectures choose their attention when they are made, and switch only in part: the
        second pass must give the states of the first. Layers that share one module are told apart
        only if the last is wanted.
        """
        if not self.listening:
            return
        shared = self.calls > 1 and self.layer != -1
        if self.record.recorded is None or shared:
            self.rerunning = True
            try:
                again = _eager_pass(self.backbone, args, kwargs)
            finally:
                self.rerunning = False
            self.record.recorded = self.rows_of_maps(getattr(again, "attentions", None))
            self.require_same_states(output, again)

    def require_same_states(self, output: Any, again: Any) -> None:
        """Reject attention of a second pass that reads the text in another way than the first."""
        first, second = (getattr(one, "last_hidden_state", None) for one in (output, again))
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return
        real = self.real.to(first.device)
        if first.shape[:2] != real.shape:
            return
        first, second = first.detach()[real].float(), second[real].float()
        error, scale = float((first - second).abs().max()), float(first.abs().max())
        if error > _TOLERANCES.get(self.backbone.dtype, _COARSE_TOLERANCE) * scale:
            raise ModelError(
                f"{type(self.backbone).__name__} run a second time with eager attention gives "
                f"other states (by {error:.3g} where the largest is {scale:.3g}), so that its "
                "attention is not that of the score; expected it loaded with "
                "attn_implementation='eager', or a credit method that needs no attention"
            )

    def rows_of_maps(self, maps: Any) -> Tensor:
        """The rows of the chosen layer out of all maps, with a warning about their price."""
        name = type(self.backbone).__name__
        if maps and not -len(maps) <= self.layer < len(maps):
            raise ConfigError(
                f"layer {self.layer} of {name}, which has {len(maps)} attention layers; expected "
                f"{-len(maps)} to {len(maps) - 1}"
            )
        rows = self.rows_of_map(maps[self.layer]) if maps else None
        if rows is None:
            raise ModelError(
                f"{name} gives no attention weights, neither through transformers' attention "
                "interface nor with output_attentions=True; load it with "
                "attn_implementation='eager', or choose a credit method that needs none"
            )
        warnings.warn(
            f"layer {self.layer} of {name} cannot be recorded through transformers' attention "
            "interface: the model runs twice, the second time with eager attention and full "
            "attention maps; expect more than twice the time, and memory quadratic in the length",
            TokenCreditWarning,
            stacklevel=2,
        )
        return rows

    def rows_of_map(self, attention: Any) -> Tensor | None:
        """The rows out of a (batch, head, query, key) map; None if it is none."""
        batch, length = self.real.shape
        if not isinstance(attention, Tensor) or attention.ndim != 4:
            return None
        if (len(attention), *attention.shape[2:]) != (batch, length, length):
            return None
        positions = self.positions.to(attention.device)
        return at_positions(attention.detach(), positions).float().mean(1)
