"""A causal language model in two parts: its trunk once, and what stands after it on any states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokencredit.errors import ModelError
from tokencredit.models.hf_attention import pretrained_model


@contextmanager
def trunk_output(model: nn.Module) -> Iterator[list[tuple[nn.Module, Any]]]:
    """The module inside the language model that gives its last hidden states, and its output.

    Both stand in the list after a forward pass in this context; it stays empty where no part of the
    model gives hidden states.
    """
    seen: list[tuple[nn.Module, Any]] = []

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(getattr(output, "last_hidden_state", None), Tensor):
            seen[:] = [(module, output)]  # The outermost ends last.

    outermost = pretrained_model(model)
    inside = [module for module in outermost.modules() if module is not outermost]
    handles = [module.register_forward_hook(keep) for module in inside]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def logits_behind_trunk(
    model: nn.Module,
    ids: Int[Tensor, "batch sequence"],
    trunk: Any,
    output: Any,
    hidden: Float[Tensor, "tokens width"],
) -> Float[Tensor, "tokens vocab"]:
    """What the model makes of these last hidden states: its forward, in which the trunk answers.

    Args:
        model: the language model.
        ids: any ids that it reads.
        trunk: as of `trunk_output`.
        output: that it gave.
        hidden: states to answer with instead.
    """
    before = vars(trunk).get("forward")
    answer = type(output)(**{**output, "last_hidden_state": hidden[None]})
    trunk.forward = lambda *_args, **_kwargs: answer
    try:
        logits: Tensor = model(input_ids=ids[:1, :1], use_cache=False, return_dict=True).logits[0]
        return logits
    finally:
        if before is None:
            del trunk.forward
        else:
            trunk.forward = before


def same_logits(own: Float[Tensor, "1 vocab"], again: Float[Tensor, "tokens vocab"]) -> bool:
    """Whether the way around the trunk gives the model's own logits, up to its precision."""
    if own.shape != again.shape:
        return False
    size = float(own.detach().nan_to_num(0.0, 0.0, 0.0).abs().amax())
    return torch.allclose(own, again, rtol=0.0, atol=0.02 * size, equal_nan=True)


def states_of_one_pass(
    model: nn.Module, seen: list[tuple[nn.Module, Any]], rows: int, *, needed_by: str
) -> Float[Tensor, "rows sequence width"]:
    """The last hidden states of a batch that the model has just read.

    Args:
        model: that read it.
        seen: as of `trunk_output`.
        rows: how many rows the batch has.
        needed_by: the setting that asks for them, for the message.

    Raises:
        ModelError: the model gives no hidden states, or read the batch in several passes.
    """
    hidden: Tensor | None = seen[-1][1].last_hidden_state if seen else None
    if hidden is None or len(hidden) != rows:
        raise ModelError(
            f"{type(pretrained_model(model)).__name__} reads a batch of {rows} rows in several "
            f"passes, or gives no hidden states; expected another model, or no {needed_by}"
        )
    return hidden
