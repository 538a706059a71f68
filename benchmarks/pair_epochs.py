"""What the benchmarks of training on pairs share: a random Llama, drawn pairs, turns, a table."""

import argparse
import os
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig

from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.text.hf_token_rows import EncodedText

Pair = tuple[EncodedText, EncodedText]
# What TRL's configurations are told beside the learning rate, so that both sides do the same.
OF_TRL: dict[str, Any] = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "cosine",
    "bf16": True,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": 512,
}


def make_model(folder: Path, kind: Any, *, width: int, layers: int, **settings: Any) -> None:
    """Writes a random Llama of a class of transformers, and a tokenizer."""
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
        **settings,
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drawn_pairs(count: int, vocabulary: int) -> list[Pair]:
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
        pairs.append((one, other))
    return pairs


def pair_parser(description: str) -> argparse.ArgumentParser:
    """The options of size that these benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, help="a folder; by default random weights")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def with_model(
    options: argparse.Namespace, kind: Any, measure: Callable[[list[Pair]], None], **settings: Any
) -> None:
    """Measure on drawn pairs, with a random model where the options name none."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if os.getloadavg()[0] > 0.5:
        print(f"load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = Path(folder)
            make_model(options.model, kind, width=options.width, layers=options.layers, **settings)
        vocabulary = AutoTokenizer.from_pretrained(options.model).vocab_size
        measure(drawn_pairs(options.pairs, vocabulary))


def seconds_in_turns(
    sides: Sequence[str],
    epoch_seconds: Callable[[str, list[Pair]], float],
    pairs: list[Pair],
    options: argparse.Namespace,
) -> dict[str, list[float]]:
    """Seconds of every side in every turn, the order swapped every time."""
    for side in sides:  # what is done once is done
        epoch_seconds(side, pairs[: options.batch_size])
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(options.repeats):
        for side in sides if repeat % 2 else reversed(sides):
            seconds[side].append(epoch_seconds(side, pairs))
    return seconds


def markdown(seconds: dict[str, list[float]], pairs: int, names: Mapping[str, str]) -> str:
    """One line per side; the smallest and largest ratio are those of one turn."""
    lines = [
        "| trained | CPU-s per pair, median | ratio of medians | ratios of turns |",
        "|---|---:|---:|---|",
    ]
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, values in seconds.items():
        turns = [a / b for a, b in zip(values, seconds["trl"], strict=True)]
        lines.append(
            f"| {names[side]} | {medians[side] / pairs:.3f} | "
            f"{medians[side] / medians['trl']:.3f} | {min(turns):.3f} to {max(turns):.3f} |"
        )
    return "\n".join(lines)
