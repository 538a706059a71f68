"""Attention of short rows in half precision on the CPU.

PyTorch's fused attention is made for long rows. In bfloat16 on the CPU it takes longer than plain
matrix products up to about 192 tokens, most of it in its backward pass. At 256 tokens these are no
faster, and keep eight times the memory (`benchmarks/attention.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tokencredit.models.hf_attention import pretrained_model

LONGEST = 192


@contextmanager
def short_attention(model: nn.Module, sequence: int) -> Iterator[None]:
    """Plain attention for forward passes in this context, where it is faster than fused attention.

    Nothing changes on other devices, in float32, for longer rows, where another implementation was
    chosen, or where layers are run again in the backward pass, which comes after this context. One
    thread at a time may run the model.

    Args:
        model: a Hugging Face model, also inside a PEFT wrapper.
        sequence: tokens of the longest row.
    """
    pretrained = pretrained_model(model)
    config = pretrained.config.get_text_config()
    device = next(pretrained.parameters()).device.type
    computes_in = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pretrained.dtype
    )
    fits = device == "cpu" and sequence <= LONGEST and config._attn_implementation == "sdpa"
    if not fits or computes_in != torch.bfloat16 or runs_layers_again(pretrained):
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def runs_layers_again(model: nn.Module) -> bool:
    """Whether layers are run again in the backward pass, to save memory."""
    return model.training and any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    )
