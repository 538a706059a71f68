"""Responses as verl holds them, and its reward loop and agent loop without a cluster."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopMetrics,
    AgentLoopOutput,
    AgentLoopWorker,
)
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker, reward_loop
from verl.trainer.ppo.reward import resolve_reward_manager_cls

ROWS = (("the plot is", "dull"), ("this film", "is a very good film"), ("a", "bad comedy ."))
GARBAGE = 3


def worker_of(config: DictConfig, **settings: Any) -> RewardLoopWorker:
    """verl's worker, that loads the tokenizer and our manager as the configuration says."""
    with open_dict(config.reward.reward_kwargs):
        config.reward.reward_kwargs.update(settings)
    return RewardLoopWorker(config)


def rollout(tokenizer: Any, *, prompt_side: str = "left", **fields: Any) -> DataProto:
    """ROWS as verl's trainers hold them; padding is garbage, one response ends itself."""
    prompts = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt, _ in ROWS]
    answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in ROWS]
    answers[0] = [*answers[0], tokenizer.eos_token_id]
    columns = {}
    for name, rows, side in (("prompts", prompts, prompt_side), ("responses", answers, "right")):
        tensors = [torch.as_tensor(row) for row in rows]
        columns[name] = torch.nn.utils.rnn.pad_sequence(tensors, True, GARBAGE, side)
        columns[f"{name}_real"] = torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(row) for row in tensors], True, 0, side
        )
    mask = torch.cat([columns.pop("prompts_real"), columns.pop("responses_real")], dim=1)
    batch = TensorDict({**columns, "attention_mask": mask}, batch_size=len(ROWS))
    messages = np.empty(len(ROWS), dtype=object)
    messages[:] = [[{"role": "user", "content": prompt}] for prompt, _ in ROWS]
    others = {name: np.array([value] * len(ROWS), dtype=object) for name, value in fields.items()}
    return DataProto(batch=batch, non_tensor_batch={"raw_prompt": messages, **others})


def unpadded(data: DataProto) -> list[tuple[Tensor, Tensor]]:
    """Ids of each prompt and response, by the attention mask."""
    width, batch = data.batch["prompts"].shape[1], data.batch
    return [
        (prompt[real[:width].bool()], answer[real[width:].bool()])
        for prompt, answer, real in zip(
            batch["prompts"], batch["responses"], batch["attention_mask"], strict=True
        )
    ]


def logit(model: Any, *ids: Tensor) -> float:
    with torch.no_grad():
        return model(torch.cat(ids)[None]).logits[0, 0].item()


def colocated(worker: RewardLoopWorker, data: DataProto, monkeypatch: Any) -> DataProto:
    """verl's RewardLoopManager, with Ray in this process and one worker more than it divides by."""
    monkeypatch.setattr(reward_loop.ray, "get", lambda results: results)
    manager = object.__new__(RewardLoopManager)

    def remote(chunk: DataProto) -> Any:
        return pickle.loads(pickle.dumps(asyncio.run(worker.compute_score_batch(chunk))))

    handle = SimpleNamespace(compute_score_batch=SimpleNamespace(remote=remote))
    manager.reward_loop_workers, manager.reward_model_manager = [handle, handle], None
    manager.reward_manager_cls = resolve_reward_manager_cls(worker.config)
    return manager.compute_rm_score(data)


async def streamed(worker: RewardLoopWorker, output: AgentLoopOutput, **fields: Any) -> dict:
    """What verl's agent loop worker writes for this output."""

    async def remote(data: DataProto) -> Any:
        sent = pickle.loads(pickle.dumps(data))
        return pickle.loads(pickle.dumps(await worker.compute_score(sent)))

    loop = object.__new__(AgentLoopWorker)
    loop.processor, loop.mm_processor_kwargs = None, {}
    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=remote))
    loop.reward_loop_worker_handles = [handle]
    await loop._compute_score([output], kwargs=fields)
    return output.as_dict()


def output_of(prompt: Tensor, answer: Tensor, mask: list[int] | None = None) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=prompt.tolist(),
        response_ids=answer.tolist(),
        response_mask=mask or [1] * len(answer),
        num_turns=2,
        metrics=AgentLoopMetrics(),
    )
