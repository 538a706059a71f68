"""TRL's client of a vLLM server, with a tiny model in the server's place.

Every call must fit the signature of the real client's method, so that a change of TRL is seen.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM
from trl.generation import vllm_client

from tokencredit.batch import padded_rows
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.sampling import Sampling

REAL = vllm_client.VLLMClient


def fitting(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments by name, as the real method would take them."""
    bound = inspect.signature(getattr(REAL, name)).bind(None, *args, **kwargs)
    return dict(list(bound.arguments.items())[1:])


class TinyVLLM:
    """Draws from weights that it was sent, and knows no others.

    Attributes:
        folder: of the model, for its shape.
        made: every client that was made.
    """

    folder: ClassVar[Path]
    made: ClassVar[list["TinyVLLM"]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.address = fitting("__init__", *args, **kwargs)["base_url"]
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        for parameter in self.model.parameters():
            parameter.data.fill_(float("nan"))
        self.calls: list[str] = []
        self.made.append(self)

    def init_communicator(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("init_communicator")
        fitting("init_communicator", *args, **kwargs)

    def update_named_params(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("update_named_params")
        given = fitting("update_named_params", *args, **kwargs)
        sent: Iterator[tuple[str, torch.Tensor]] = given["named_params"]
        mine = dict(self.model.named_parameters())
        for (name, dtype, shape), (same_name, weight) in zip(given["metadata"], sent, strict=True):
            assert (name, dtype, shape) == (same_name, "float32", list(weight.shape))
            mine.pop(name).data.copy_(weight)
        assert not mine, "weights that were not sent"

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def generate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.calls.append("generate")
        given = fitting("generate", *args, **kwargs)
        further = given["generation_kwargs"]
        biases = further.get("logit_bias", {})
        assert set(biases.values()) <= {-100.0}
        sampling = Sampling(
            max_new_tokens=given["max_tokens"],
            min_new_tokens=further["min_tokens"],
            suppress_tokens=tuple(map(int, biases)),
            temperature=given["temperature"],
            top_k=given["top_k"],
            top_p=given["top_p"],
        )
        ids, mask = padded_rows(given["prompts"], fill=self.model.config.pad_token_id, side="left")
        ends = {
            "pad_token_id": self.model.config.pad_token_id,
            "eos_token_id": further["stop_token_ids"],
        }
        batch, _ = sampled_responses(self.model, ids, mask, sampling=sampling, **ends)
        rows = zip(batch.response_ids, batch.response_mask, strict=True)
        return {"completion_ids": [ids[mask].tolist() for ids, mask in rows]}


def installed(folder: Path) -> type[TinyVLLM]:
    """A class of such clients for the model of a folder."""
    return type("TinyVLLM", (TinyVLLM,), {"folder": folder, "made": []})
