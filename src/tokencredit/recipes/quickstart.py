"""The whole story on the built-in task, from raw text to policies with a reward on every token.

    tokencredit quickstart

A language model learns film reviews of a small grammar, a reward model learns pairs of them (at
every prefix), and PPO trains the language model with that reward model under four credits: the
same seed, settings and budget each. The grammar knows the true reward of any text and the true
credit of every word, so what the policies write and where the credit falls can be judged without
the reward model. Models that are there already are used again.
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import RunFolderError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.recipes.language_model.train_language_model import (
    TrainLanguageModelConfig,
    train_language_model,
)
from tokencredit.recipes.policy.setting_groups import (
    AlgorithmSettings,
    KLSettings,
    MachineSettings,
    OptimizerSettings,
    RecordSettings,
    SamplingSettings,
)
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.quickstart_report import CreditOfReviews, write_report
from tokencredit.recipes.reward_model.settings import JudgementColumns
from tokencredit.recipes.reward_model.train_reward_model import (
    TrainRewardModelConfig,
    train_reward_model,
)
from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically
from tokencredit.recipes.settings import TrainingSettings
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.scorers.hf_token_scores import score_for_policy
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.toy.hf_tokenizer import toy_tokenizer
from tokencredit.toy.reviews import sample_pairs, sample_prompt, sample_review
from tokencredit.toy.truth import true_token_scores

CREDITS = ("terminal", "uniform", "attention", "prefix-difference")
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of the quickstart.

    Attributes:
        output: Folder for models, runs, figures and the report.
        steps: PPO steps for each credit.
        batch_size: Responses per PPO step.
        reviews: How many texts the language model and how many pairs the reward model learns from.
        max_new_tokens: Most words of a response.
        learning_rate: Learning rate of PPO, the same for every credit.
        gae_lambda: Lambda of GAE, the same for every credit.
        seed: Seed of everything random.
        progress: Show progress bars.
    """

    output: str = "output/quickstart"
    steps: int = 40
    batch_size: int = 32
    reviews: int = 4000
    max_new_tokens: int = 40
    learning_rate: float = 1e-3
    gae_lambda: float = 0.95
    seed: int = 0
    progress: bool = True


