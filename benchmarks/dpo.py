"""DPO against TRL's DPOTrainer: both in one process, turn by turn.

    python benchmarks/dpo.py                        # as `make bench` does
    python benchmarks/dpo.py --memory               # peak memory, each side in a process of its own

Both sides train all weights of the same network on the same pairs of token ids, in batches of the
same number of pairs, with the same learning rate and precision (bfloat16 autocast), and compare
with the same frozen reference. A prompt has 40 to 170 tokens and an answer 20 to 80, evenly drawn.
One turn is an epoch from the first log-probability of the reference to the last update; the sides
take turns, the order swapped every time. `plain` has no token weights, `weights` cached ones. CPU
seconds, so that other work on the machine counts less. Wanted: at most 1.0 of TRL's time without
token weights, 1.05 with them, and no more memory.
"""

import argparse
import contextlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.recipes.preferences.constants import cached_numbers, reference_logprobs
from tokencredit.recipes.preferences.known import KnownRows
from tokencredit.recipes.preferences.objective import constant_weights
from tokencredit.recipes.preferences.rows import AnswerRow
from tokencredit.recipes.preferences.settings import TokenWeightSettings, TrainPreferencesConfig
from tokencredit.recipes.preferences.train_preferences import preference_trainer
from tokencredit.recipes.settings import TrainingSettings
from tokencredit.recipes.trainer import TrainingRun
from tokencredit.text.hf_token_rows import EncodedText

SIDES = ("plain", "weights", "trl")
RATE = 1e-6


class RowsOfIds(DPOTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def make_model(folder: Path, *, width: int, layers: int) -> None:
    """Writes a random Llama, and a tokenizer."""
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
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drawn_pairs(count: int, vocabulary: int) -> list[AnswerRow]:
    """Prompts of 40 to 170 random tokens, each with two answers of 20 to 80."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(10, vocabulary) for _ in range(draw.randint(low, high))]

    pairs = []
    for _ in range(count):
        prompt, answers = tokens(40, 170), (tokens(20, 80), tokens(20, 80))
        texts = tuple(
            EncodedText(prompt + answer, [False] * len(prompt) + [True] * len(answer))
            for answer in answers
        )
        pairs.append(AnswerRow(texts, ("", "")))
    return pairs


def settings_of(side: str, options: argparse.Namespace, out: Path) -> TrainPreferencesConfig:
    """Ours; the weights are those of the position, which are cached as those of credit are."""
    return TrainPreferencesConfig(
        data="",
        model=str(options.model),
        output=str(out),
        token_weights=TokenWeightSettings(kind="decay" if side == "weights" else "none"),
        training=TrainingSettings(
            batch_size=options.batch_size,
            mixed_precision="bf16",
            checkpoint_every=10**9,
            learning_rate=RATE,
        ),
        device="cpu",
        progress=False,
    )


def train_ours(side: str, options: argparse.Namespace, pairs: list[AnswerRow], out: Path) -> None:
    """Log-probabilities of the reference, then one epoch."""
    config = settings_of(side, options, out)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    pad_id = int(model.config.pad_token_id)
    reference = cached_numbers(
        out, "reference", pairs, reference_logprobs(config, model, pad_id=pad_id)
    )
    columns = [reference]
    weights = constant_weights(config, pairs, None)
    if weights is not None:
        columns.append(weights)
    constants = [
        [torch.stack(parts, dim=-1) for parts in zip(*answers, strict=True)]
        for answers in zip(*columns, strict=True)
    ]
    known = KnownRows(pairs, ("reference", "weights")[: len(columns)], constants)
    run = TrainingRun.of(config, out)
    trainer = preference_trainer(config, model, known, run, pad_id=pad_id)
    trainer.args.save_strategy = "no"
    trainer.train()


def train_theirs(options: argparse.Namespace, pairs: list[AnswerRow], out: Path) -> None:
    """TRL's trainer, one epoch."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    models = [
        AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32) for _ in range(2)
    ]
    arguments = DPOConfig(
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
    rows = []
    for pair in pairs:
        chosen, rejected = pair.texts
        start = chosen.start
        rows.append(
            {
                "prompt_ids": chosen.input_ids[:start],
                "chosen_ids": chosen.input_ids[start:],
                "rejected_ids": rejected.input_ids[start:],
            }
        )
    RowsOfIds(
        model=models[0],
        ref_model=models[1],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    ).train()


def epoch_seconds(side: str, options: argparse.Namespace, pairs: list[AnswerRow]) -> float:
    """CPU seconds of one epoch of a fresh model."""
    transformers.set_seed(0)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        start = time.process_time()
        if side == "trl":
            train_theirs(options, pairs, Path(out))
        else:
            train_ours(side, options, pairs, Path(out))
        return time.process_time() - start


def markdown(seconds: dict[str, list[float]], pairs: int) -> str:
    """One line per side; the smallest and largest ratio are those of one turn."""
    lines = [
        "| trained | CPU-s per pair, median | ratio of medians | ratios of turns |",
        "|---|---:|---:|---|",
    ]
    names = {"plain": "tokencredit", "weights": "tokencredit, token weights", "trl": "TRL"}
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, values in seconds.items():
        turns = [a / b for a, b in zip(values, seconds["trl"], strict=True)]
        lines.append(
            f"| {names[side]} | {medians[side] / pairs:.3f} | "
            f"{medians[side] / medians['trl']:.3f} | {min(turns):.3f} to {max(turns):.3f} |"
        )
    return "\n".join(lines)


def peak_memory(options: argparse.Namespace) -> str:
    """Peak resident memory of each side, in processes of their own."""
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--only", side, "--model", str(options.model)]
        for name in ("pairs", "batch_size", "threads"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[side] = float(done.stdout.split()[-1])
    rows = (f"| {side} | {gigabytes:.2f} |" for side, gigabytes in found.items())
    return "\n".join(["| trained | peak memory, GB |", "|---|---:|", *rows])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; by default random weights")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory in the place of time")
    parser.add_argument("--only", choices=SIDES, help="one epoch of one side; prints its memory")
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
        if options.memory:
            print(peak_memory(options))
            return
        vocabulary = AutoTokenizer.from_pretrained(options.model).vocab_size
        pairs = drawn_pairs(options.pairs, vocabulary)
        if options.only:
            epoch_seconds(options.only, options, pairs)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
            return
        for side in SIDES:  # what is done once is done
            epoch_seconds(side, options, pairs[: options.batch_size])
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for repeat in range(options.repeats):
            for side in SIDES if repeat % 2 else reversed(SIDES):
                seconds[side].append(epoch_seconds(side, options, pairs))
    print(markdown(seconds, options.pairs))


if __name__ == "__main__":
    main()
