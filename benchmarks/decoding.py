"""Guided decoding against the loops of the papers, and against no guidance at all.

    python benchmarks/decoding.py --new-tokens 64 256

One random Llama writes greedily, another of the same size scores k candidates per token. The
variants run in turn within each repeat; ratios are of medians. All that score with the scalar head
must write the same tokens, or the benchmark stops.

  full re-runs    the published loop of PARGS: k whole texts per token, here in one batch, and the
                  language model with its cache (theirs re-runs that as well)
  k cached rows   the published loop of ARGS: k copies of the cache, the chosen one copied k times
  packed, rows    our scorers; packed is what `auto` takes
  shared trunk    our scorer with the reward head on the language model itself
  vocabulary head one pass scores every token (other tokens, since it is another model)
  unguided        `generate()` of transformers
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scoring import SIZES
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    LlamaConfig,
)

from tokencredit.decoding.candidates.hf_choice import candidate_scorer
from tokencredit.decoding.candidates.hf_shared_trunk import SharedTrunkScorer
from tokencredit.decoding.hf_generate import guided_generate
from tokencredit.decoding.hf_guide import RewardGuide

SAME_TOKENS = ("full re-runs", "k cached rows", "packed", "rows")


def variants(arguments: argparse.Namespace, k: int) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Ways to write so many tokens behind prompts, from the same weights."""
    config = LlamaConfig(
        **SIZES[arguments.size], max_position_embeddings=4096, num_labels=1, pad_token_id=0
    )
    torch.manual_seed(0)
    place: dict[str, Any] = {
        "device": arguments.device,
        "dtype": getattr(torch, arguments.dtype),
    }
    language_model = AutoModelForCausalLM.from_config(config).eval().to(**place)
    reward_model = AutoModelForSequenceClassification.from_config(config).eval().to(**place)
    vocabulary_model = AutoModelForCausalLM.from_config(config).eval().to(**place)
    head = nn.Linear(config.hidden_size, 1, bias=False).to(**place)

    def unguided(prompts: Tensor, new: int) -> Tensor:
        return written(language_model, prompts, new)

    def with_scorer(make: Callable[[], Any], top_k: int) -> Callable[[Tensor, int], Tensor]:
        def write(prompts: Tensor, new: int) -> Tensor:
            guide = RewardGuide(make(), guidance_beta=1.0, top_k=top_k)
            return written(
                language_model,
                prompts,
                new,
                logits_processor=[guide],
                custom_generate=guided_generate,
            )

        return write

    return {
        "unguided": unguided,
        "full re-runs": lambda prompts, new: full_reruns(
            language_model, reward_model, prompts, new, k
        ),
        "k cached rows": lambda prompts, new: cached_rows(
            language_model, reward_model, prompts, new, k
        ),
        "packed": with_scorer(lambda: candidate_scorer(reward_model, method="packed"), k),
        "rows": with_scorer(lambda: candidate_scorer(reward_model, method="rows"), k),
        "shared trunk": with_scorer(lambda: SharedTrunkScorer(language_model, head), k),
        "vocabulary head": with_scorer(lambda: candidate_scorer(vocabulary_model), 0),
    }


def written(model: Any, prompts: Tensor, new: int, **options: Any) -> Tensor:
    """The responses of `generate()`."""
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        **options,
    )
    return ids[:, prompts.shape[1] :]


