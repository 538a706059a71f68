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
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from tokencredit.models.hf_adapters import lora_config, lora_model
from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.recipes.reward_model.train_reward_model import reward_trainer
from tokencredit.recipes.settings import LoraSettings, TrainingSettings
from tokencredit.recipes.trainer import TrainingRun
from tokencredit.text.hf_token_rows import EncodedText

SIDES = ("last", "every", "trl")
RATE = 2e-4


def make_model(folder: Path, *, width: int, layers: int) -> None:
    """Writes a random Llama with one output, and a tokenizer."""
    tokenizer = byte_level_tokenizer(["a good film"], vocab_size=400)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 192 or 1,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drawn_pairs(count: int, vocabulary: int) -> list[JudgedRow]:
    """Prompts of 40 to 170 random tokens, each with two answers of 20 to 80."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(10, vocabulary) for _ in range(draw.randint(low, high))]

    pairs = []
    for _ in range(count):
        prompt, answers = tokens(40, 170), (tokens(20, 80), tokens(20, 80))
        one, other = (
            EncodedText(prompt + answer, [False] * len(prompt) + [True] * len(answer))
            for answer in answers
        )
        pairs.append(JudgedRow((one, other), 0.0))
    return pairs


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
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            bf16=True,
            gradient_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=512,
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
    return reward_trainer(config, adapted, tokenizer, pairs, None, TrainingRun.of(config, out))[0]


def epoch_seconds(side: str, options: argparse.Namespace, pairs: list[JudgedRow]) -> float:
    """CPU seconds of one epoch of a fresh trainer."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        trainer = trainer_of(side, options, pairs, Path(out))
        trainer.args.save_strategy = "no"
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def markdown(seconds: dict[str, list[float]], pairs: int) -> str:
    """One line per side; the smallest and largest ratio are those of one turn."""
    lines = [
        "| trained on | CPU-s per pair, median | ratio of medians | ratios of turns |",
        "|---|---:|---:|---|",
    ]
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, values in seconds.items():
        turns = [a / b for a, b in zip(values, seconds["trl"], strict=True)]
        what = "TRL: whole answers" if side == "trl" else f"tokencredit: `{side}`"
        ratio = medians[side] / medians["trl"]
        lines.append(
            f"| {what} | {medians[side] / pairs:.3f} | {ratio:.3f} | "
            f"{min(turns):.3f} to {max(turns):.3f} |"
        )
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; by default random weights")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if os.getloadavg()[0] > 0.5:
        print(f"load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = Path(folder)
            make_model(options.model, width=options.width, layers=options.layers)
        vocabulary = AutoTokenizer.from_pretrained(options.model).vocab_size
        pairs = drawn_pairs(options.pairs, vocabulary)
        for side in SIDES:  # what is done once is done
            epoch_seconds(side, options, pairs[: options.batch_size])
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for repeat in range(options.repeats):
            for side in SIDES if repeat % 2 else reversed(SIDES):
                seconds[side].append(epoch_seconds(side, options, pairs))
    print(markdown(seconds, options.pairs))


if __name__ == "__main__":
    main()
