"""What `torch.compile` would save in a step of PPO: passes of one shape, compiled and as they are.

    python benchmarks/compiled.py

The Llama of `ppo.py`, one thread, processor time, in turn; ratios with their quartiles. `update` is
a pass forward and backward over 16 rows of 56 tokens; `decoding` are 40 tokens of 16 rows, compiled
with the static cache that it needs. The time of compiling is that of the clock, once per shape.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # the time of compiling is wanted

import torch
from ppo import SIZES
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

ROWS, SEQUENCE, NEW_TOKENS = 16, 56, 40
CONFIG = LlamaConfig(**SIZES["small"], max_position_embeddings=512, tie_word_embeddings=False)


def update(model: Callable[..., object], ids: Tensor) -> None:
    positions = torch.arange(SEQUENCE).expand(ROWS, -1)
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    cross_entropy(logits.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


@torch.no_grad()
def decode(model: Callable[..., object], ids: Tensor, cache: object) -> None:
    token = ids[:, :1]
    for place in range(NEW_TOKENS):
        positions = torch.full((ROWS, 1), place)
        logits = model(
            input_ids=token, position_ids=positions, past_key_values=cache, use_cache=True
        )
        token = logits.logits[:, -1:].argmax(-1)


def line(name: str, plain: Callable[[], None], compiled: Callable[[], None], repeats: int) -> str:
    start = time.perf_counter()
    compiled()
    seconds = time.perf_counter() - start
    plain()
    ratios = []
    for _ in range(repeats):
        taken = []
        for run in (plain, compiled):
            begun = time.process_time()
            run()
            taken.append(time.process_time() - begun)
        ratios.append(taken[1] / taken[0])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = LlamaForCausalLM(CONFIG)
    compiled = torch.compile(copy.deepcopy(plain), dynamic=False)
    ids = torch.randint(5, CONFIG.vocab_size, (ROWS, SEQUENCE))
    print("| pass | compiled / as it is | quartiles | s to compile |")
    print("|---|---:|---|---:|")
    print(
        line("update", lambda: update(plain, ids), lambda: update(compiled, ids), options.repeats),
        flush=True,
    )
    print(
        line(
            "decoding",
            lambda: decode(plain, ids, DynamicCache()),
            lambda: decode(compiled, ids, StaticCache(config=CONFIG, max_cache_len=64)),
            options.repeats,
        )
    )


if __name__ == "__main__":
    main()