@torch.no_grad()
def full_reruns(model: Any, reward_model: Any, prompts: Tensor, new: int, k: int) -> Tensor:
    """k whole texts per row and token."""
    cache, feed, ids = DynamicCache(), prompts, prompts
    for _ in range(new):
        logits = model(feed, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        logprobs, candidates = logits.log_softmax(-1).topk(k)
        texts = torch.cat([ids[:, None].expand(-1, k, -1), candidates[..., None]], dim=-1).flatten(
            0, 1
        )
        mask = torch.ones_like(texts)
        scores = reward_model(texts, attention_mask=mask, use_cache=False).logits.view(-1, k)
        best = (logprobs + scores.float()).argmax(-1, keepdim=True)
        feed = candidates.gather(-1, best)
        ids = torch.cat([ids, feed], dim=-1)
    return ids[:, prompts.shape[1] :]


@torch.no_grad()
def cached_rows(model: Any, reward_model: Any, prompts: Tensor, new: int, k: int) -> Tensor:
    """One-token queries against k copies of the reward model's cache, re-ordered every token."""
    batch = len(prompts)
    cache, feed, chosen = DynamicCache(), prompts, []
    reward_cache = DynamicCache()
    reward_model.base_model(prompts, past_key_values=reward_cache, use_cache=True)
    reward_cache.batch_repeat_interleave(k)
    for _ in range(new):
        logits = model(feed, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        logprobs, candidates = logits.log_softmax(-1).topk(k)
        hidden = reward_model.base_model(
            candidates.reshape(-1, 1), past_key_values=reward_cache, use_cache=True
        ).last_hidden_state
        scores = reward_model.score(hidden).view(-1, k)
        best = (logprobs + scores.float()).argmax(-1, keepdim=True)
        rows = torch.arange(batch, device=prompts.device)[:, None] * k + best
        reward_cache.batch_select_indices(rows.expand(-1, k).flatten())
        feed = candidates.gather(-1, best)
        chosen.append(feed)
    return torch.cat(chosen, dim=-1)


def seconds(write: Callable[[], Tensor], clock: str) -> tuple[float, Tensor]:
    """Time of one call, and what it wrote."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = now()
    tokens = write().cpu()
    return now() - start, tokens


def measured(
    arguments: argparse.Namespace, prompt: int, new: int, batch: int, k: int, names: list[str]
) -> list[dict[str, Any]]:
    """One row per variant of one setting."""
    ways = variants(arguments, k)
    prompts = torch.randint(1, 8192, (batch, prompt), device=arguments.device)
    times: dict[str, list[float]] = {name: [] for name in names}
    ways[names[0]](prompts, 2)
    for repeat in range(arguments.repeats):
        tokens = {}
        for name in names:
            if name in ("full re-runs", "k cached rows") and repeat >= arguments.peer_repeats:
                continue
            elapsed, tokens[name] = seconds(lambda n=name: ways[n](prompts, new), arguments.clock)
            times[name].append(elapsed)
        same = [tokens[name] for name in SAME_TOKENS if name in tokens]
        if arguments.dtype == "float32" and any(not one.equal(same[0]) for one in same):
            raise SystemExit("the scorers wrote different tokens in float32")
    median = {name: statistics.median(values) for name, values in times.items()}
    peer = next(name for name in ("full re-runs", "k cached rows") if name in median)
    setting = {"prompt": prompt, "new tokens": new, "batch": batch, "k": k}
    return [
        {
            **setting,
            "variant": name,
            "tokens/s": batch * new / median[name],
            "faster than peer": median[peer] / median[name],
            "peer": peer,
            "time / unguided": median[name] / median["unguided"],
        }
        for name in names
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown."""
    lines = [
        "| prompt | new tokens | batch | k | variant | tokens/s | faster than the peer | peer | "
        "time / unguided |",
        "|---:|---:|---:|---:|---|---:|---:|---|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['prompt']} | {row['new tokens']} | {row['batch']} | {row['k']} "
            f"| {row['variant']} | {row['tokens/s']:.1f} | {row['faster than peer']:.2f} "
            f"| {row['peer']} | {row['time / unguided']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--long-prompt", type=int, default=1024, help="with k = 40; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-repeats", type=int, default=1, help="of the slow published loops")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--json", type=Path, default=None, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    every = ["unguided", "full re-runs", "k cached rows", "packed", "rows", "shared trunk"]
    every.append("vocabulary head")
    rows = []
    for new in arguments.new_tokens:
        rows += measured(arguments, 32, new, 1, 10, every)
    for batch in (size for size in arguments.batch_sizes if size > 1):
        rows += measured(arguments, 32, 64, batch, 10, every)
    long = ["unguided", "k cached rows", "packed", "rows", "shared trunk", "vocabulary head"]
    if arguments.long_prompt:
        rows += measured(arguments, arguments.long_prompt, 32, 1, 40, long)
    print(
        f"{arguments.size} Llama twice, {arguments.dtype} on {arguments.device}, "
        f"{arguments.clock} time, medians of {arguments.repeats} (published loops "
        f"{arguments.peer_repeats}), torch {torch.__version__}\n"
    )
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"settings": vars(arguments), "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