@quiet_transformers()
def quickstart(config: QuickstartConfig) -> Path:
    """Run the story and write the report.

    Returns:
        The report, one HTML file that needs nothing beside it.

    Raises:
        RunFolderError: the folder holds a quickstart with other settings, or cannot be written.
    """
    started, console, folder = time.perf_counter(), Console(), Path(config.output)
    _write_data(config, folder / "data")
    console.rule("1/4 language model")
    language_model = train_language_model(_language_model_config(config, folder))
    console.rule("2/4 reward model")
    reward_model = train_reward_model(_reward_model_config(config, folder, language_model))
    runs: dict[str, Path] = {}
    for credit in CREDITS:
        console.rule(f"3/4 PPO with {credit} credit")
        runs[credit] = folder / f"policy-{credit}"
        train_policy(_policy_config(config, folder, credit, language_model, reward_model))
    console.rule("4/4 credit against truth")
    texts = read_jsonl(folder / "data" / "held-out.jsonl")
    settings = (
        f"{config.steps} PPO steps of {config.batch_size} responses of {config.max_new_tokens} "
        f"words, learning rate {config.learning_rate:g}, gae_lambda {config.gae_lambda:g}, seed "
        f"{config.seed}. Command: tokencredit quickstart"
    )
    credit_of_reviews = _credit_of_reviews(texts, reward_model)
    report = write_report(folder, runs, credit_of_reviews, settings, console)
    console.print(f"Report: {report.resolve()}", soft_wrap=True)
    console.print(f"Figures: {(folder / 'learning-curves.png').resolve()}", soft_wrap=True)
    console.print(f"         {(folder / 'credit-by-position.png').resolve()}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    return report


def _write_data(config: QuickstartConfig, folder: Path) -> None:
    """Texts, pairs, prompts and held-out reviews, drawn from one seed; written once."""
    sizes = {"reviews": config.reviews, "seed": config.seed}
    marker = folder / "drawn.json"
    if marker.exists():
        if json.loads(marker.read_text()) != sizes:
            raise RunFolderError(
                f"{folder} holds data of other settings ({marker.read_text().strip()}, now "
                f"{json.dumps(sizes)}); expected the same: choose another `output`"
            )
        return
    rng = random.Random(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {
        "texts": [{"text": sample_review(rng)} for _ in range(config.reviews)],
        "pairs": sample_pairs(rng, config.reviews),
        "prompts": [{"prompt": sample_prompt(rng)} for _ in range(1000)],
        "held-out": [
            {"prompt": pair["prompt"], "response": pair["chosen"]}
            for pair in sample_pairs(rng, 200)
        ],
    }
    for name, part in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        write_atomically(folder / f"{name}.jsonl", lines)
    toy_tokenizer().save_pretrained(folder / "tokenizer")
    write_atomically(marker, json.dumps(sizes) + "\n")


def _language_model_config(config: QuickstartConfig, folder: Path) -> TrainLanguageModelConfig:
    return TrainLanguageModelConfig(
        data=str(folder / "data" / "texts.jsonl"),
        output=str(folder / "language-model"),
        architecture=ARCHITECTURE,
        tokenizer=str(folder / "data" / "tokenizer"),
        max_length=128,
        training=TrainingSettings(epochs=4.0, batch_size=16, learning_rate=3e-3, weight_decay=0.01),
        seed=config.seed,
        device="cpu",
        progress=config.progress,
    )


def _reward_model_config(
    config: QuickstartConfig, folder: Path, language_model: Path
) -> TrainRewardModelConfig:
    return TrainRewardModelConfig(
        data=str(folder / "data" / "pairs.jsonl"),
        model=str(language_model),
        output=str(folder / "reward-model"),
        columns=JudgementColumns(prompt="prompt"),
        reading=ReadingSettings(append_eos=False),
        max_length=96,
        training=TrainingSettings(epochs=3.0, batch_size=16, learning_rate=1e-3),
        seed=config.seed,
        device="cpu",
        progress=config.progress,
    )


def _policy_config(
    config: QuickstartConfig,
    folder: Path,
    credit: str,
    language_model: Path,
    reward_model: Path,
) -> TrainPolicyConfig:
    return TrainPolicyConfig(
        policy=str(language_model),
        reward_model=str(reward_model),
        prompts=str(folder / "data" / "prompts.jsonl"),
        output=str(folder / f"policy-{credit}"),
        steps=config.steps,
        batch_size=config.batch_size,
        seed=config.seed,
        credit=CreditSettings(method=credit),
        sampling=SamplingSettings(
            response_lengths="uniform",
            min_new_tokens=config.max_new_tokens,
            max_new_tokens=config.max_new_tokens,
        ),
        algorithm=AlgorithmSettings(gae_lambda=config.gae_lambda),
        optimizer=OptimizerSettings(learning_rate=config.learning_rate),
        kl=KLSettings(coef=0.05),
        machine=MachineSettings(device="cpu"),
        record=RecordSettings(
            sample_every=1, sample_count=config.batch_size, progress=config.progress
        ),
    )


def _credit_of_reviews(rows: list[dict[str, Any]], reward_model: Path) -> CreditOfReviews:
    """Token scores of held-out reviews: the two truths, and every credit."""
    model, tokenizer = load_reward_model(reward_model, device="cpu")
    prompts, responses = [row["prompt"] for row in rows], [row["response"] for row in rows]
    encoded = written_by(tokenizer).encoded(prompts, responses)
    mask = encoded.batch.response_mask
    pieces = [
        [text[start:end] for start, end in spans]
        for text, spans in zip(responses, encoded.response_spans, strict=True)
    ]
    scores: dict[str, Tensor] = {
        "truth (causal)": true_token_scores(pieces, mask, truth="causal"),
        "truth (Shapley)": true_token_scores(pieces, mask, truth="shapley"),
    }
    for credit in CREDITS:
        scores[credit], _ = score_for_policy(
            model, tokenizer, tokenizer, encoded.batch, credit=credit, micro_batch_size=50
        )
    return CreditOfReviews(prompts, pieces, scores, mask)
