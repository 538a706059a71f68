"""A tiny model of every architecture the tests speak about, built from a config, never downloaded.

Weights are drawn wide enough for attention to be far from uniform: at the usual initial scale most
mistakes would hide inside a tolerance.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

VOCAB_SIZE = 41
PAD_ID = 40
WIDTH = 32

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "opt": {"word_embed_proj_dim": WIDTH, "ffn_dim": 48},
    "gpt_neox": {},
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
        "attn_logit_softcapping": None,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
    },
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"hidden_dim": 48},
    "roberta": {},
}
OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {},
    "albert": {"embedding_size": 16},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "modernbert": {
        "layer_types": ["full_attention", "sliding_attention"],
        "local_attention": 6,
    },
    "modernbert-decoder": {
        "layer_types": ["full_attention", "sliding_attention"],
        "local_attention": 6,
    },
    "t5": {"d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0},
}
ARCHITECTURES = DECODERS | ENCODERS | OTHERS


def tiny_config(architecture: str, **overrides: Any) -> Any:
    """A config two layers deep and 32 wide, without dropout."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": PAD_ID,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "num_labels": 1,
    }
    settings |= ARCHITECTURES.get(architecture, {}) | overrides
    config = AutoConfig.for_model(architecture, **settings)
    for name in list(vars(config)):
        if "dropout" in name or name.endswith("pdrop"):
            setattr(config, name, 0.0)
    return config


def tiny_model(
    architecture: str,
    *,
    auto_class: Any = AutoModelForSequenceClassification,
    attn_implementation: str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """A model with wide random weights that depend on nothing but the config, in eval mode.

    Attention is torch's own (SDPA) where the architecture has it in the transformers that is there.
    """
    config = tiny_config(architecture, **overrides)
    model = auto_class.from_config(config, attn_implementation=attn_implementation)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
            elif "bias" in name or "sinks" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def tiny_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, none of them the pad id."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, PAD_ID, shape, generator=generator)


def padding_mask(
    lengths: list[int], *, side: str = "right", width: int | None = None
) -> torch.Tensor:
    """True on the real tokens of rows of these lengths."""
    columns = torch.arange(width or max(lengths))
    mask = columns < torch.tensor(lengths)[:, None]
    return mask if side == "right" else mask.flip(-1)


def tiny_gemma3(auto_class: Any = AutoModelForSequenceClassification, **text: Any) -> Any:
    """A Gemma 3 that reads images too, so that its configuration has several parts."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    settings = shape | {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "pad_token_id": PAD_ID}
    settings |= {"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
    settings |= DECODERS["gemma3_text"] | text
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=settings,
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    config.num_labels = 1
    model = auto_class.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.eval()
