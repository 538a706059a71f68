"""A GRPO step with dense advantages against TRL's own: both in one process, turn by turn.

    python benchmarks/grpo.py                                       # as `make bench` does
    python benchmarks/grpo.py --threads 1 --clock cpu --repeats 40  # on a machine that is not idle

Both sides are TRL's trainer with the same random policy, reward model, prompts and settings, and
draw as many tokens; theirs hands the reward model to TRL, ours makes token rewards of it and gives
TRL's loss an advantage per token. A step is generation, scoring, loss and update. The sides take
turns, the order swapped every time. Wanted: a ratio of medians of at most 1.03.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import load_dataset
from ppo import SIZES, make_models
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.engines.trl_grpo import TokenCreditGRPOTrainer
from tokencredit.policy.methods import ESTIMATOR_NAMES

# What needs the reward model alone.
CREDIT = [
    name
    for name, method in CREDIT_METHODS.items()
    if not method.model_kind
    and not {"segments", "length_means", "quoted_scores"} & set(method.needs)
]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def trainer_of(side: str, models: Path, options: argparse.Namespace) -> GRPOTrainer:
    """One side's trainer, with its optimizer made and its first step done."""
    tokenizer = AutoTokenizer.from_pretrained(models / "policy", padding_side="left")
    reward_model = AutoModelForSequenceClassification.from_pretrained(
        models / "reward_model"
    ).eval()
    arguments = GRPOConfig(
        output_dir=str(models / side),
        per_device_train_batch_size=options.batch_size,
        num_generations=options.num_generations,
        max_completion_length=options.new_tokens,
        generation_kwargs={"min_new_tokens": options.new_tokens},
        learning_rate=1e-6,
        beta=options.kl_coef,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=options.device == "cpu",
        bf16=options.device != "cpu",
        disable_tqdm=True,
    )
    shared: dict[str, Any] = {
        "args": arguments,
        "train_dataset": load_dataset("json", data_files=str(models / "prompts.jsonl"))["train"],
        "processing_class": tokenizer,
    }
    policy = str(models / "policy")
    if side == "trl":
        trainer = GRPOTrainer(policy, reward_funcs=reward_model, **shared)
    else:
        rewards = reward_model_token_rewards(
            reward_model, tokenizer, credit=options.credit, policy=policy
        )
        trainer = TokenCreditGRPOTrainer(
            policy, token_rewards=rewards, estimator=options.estimator, **shared
        )
    trainer.train()
    return trainer


def step_seconds(trainer: GRPOTrainer, batch: list[dict[str, Any]], clock: str) -> float:
    """Generation, scoring, loss and update, once."""
    now, on_gpu = CLOCKS[clock], torch.cuda.is_available()
    start = now()
    trainer.training_step(trainer.model_wrapped, batch, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if on_gpu:
        torch.cuda.synchronize()
    return now() - start


def measured(models: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every step of both sides."""
    with contextlib.redirect_stdout(sys.stderr):
        trainers = {side: trainer_of(side, models, options) for side in ("tokencredit", "trl")}
        batches = [next(iter(trainers["trl"].get_train_dataloader())) for _ in range(4)]
        seconds: dict[str, list[float]] = {side: [] for side in trainers}
        for repeat in range(options.warmup + options.repeats):
            for side in sorted(trainers, reverse=bool(repeat % 2)):
                spent = step_seconds(trainers[side], batches[repeat % 4], options.clock)
                seconds[side].append(spent)
    return {side: values[options.warmup :] for side, values in seconds.items()}


def markdown(results: dict[int, dict[str, list[float]]]) -> str:
    """One line per side and length; quartiles are of the ratio of one turn."""
    lines = [
        "| new tokens | side | s/step, median | ratio of medians | ratios of turns, quartiles |",
        "|---:|---|---:|---:|---|",
    ]
    for new_tokens, seconds in results.items():
        ours, theirs = seconds["tokencredit"], seconds["trl"]
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        turns = [a / b for a, b in zip(ours, theirs, strict=True)]
        low, _, high = statistics.quantiles(turns, n=4)
        ratio = medians["tokencredit"] / medians["trl"]
        lines.append(
            f"| {new_tokens} | tokencredit | {medians['tokencredit']:.3f} | **{ratio:.3f}** | "
            f"{low:.3f} to {high:.3f} |"
        )
        lines.append(f"| {new_tokens} | trl | {medians['trl']:.3f} | 1 | |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--credit", choices=CREDIT, default="prefix-difference")
    parser.add_argument("--estimator", choices=ESTIMATOR_NAMES, default="leave-one-out-to-go")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-generations", type=int, default=4)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.device == "cpu" and os.getloadavg()[0] > 0.5:
        print(f"load average {os.getloadavg()[0]:.1f}: do not trust the seconds", file=sys.stderr)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), size=options.size, prompt_tokens=options.prompt_tokens)
        for new_tokens in options.new_tokens:
            one = argparse.Namespace(**{**vars(options), "new_tokens": new_tokens})
            results[new_tokens] = measured(Path(folder), one)
    print(markdown(results))


if __name__ == "__main__":
    main()
