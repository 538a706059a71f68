"""Does merging after training keep more of both than stopping early or a price of the KL?

    python runs/merging.py

A language model of six layers on the reviews of the built-in task follows the quickstart's reward
model by PPO without a price of the KL. Compared at what they reach in true reward and in the mean
negative log-likelihood of new reviews, the tax: the policy merged with its start in three ways, its
own checkpoints, and policies that paid a price of the KL. What is done already is skipped.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from offline_study import QUICKSTART, Row, judged_folder, language_model_of, written
from transformers import AutoModelForCausalLM

from tokencredit.batch import padded_rows
from tokencredit.logprobs import token_logprobs
from tokencredit.masking import masked_mean
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.recipes.decoding.generate import GenerateConfig, generate
from tokencredit.recipes.merging.merge_weights import MergeWeightsConfig, merge_weights
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import append_jsonl, read_jsonl, write_atomically
from tokencredit.recipes.settings import settings_from
from tokencredit.toy.reviews import sample_prompt, sample_review

FOLDER, KEPT = Path("output/merging"), Path("docs/results/honest/merging.json")
START, PROMPTS = FOLDER / "language-model", FOLDER / "prompts.jsonl"
STEPS, EVERY, REVIEWS = 60, 10, 400
SHARES = (0.2, 0.4, 0.6, 0.8)
PRICES = (0.01, 0.03, 0.1, 0.3)


def start() -> Path:
    """The language model of six layers."""
    return language_model_of(START, num_hidden_layers=6)


def trained(price: float) -> Path:
    """A run of PPO with a price of the KL; all its checkpoints stay."""
    output = FOLDER / f"price-{price:g}"
    if not (output / "policy" / "config.json").exists():
        settings = {
            "policy": str(start()),
            "reward_model": str(QUICKSTART / "reward-model"),
            "prompts": str(QUICKSTART / "data" / "prompts.jsonl"),
            "output": str(output),
            "steps": STEPS,
            "batch_size": 32,
            "credit.method": "prefix-difference",
            "sampling.response_lengths": "uniform",
            "sampling.min_new_tokens": 40,
            "sampling.max_new_tokens": 40,
            "optimizer.learning_rate": 3e-4,
            "kl.coef": price,
            "record.checkpoint_every": EVERY,
            "record.keep_checkpoints": STEPS // EVERY,
            "record.progress": False,
            "machine.device": "cpu",
        }
        train_policy(settings_from(TrainPolicyConfig, settings))
    return output / "policy"


def checkpoint(step: int) -> Path:
    trained(0.0)
    return FOLDER / "price-0" / "checkpoints" / f"step-{step:06d}" / "policy"


def best_of_n() -> Path:
    """Responses of the trained policy, the best of eight to each prompt, on which AMA is fitted."""
    output = FOLDER / "best-of-n"
    if not (output / "responses.jsonl").exists():
        rng = random.Random(3)
        prompts = written(PROMPTS, [{"prompt": sample_prompt(rng)} for _ in range(200)])
        settings = {
            "policy": str(trained(0.0)),
            "reward_model": str(QUICKSTART / "reward-model"),
            "prompts": str(prompts),
            "output": str(output),
            "method": "best-of-n",
            "n": 8,
            "sampling.max_new_tokens": 40,
            "sampling.min_new_tokens": 40,
            "device": "cpu",
            "progress": False,
        }
        generate(settings_from(GenerateConfig, settings))
    return output / "responses.jsonl"


def merged(method: str, name: str, **own: Any) -> Path:
    output = FOLDER / "merged" / name
    if not (output / "config.json").exists():
        if method == "ama":
            own["ama.data"] = str(best_of_n())
        settings = {"base": str(start()), "tuned": str(trained(0.0)), "output": str(output)}
        merge_weights(settings_from(MergeWeightsConfig, settings | {"method": method, **own}))
    return output


@torch.no_grad()
def tax(policy: Path) -> float:
    """Mean negative log-likelihood of new reviews, in nats per token."""
    model = load_model(AutoModelForCausalLM, str(policy), device="cpu")
    tokenizer = load_tokenizer(str(policy))
    rng = random.Random(99)
    texts = [sample_review(rng) + tokenizer.eos_token for _ in range(REVIEWS)]
    ids, mask = padded_rows(
        tokenizer(texts)["input_ids"], fill=tokenizer.pad_token_id, side="right"
    )
    logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
    return -float(masked_mean(token_logprobs(logits, ids[:, 1:]), mask[:, 1:]))


def planned() -> Iterator[tuple[Row, Callable[[], Path]]]:
    yield {"by": "start", "setting": ""}, start
    yield {"by": "trained", "setting": ""}, partial(trained, 0.0)
    for step in range(EVERY, STEPS, EVERY):
        yield {"by": "early checkpoint", "setting": f"step {step}"}, partial(checkpoint, step)
    for price in PRICES:
        yield {"by": "price of the KL", "setting": f"{price:g}"}, partial(trained, price)
    for share in SHARES:
        name = f"average-{share:g}"
        make = partial(merged, "average", name, share=share)
        yield {"by": "average", "setting": f"share {share:g}"}, make
        name = f"lines-{share:g}"
        make = partial(merged, "lines", name, alpha=share, beta=1 - share)
        yield {"by": "LiNeS", "setting": f"alpha {share:g}, beta {1 - share:g}"}, make
        make = partial(merged, "ama", f"ama-{share:g}", **{"ama.base_share": 1 - share})
        yield {"by": "AMA", "setting": f"share of the start {1 - share:.1f}"}, make


def main() -> None:
    results = FOLDER / "results.jsonl"
    done = read_jsonl(results) if results.exists() else []
    for key, policy in planned():
        if not any(key.items() <= row.items() for row in done):
            found = policy()
            nll = round(tax(found), 4)
            append_jsonl(results, {**key, **judged_folder(found, start=START), "nll": nll})
            print(read_jsonl(results)[-1], flush=True)
    write_atomically(KEPT, json.dumps(read_jsonl(results)) + "\n")


if __name__ == "__main__":
    main()
