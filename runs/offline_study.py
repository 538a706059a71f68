"""What the experiments on offline losses share: pairs, policies, and what a policy is worth.

Every policy starts from the quickstart's language model. At every `EVERY` steps of its training the
mean true reward of its responses is kept, and their KL to the start: each run is a curve of what it
reached at which KL. What is done already is skipped.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import padded_rows
from tokencredit.logprobs import token_logprobs
from tokencredit.masking import masked_sum
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_logprobs import response_statistics
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.recipes.language_model.train_language_model import (
    TrainLanguageModelConfig,
    train_language_model,
)
from tokencredit.recipes.preferences import constants
from tokencredit.recipes.preferences import train_preferences as training
from tokencredit.recipes.preferences.train_preferences import (
    TrainPreferencesConfig,
    train_preferences,
)
from tokencredit.recipes.quickstart import ARCHITECTURE
from tokencredit.recipes.reward_model.train_reward_model import (
    TrainRewardModelConfig,
    train_reward_model,
)
from tokencredit.recipes.run.run_folder import append_jsonl, read_jsonl, write_atomically
from tokencredit.recipes.settings import settings_from
from tokencredit.recipes.training.trainer import SupervisedTrainer
from tokencredit.sampling import Sampling
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.toy.reviews import sample_prompt
from tokencredit.toy.truth import split_words, true_reward

QUICKSTART = Path("output/quickstart")
START = QUICKSTART / "language-model"
PROMPTS, SAMPLES, TOKENS, FLIPPED, EVERY = 100, 4, 40, 0.3, 50
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


def language_model_of(output: Path, **architecture: int) -> Path:
    """A language model of another size, trained as the quickstart trains its own."""
    if not (output / "config.json").exists():
        settings = {
            "data": str(QUICKSTART / "data" / "texts.jsonl"),
            "output": str(output),
            "architecture": ARCHITECTURE | architecture,
            "tokenizer": str(QUICKSTART / "data" / "tokenizer"),
            "max_length": 128,
            "training.epochs": 4.0,
            "training.batch_size": 16,
            "training.learning_rate": 3e-3,
            "training.weight_decay": 0.01,
            "device": "cpu",
            "progress": False,
        }
        train_language_model(settings_from(TrainLanguageModelConfig, settings))
    return output


def teachers_of(loss: str, folder: Path, data: Path) -> Row:
    """Settings of the teachers that a loss has: DPO, and DPO on the pairs turned around."""
    found, count = {}, PREFERENCE_LOSSES[loss].teachers
    if count > 0:
        found["teacher"] = str(policy_of(data, folder / "teacher", seed=100))
    if count > 1:
        turned = [
            pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
            for pair in read_jsonl(data)
        ]
        worse = written(folder / "turned" / "pairs.jsonl", turned)
        found["teacher_reference"] = str(policy_of(worse, folder / "worse", seed=100))
    return found


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


def policy_of(
    data: Path,
    output: Path,
    *,
    seed: int,
    points: list[Row] | None = None,
    start: Path = START,
    known: Path | None = None,
    **settings: Any,
) -> Path:
    """A policy by `train-preferences` with these settings; one that is there already is kept.

    Args:
        data: pairs, lists or answers.
        output: its run folder.
        seed: of the training.
        points: where the points of its curve go; None judges nothing along the way.
        start: the model that training starts from.
        known: where the constants of a run are kept for others of the same data, credit, reference
            and teachers; None computes them for this run alone.
        **settings: more of the command.
    """
    shared = {
        "data": str(data),
        "model": str(start),
        "output": str(output),
        "max_length": 96,
        "evaluation.share": 0.0,
        "training.batch_size": 16,
        "training.learning_rate": 3e-4,
        "training.log_every": 50,
        "training.checkpoint_every": EVERY if points is not None else 1000,
        "seed": seed,
        "device": "cpu",
        "progress": False,
    }
    if not (output / "config.json").exists():
        with ExitStack() as patches:
            if points is not None:
                patches.enter_context(judged_along(points, start))
            if known is not None:
                patches.enter_context(known_once(known))
            train_preferences(settings_from(TrainPreferencesConfig, shared | settings))
    return output


@contextmanager
def known_once(folder: Path) -> Iterator[None]:
    """Keep what is known of every answer in a folder, which more than one run may read."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        patch.object(constants, "FOLDER", str(folder.resolve())),
        patch.object(training, "forget_numbers", lambda _: None),
    ):
        yield


