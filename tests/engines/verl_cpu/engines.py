"""verl's FSDP2 engines for the CPU: policies, and critics that need no flash attention."""

import dataclasses
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


class StaysInPlace:
    """A frozen model is not offloaded: it is on the CPU, and torch pins memory for GPUs alone."""

    engine_config: Any

    def _build_fsdp_module(self, module: Any) -> Any:
        config = self.engine_config
        self.engine_config = dataclasses.replace(config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)  # type: ignore[misc]
        finally:
            self.engine_config = config


@EngineRegistry.register("language_model", backend="fsdp2", device="cpu")
class PolicyOnCPU(StaysInPlace, FSDPEngineWithLMHead):
    """The policy, and its reference."""


@EngineRegistry.register("value_model", backend="fsdp2", device="cpu")
class CriticOnCPU(StaysInPlace, FSDPEngineWithValueHead):
    """The critic; verl loads one with "flash_attention_2", whatever is set."""

    def _build_module(self) -> Any:
        with patch("verl.utils.model.load_valuehead_model", token_classifier):
            return super()._build_module()


def token_classifier(
    local_path: str,
    torch_dtype: torch.dtype,
    model_config: PretrainedConfig,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """What verl's own function tries first, with the attention that torch has."""
    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )
