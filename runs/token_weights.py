"""Do weights of tokens help an offline loss? DPO on the built-in task with nine kinds of them.

    python runs/token_weights.py output/token-weights docs/results/token-weights.json

Trains a policy for every kind of weight, beta, seed and data set (pairs as a noisy judge labelled
them, and with 30 % of the labels turned around), draws its responses, and keeps their mean true
reward and KL. What is done already is skipped. Settings beside beta are the same for all.
"""

import json
import random
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tokencredit.batch import padded_rows
from tokencredit.masking import masked_sum
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.recipes.preferences.train_preferences import (
    TrainPreferencesConfig,
    train_preferences,
)
from tokencredit.recipes.reward_model.train_reward_model import (
    TrainRewardModelConfig,
    train_reward_model,
)
from tokencredit.recipes.run_folder import append_jsonl, read_jsonl, write_atomically
from tokencredit.recipes.settings import settings_from
from tokencredit.sampling import Sampling
from tokencredit.scorers.policy_tokens import decoded_responses
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.toy.reviews import sample_prompt
from tokencredit.toy.truth import split_words, true_reward

QUICKSTART = Path("output/quickstart")
PROMPTS, SAMPLES, TOKENS = 100, 8, 40
BETAS, SEEDS, FLIPPED = (0.03, 0.1, 0.3, 1.0), (0, 1), 0.3


def weights_of(data: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of every kind of weight."""
    truth = {"credit.method": "prefix-difference", "reward_model": "runs.token_truth:true"}
    noise = {**truth, "reward_model": "runs.token_truth:random_walk"}
    learnt = {
        "credit.method": "prefix-difference",
        "reward_model": str(folder / data / "reward-model"),
    }
    attention = {**learnt, "credit.method": "attention"}
    ratio = {"credit.method": "log-ratio", "credit.model": str(folder / data / "dpo")}
    by_credit, by_share = {"token_weights.kind": "credit"}, {"token_weights.kind": "select"}
    return {
        "none": {},
        "true causal credit": by_credit | truth,
        "random credit": by_credit | noise,
        "prefix differences": by_credit | learnt,
        "attention": by_credit | attention,
        "log-ratio": by_credit | ratio,
        "edits": {"token_weights.kind": "edits"},
        "best 30 % by true credit": by_share | truth,
        "best 30 % by random credit": by_share | noise,
        "best 30 % by prefix differences": by_share | learnt,
    }


def dpo(data: Path, output: Path, *, beta: float, seed: int, **settings: Any) -> Path:
    """A policy by DPO with these settings."""
    shared = {
        "data": str(data),
        "model": str(QUICKSTART / "language-model"),
        "output": str(output),
        "options.dpo_beta": beta,
        "max_length": 96,
        "evaluation.share": 0.0,
        "training.batch_size": 16,
        "training.learning_rate": 1e-3,
        "training.log_every": 50,
        "seed": seed,
        "device": "cpu",
        "progress": False,
    }
    return train_preferences(settings_from(TrainPreferencesConfig, shared | settings))


def pairs_of(folder: Path) -> dict[str, Path]:
    """The pairs as the quickstart has them, and with a share of them turned around."""
    rows = read_jsonl(QUICKSTART / "data" / "pairs.jsonl")
    rng = random.Random(0)
    turned = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        if rng.random() < FLIPPED
        else row
        for row in rows
    ]
    found = {"noisy judge": rows, "30 % turned around": turned}
    paths = {name: folder / name / "pairs.jsonl" for name in found}
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in found[name]))
    return paths


def models_of(data: Path) -> None:
    """What weights are made of: a reward model of these pairs, and a policy of plain DPO."""
    if not (data.parent / "reward-model" / "config.json").exists():
        settings = {
            "data": str(data),
            "model": str(QUICKSTART / "language-model"),
            "output": str(data.parent / "reward-model"),
            "columns.prompt": "prompt",
            "reading.append_eos": False,
            "max_length": 96,
            "training.epochs": 3.0,
            "training.batch_size": 16,
            "training.learning_rate": 1e-3,
            "device": "cpu",
            "progress": False,
        }
        train_reward_model(settings_from(TrainRewardModelConfig, settings))
    if not (data.parent / "dpo" / "config.json").exists():
        dpo(data, data.parent / "dpo", beta=0.1, seed=100)


@torch.no_grad()
def judged(policy: Path) -> dict[str, float]:
    """Mean true reward of a policy's responses, and its KL to the start, with standard errors."""
    loaded = [
        load_model(AutoModelForCausalLM, str(one), device="cpu")
        for one in (policy, QUICKSTART / "language-model")
    ]
    tokenizer = load_tokenizer(str(policy))
    reading = reading_of(loaded[0], tokenizer, ReadingSettings())
    rng = random.Random(77)
    asked = [sample_prompt(rng) for _ in range(PROMPTS)]
    ids = [row for row in reading.prompt_rows(asked, where="prompts") for _ in range(SAMPLES)]
    torch.manual_seed(0)
    rewards, ratios = [], []
    for at in range(0, len(ids), 200):
        batch, _ = sampled_responses(
            loaded[0],
            *padded_rows(ids[at : at + 200], fill=tokenizer.pad_token_id, side="left"),
            sampling=Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=reading.turn_ends or None,
        )
        own, first = (response_logprobs(model, batch) for model in loaded)
        ratios.append(masked_sum(own - first, batch.response_mask))
        texts = [one.response for one in decoded_responses(tokenizer, batch)]
        rewards += [true_reward(split_words(text)) for text in texts]
    true, kl = torch.tensor(rewards), torch.cat(ratios)
    return {
        "true": round(float(true.mean()), 4),
        "true_error": round(float(true.std() / len(true) ** 0.5), 4),
        "kl": round(float(kl.mean()), 4),
    }


def main() -> None:
    folder, kept = Path(sys.argv[1]), Path(sys.argv[2])
    pairs = pairs_of(folder)
    results = folder / "results.jsonl"
    done = {
        (row["pairs"], row["weights"], row["beta"], row["seed"])
        for row in (read_jsonl(results) if results.exists() else [])
    }
    for seed, name, beta in product(SEEDS, pairs, BETAS):
        models_of(pairs[name])
        for weights, settings in weights_of(name, folder).items():
            if (name, weights, beta, seed) in done:
                continue
            output = folder / "policy"
            shutil.rmtree(output, ignore_errors=True)
            dpo(pairs[name], output, beta=beta, seed=seed, **settings)
            row = {"pairs": name, "weights": weights, "beta": beta, "seed": seed}
            append_jsonl(results, row | judged(output))
            print(read_jsonl(results)[-1], flush=True)
    write_atomically(kept, json.dumps(read_jsonl(results)) + "\n")


if __name__ == "__main__":
    main()