@contextmanager
def judged_along(points: list[Row], start: Path) -> Iterator[None]:
    """Judge the policy in training at each of its checkpoints."""
    written_before = SupervisedTrainer._save_checkpoint
    tokenizer, first = load_tokenizer(str(start)), loaded(start)

    def save(trainer: SupervisedTrainer, model: Any, trial: Any) -> None:
        written_before(trainer, model, trial)
        with torch.random.fork_rng(devices=[]):
            worth = judged(trainer.model.model, first, tokenizer)  # what the loss is a function of
            points.append({"step": trainer.progress.steps, **worth})

    with patch.object(SupervisedTrainer, "_save_checkpoint", save):
        yield


def loaded(folder: Path) -> PreTrainedModel:
    return load_model(AutoModelForCausalLM, str(folder), device="cpu")


def judged_folder(policy: Path, *, start: Path = START) -> Row:
    """What a policy in a folder is worth, as `judged`."""
    return judged(loaded(policy), loaded(start), load_tokenizer(str(policy)))


def drawn_logprobs(logits: Tensor, ids: Tensor, *, ends: Sequence[int]) -> Tensor:
    """Log-probabilities as responses are drawn here: no token may end one before its last."""
    logits[:, list(ends)] = -torch.inf
    return token_logprobs(logits, ids)


@torch.no_grad()
def judged(policy: Any, first: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Mean true reward of a policy's responses with its standard error, and its KL to the first."""
    reading = reading_of(first, tokenizer, ReadingSettings())
    rng = random.Random(77)
    asked = [sample_prompt(rng) for _ in range(PROMPTS)]
    ids = [row for row in reading.prompt_rows(asked, where="prompts") for _ in range(SAMPLES)]
    torch.manual_seed(0)
    rewards, ratios = [], []
    for at in range(0, len(ids), 200):
        batch, _ = sampled_responses(
            policy,
            *padded_rows(ids[at : at + 200], fill=tokenizer.pad_token_id, side="left"),
            sampling=Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=reading.turn_ends or None,
        )
        own, other = (
            response_statistics(model, batch, partial(drawn_logprobs, ends=reading.turn_ends))
            for model in (policy, first)
        )
        ratios.append(masked_sum(own - other, batch.response_mask))
        texts = [one.response for one in decoded_responses(tokenizer, batch)]
        rewards += [true_reward(split_words(text)) for text in texts]
    true, kl = torch.tensor(rewards), torch.cat(ratios)
    return {
        "true": round(float(true.mean()), 4),
        "true_error": round(float(true.std() / len(true) ** 0.5), 4),
        "kl": round(float(kl.mean()), 4),
    }


def run_all(name: str, runs: Iterable[tuple[Row, Callable[[], list[Row]]]]) -> None:
    """Make what is missing, and keep all rows in `docs/results/preferences`.

    Args:
        name: of the experiment.
        runs: what tells a run from others, and what makes the points of its curve, in their order.
    """
    results = folder_of(name) / "results.jsonl"
    done = read_jsonl(results) if results.exists() else []
    for key, points in runs:
        if any(key.items() <= row.items() for row in done):
            continue
        append_jsonl(results, key | {"points": points()})
        last = read_jsonl(results)[-1]
        print({**key, **last["points"][-1]}, flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    write_atomically(KEPT / f"{name}.json", json.dumps(read_jsonl(results)) + "\n")
