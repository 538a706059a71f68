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
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from pair_epochs import OF_TRL, Pair, markdown, pair_parser, seconds_in_turns, with_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from tokencredit.recipes.preferences.constants import cached_numbers, reference_logprobs
from tokencredit.recipes.preferences.known import KnownRows
from tokencredit.recipes.preferences.objective import constant_weights
from tokencredit.recipes.preferences.rows import AnswerRow
from tokencredit.recipes.preferences.settings import TokenWeightSettings, TrainPreferencesConfig
from tokencredit.recipes.preferences.train_preferences import preference_trainer
from tokencredit.recipes.settings import TrainingSettings
from tokencredit.recipes.training.progress import TrainingRun

NAMES = {"plain": "tokencredit", "weights": "tokencredit, token weights", "trl": "TRL"}
SIDES = tuple(NAMES)
RATE = 1e-6


class RowsOfIds(DPOTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


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
        learning_rate=RATE,
        **OF_TRL,
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


def main() -> None:
    parser = pair_parser(__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="peak memory in the place of time")
    parser.add_argument("--only", choices=SIDES, help="one epoch of one side; prints its memory")
    options = parser.parse_args()

    def seconds_of(side: str, pairs: list[Pair]) -> float:
        return epoch_seconds(side, options, [AnswerRow(pair, ("", "")) for pair in pairs])

    def measure(pairs: list[Pair]) -> None:
        if options.memory:
            print(peak_memory(options))
        elif options.only:
            seconds_of(options.only, pairs)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        else:
            found = seconds_in_turns(SIDES, seconds_of, pairs, options)
            print(markdown(found, options.pairs, NAMES))

    with_model(options, LlamaForCausalLM, measure, tie_word_embeddings=True)


if __name__ == "__main__":
    main()
