"""A rollout engine for verl: `generate()` of transformers, one server for each policy process."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from verl.workers.rollout import base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

NAME = "transformers"
ROLLOUTS = "VERL_CPU_ROLLOUTS"
"""The file to which each response is written as it was drawn, in token ids."""


class Server:
    """A copy of the policy that draws responses; what verl's servers are asked is asked of it."""

    def __init__(self, path: str, response_length: int) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.response_length = response_length
        self.step: int | None = None

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        temperature = sampling_params["temperature"]
        assert temperature > 0, f"temperature {temperature}; expected a positive one"
        ids = torch.tensor([list(prompt_ids)])
        drawn = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling_params.get("max_tokens") or self.response_length,
            do_sample=True,
            temperature=temperature,
            top_k=max(sampling_params["top_k"], 0),
            top_p=sampling_params["top_p"],
            return_dict_in_generate=True,
            output_logits=True,
        )
        response = drawn.sequences[0, ids.shape[1] :].tolist()
        logits = torch.cat(drawn.logits).float() / temperature
        logprobs = logits.log_softmax(-1)[range(len(response)), response]
        row = {"step": self.step, "prompt_ids": ids[0].tolist(), "response_ids": response}
        with Path(os.environ[ROLLOUTS]).open("a") as file:
            file.write(json.dumps(row) + "\n")
        ended = response[-1] == self.model.config.eos_token_id
        return TokenOutput(
            token_ids=response,
            log_probs=logprobs.tolist(),
            stop_reason="completed" if ended else "length",
            num_preempted=0,
            extra_fields={"global_steps": self.step},
        )

    async def load(self, weights: list[tuple[str, Tensor]], step: int | None) -> None:
        own = dict(self.model.named_parameters())
        assert own.keys() == dict(weights).keys(), "other weights than those of the policy"
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)
        self.step = step

    async def ready(self) -> None:
        """Answer as soon as the model is loaded."""

    async def set_global_steps(self, step: int) -> None:
        self.step = step

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        return {}

    async def nothing(self, *_: Any, **__: Any) -> None:
        """A model of transformers has no cache to release between responses, nor sleeps."""

    wake_up = sleep = resume_generation = start_profile = stop_profile = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = nothing


def name_of(rank: int) -> str:
    return f"transformers_server_{rank}"


class Replica(RolloutReplica):
    """One server for each process of the policy."""

    async def launch_servers(self) -> None:
        options = {"name": name_of(self.replica_rank), "num_cpus": 0, "max_concurrency": 64}
        path, length = self.model_config.path, self.config.response_length
        server = ray.remote(Server).options(**options).remote(path, length)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle, self._server_address = server, name_of(self.replica_rank)


class ServerAdapter(BaseRollout):
    """The policy process's side: it hands over the weights."""

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **_: Any,
    ) -> None:
        assert wire_format == "named_tensors", wire_format
        # All processes gather each tensor; the copy is of a weight that training changes in place.
        sent = [(name, whole(weight).float().clone()) for name, weight in weights]
        server = ray.get_actor(name_of(int(os.environ["RANK"])))
        await server.load.remote(sent, global_steps)


def whole(weight: Any) -> Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


RolloutReplicaRegistry.register(NAME, lambda: Replica)
base._ROLLOUT_REGISTRY[(NAME, "async")] = f"{__name__}.ServerAdapter"
