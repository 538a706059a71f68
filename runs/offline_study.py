"""What the experiments on offline losses share: pairs, policies, and what a policy is worth.

Every policy starts from the quickstart's language model. Of each one the mean true reward of its
responses is kept, and their KL to the start; what is done already is skipped.
"""

import json
import random
from collections.abc import Callable, Iterable
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
START = QUICKSTART / "language-model"
PROMPTS, SAMPLES, TOKENS, FLIPPED = 100, 8, 40, 0.3
Row = dict[str, Any]
KEPT = Path("docs/results/preferences")


def folder_of(name: str) -> Path:
    """Where an experiment has its data, models and results."""
    return Path("output/preferences") / name


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
    return {name: written(folder / name / "pairs.jsonl", found[name]) for name in found}


def written(path: Path, rows: list[Row]) -> Path:
    """Rows of data as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def reward_model_of(data: Path) -> Path:
    """A reward model of these pairs, trained as the quickstart trains its own."""
    output = data.parent / "reward-model"
    if not (output / "config.json").exists():
        settings = {
            "data": str(data),
            "model": str(START),
            "output": str(output),
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
    return output


def policy_of(data: Path, output: Path, *, seed: int, **settings: Any) -> Path:
    """A policy by `train-preferences` with these settings; one that is there already is kept."""
    shared = {
        "data": str(data),
        "model": str(START),
        "output": str(output),
        "max_length": 96,
        "evaluation.share": 0.0,
        "training.batch_size": 16,
        "training.learning_rate": 1e-3,
        "training.log_every": 50,
        "seed": seed,
        "device": "cpu",
        "progress": False,
    }
    if not (output / "config.json").exists():
        train_preferences(settings_from(TrainPreferencesConfig, shared | settings))
    return output


@torch.no_grad()
def judged(policy: Path, *, start: Path = START) -> Row:
    """Mean true reward of a policy's responses with its standard error, and its KL to the start."""
    loaded = [load_model(AutoModelForCausalLM, str(one), device="cpu") for one in (policy, start)]
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


def run_all(
    name: str, runs: Iterable[tuple[Row, Callable[[], Path]]], *, start: Path = START
) -> None:
    """Train and judge what is missing, and keep all rows in `docs/results/preferences`.

    Args:
        name: of the experiment.
        runs: what tells a run from others, and what trains its policy, in their order.
        start: what the KL is held against.
    """
    results = folder_of(name) / "results.jsonl"
    done = read_jsonl(results) if results.exists() else []
    for key, trained in runs:
        if any(key.items() <= row.items() for row in done):
            continue
        append_jsonl(results, key | judged(trained(), start=start))
        print(read_jsonl(results)[-1], flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    write_atomically(KEPT / f"{name}.json", json.dumps(read_jsonl(results)) + "\n")
