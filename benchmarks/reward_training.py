"""Training a reward model by LoRA against TRL's RewardTrainer: both in one process, turn by turn.

    python benchmarks/reward_training.py                        # as `make bench` does
    python benchmarks/reward_training.py --model FOLDER         # a model of your own

Both sides train the same network with the same adapters, the same pairs of token ids, batches of
the same number of pairs, learning rate and precision (bfloat16 autocast). A prompt has 40 to 170
tokens and an answer 20 to 80, evenly drawn, so that a text has 60 to 250 and two thirds of it are
its prompt. Theirs scores whole answers; ours is measured with whole answers (`last`) and with every
prefix (`every`). One turn is an epoch, forward, backward and update; the sides take turns, the
order swapped every time. CPU seconds, so that other work on the machine counts less. Wanted: at
most 0.7 of TRL's, and no more with every prefix than with whole answers.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from pair_epochs import OF_TRL, Pair, markdown, pair_parser, seconds_in_turns, with_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from tokencredit.models.hf_adapters import lora_config, lora_model
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.reward_trainer import lesson_of, reward_trainer
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.recipes.settings import LoraSettings, TrainingSettings
from tokencredit.recipes.training.progress import TrainingRun

NAMES = {
    "last": "tokencredit: `last`",
    "every": "tokencredit: `every`",
    "trl": "TRL: whole answers",
}
SIDES = tuple(NAMES)
RATE = 2e-4


def trainer_of(side: str, options: argparse.Namespace, pairs: list[JudgedRow], out: Path) -> Any:
    """One side's trainer, for one epoch."""
    transformers.set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model.config.pad_token_id = tokenizer.pad_token_id
    if side == "trl":
        arguments = RewardConfig(
            output_dir=str(out),
            per_device_train_batch_size=options.batch_size,
            learning_rate=RATE,
            **OF_TRL,
        )
        rows = [
            {"chosen_ids": one.input_ids, "rejected_ids": other.input_ids}
            for one, other in (pair.responses for pair in pairs)
        ]
        return RewardTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(rank=16, alpha=32, task_type="SEQ_CLS"),
        )
    config = TrainRewardModelConfig(
        data="",
        model=str(options.model),
        output=str(out),
        positions=side,
        training=TrainingSettings(
            batch_size=options.batch_size, mixed_precision="bf16", checkpoint_every=10**9
        ),
        lora=LoraSettings(rank=16),
        device="cpu",
        progress=False,
    )
    adapted = lora_model(model, rank=16, alpha=32)
    lesson = lesson_of(config, model, tokenizer, pairs)
    run = TrainingRun.of(config, out)
    return reward_trainer(config, adapted, tokenizer, pairs, None, run, lesson)[0]


def epoch_seconds(side: str, options: argparse.Namespace, pairs: list[JudgedRow]) -> float:
    """CPU seconds of one epoch of a fresh trainer."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        trainer = trainer_of(side, options, pairs, Path(out))
        trainer.args.save_strategy = "no"
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def main() -> None:
    options = pair_parser(__doc__.splitlines()[0]).parse_args()

    def seconds_of(side: str, pairs: list[Pair]) -> float:
        return epoch_seconds(side, options, [JudgedRow(pair, 0.0) for pair in pairs])

    def measure(pairs: list[Pair]) -> None:
        found = seconds_in_turns(SIDES, seconds_of, pairs, options)
        print(markdown(found, options.pairs, NAMES))

    with_model(options, LlamaForSequenceClassification, measure, num_labels=1)


if __name__ == "__main__":
    main()
