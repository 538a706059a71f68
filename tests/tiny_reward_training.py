"""Tiny data, a tiny language model and settings to train a reward model with."""

import json
from pathlib import Path

from named_settings import configured
from tiny_models import tiny_model
from tiny_tokenizers import CORPUS
from transformers import AutoModelForCausalLM

from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.recipes.reward_model.examples import SAID, reward_batch
from tokencredit.recipes.reward_model.train_reward_model import TrainRewardModelConfig
from tokencredit.reward_model.objectives import Judgements, LossSettings, objective_row
from tokencredit.scorers.hf_fractions import counted_scores

WORDS = ("good", "bad", "slow", "very good")


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_inputs(folder: Path) -> Path:
    """Pairs, labelled texts, rated texts, and a tiny language model to start from."""
    lines(
        folder / "bradley-terry.jsonl",
        [
            {
                "prompt": f"rate film {row}:",
                "chosen": f" a good film and a {WORDS[row % 4]} plot",
                "rejected": f" a bad film {'and a plot ' * (row % 3)}",
                "strength": 1 + row % 3,
            }
            for row in range(20)
        ],
    )
    lines(
        folder / "classification.jsonl",
        [
            {"text": f"the {WORDS[row % 2]} film {row} {'a ' * (row % 5)}", "label": row % 2}
            for row in range(20)
        ],
    )
    lines(
        folder / "regression.jsonl",
        [
            {"text": f"the {WORDS[row % 2]} film {row} {'a ' * (row % 5)}", "rating": rating}
            for row, rating in enumerate([90, 10] * 10)
        ],
    )
    tokenizer = byte_level_tokenizer(CORPUS, vocab_size=320)
    assert tokenizer.padding_side == "left"
    save_start(folder / "lm", tokenizer)
    return folder


def save_start(folder: Path, tokenizer, architecture: str = "llama", **overrides) -> Path:
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 64} | overrides
    tiny_model(architecture, auto_class=AutoModelForCausalLM, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(folder: Path, output: Path, objective="bradley-terry", **settings):
    tiny = {
        "batch_size": 8,
        "held_out": 0.2,
        "max_length": 64,
        "learning_rate": 1e-3,
        "progress": False,
    }
    return configured(
        TrainRewardModelConfig,
        data=str(folder / f"{objective}.jsonl"),
        output=str(output),
        objective=objective,
        **({"model": str(folder / "lm")} | tiny | settings),
    )


def loss_of(model, judged, tokenizer, read_at, objective, positions="every", **options):
    """What one batch of these rows costs."""
    batch = reward_batch(judged, pad_id=tokenizer.pad_token_id, read_at=read_at)
    said = [batch.pop(name) for name in SAID]
    counts = batch["counted"].sum(-1)[:, None]
    mask = counts.new_ones(int(counts.max())).cumsum(0) <= counts
    settings = LossSettings(**options)
    judgements = Judgements(counted_scores(model, **batch), mask, *said)
    return objective_row(objective, positions, settings).loss(judgements, settings)
