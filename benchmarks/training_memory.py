"""What the memory of training a reward model with adapters is made of.

    python benchmarks/training_memory.py --model FOLDER
    python benchmarks/training_memory.py --model FOLDER --one-heap    # as it was before
    python benchmarks/training_memory.py --model FOLDER --turns 4     # what it costs in time

Steps of `train-reward-model --lora.rank 16` under bfloat16 autocast, of eight pairs whose rows have
so many tokens, a third of them the prompt that both answers share: the memory of the process by
phase, and what the backward pass keeps, counted once per tensor. With `--one-heap` the allocator of
C keeps freed blocks between those in use. `--turns` takes steps with and without it in turn, in one
process, and tells their processor time.
"""

import argparse
import ctypes
import os
import resource
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification

from tokencredit.models.hf_adapters import lora_model
from tokencredit.models.hf_joined_rows import FIRST_REST, SHARED
from tokencredit.recipes.reward_model.shared_prefixes import shared_scores
from tokencredit.recipes.training.memory import M_MMAP_THRESHOLD, return_large_blocks


def pairs(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Arguments of `shared_scores`: random ids, read at the last token of each answer."""
    prompt = tokens // 3
    answer = (tokens - prompt) // 2
    branches = torch.full((rows, tokens), SHARED)
    branches[:, prompt : prompt + answer] = FIRST_REST
    branches[:, prompt + answer :] = FIRST_REST + 1
    chosen, rejected = range(prompt + answer), range(prompt, tokens - answer)
    ends = [[prompt + answer - 1]] * rows + [[tokens - 1]] * rows
    return {
        "input_ids": torch.randint(5, 1000, (rows, tokens)),
        "position_ids": torch.tensor([[*chosen, *rejected]] * rows),
        "branches": branches,
        "columns": torch.tensor(ends),
        "counted": torch.ones(2 * rows, 1, dtype=torch.bool),
    }


def kept(model: Any, arguments: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Bytes that the backward pass keeps: of activations, and of weights cast to bfloat16."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    found: dict[int, tuple[int, bool]] = {}
    held = []  # or an address would be taken by the next tensor

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tuple(tensor.shape) in shapes)
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        scores_of(model, arguments)
    return (
        sum(size for size, of_weight in found.values() if not of_weight),
        sum(size for size, of_weight in found.values() if of_weight),
    )


def scores_of(model: Any, arguments: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return shared_scores(model, **arguments)


def tell(phase: str) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * resource.getpagesize() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {phase} | {now:.2f} | {peak:.2f} |", flush=True)


def step(
    model: Any, optimizer: torch.optim.Optimizer, rows: int, tokens: int
) -> tuple[float, float]:
    """Processor time of one step, and that of the system in it, in seconds."""
    arguments, before = pairs(rows, tokens), os.times()
    scores_of(model, arguments).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    after = os.times()
    of_system = after.system - before.system
    return after.user - before.user + of_system, of_system


def tell_turns(model: Any, optimizer: torch.optim.Optimizer, *, turns: int, rows: int) -> None:
    """Steps with one heap and with mapped blocks, of lengths that change from turn to turn."""
    step(model, optimizer, rows, 180)  # what happens once
    ratios, of_system = [], []
    for turn in range(turns):
        tokens = 180 + 10 * (turn % 3)
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc comes to
        one_heap, _ = step(model, optimizer, rows, tokens)
        return_large_blocks()
        mapped, system = step(model, optimizer, rows, tokens)
        ratios.append(mapped / one_heap)
        of_system.append(system / mapped)
    print(
        f"{rows} rows, {turns} turns: time {statistics.median(ratios):.3f} of that with one heap "
        f"({min(ratios):.3f} to {max(ratios):.3f}), of which the system has at most "
        f"{max(of_system):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[280, 260])
    parser.add_argument("--one-heap", action="store_true")
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if options.turns is None:
        print("| after | GB now | GB at most |\n|---|---:|---:|")
        tell("imports")
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = 0
    adapted = lora_model(model, rank=16, alpha=32).train()
    if not options.one_heap:
        return_large_blocks()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)
    if options.turns is not None:
        tell_turns(adapted, optimizer, turns=options.turns, rows=options.rows)
        return
    for tokens in options.tokens:
        scores = scores_of(adapted, pairs(options.rows, tokens))
        tell(f"{options.rows} rows of {tokens} tokens, forward")
        scores.sum().backward()
        tell("backward")
        optimizer.step()
        optimizer.zero_grad()
    weights = sum(p.numel() * p.element_size() for p in adapted.parameters())
    of_activations, of_weights = kept(adapted, pairs(1, options.tokens[0]))
    print(
        f"\nWeights {weights / 1e9:.2f} GB, cast to bfloat16 {of_weights / 1e9:.2f} GB, kept for "
        f"each token {of_activations / options.tokens[0] / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
