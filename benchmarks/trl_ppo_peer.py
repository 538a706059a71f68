"""Time TRL's last PPO trainer on given models, and print the figures as one JSON object.

Runs inside the peer's own environment (`benchmarks/requirements-trl-ppo.txt`), because TRL 1.11 is
the last release with a PPO trainer and cannot live beside the one this package is tested with. It
imports nothing of tokencredit. `benchmarks/ppo.py` starts it; by hand:

    .venv-trl-ppo/bin/python benchmarks/trl_ppo_peer.py '{"models": FOLDER, "new_tokens": 16}'

What is switched off, so that only the iteration itself is timed: saving, evaluation, sample
generation, progress bar and printing. Gradient checkpointing, on by default in TRL, is off too: it
would make the peer slower. Everything else is the trainer as it is shipped, called through its
public constructor. The phases are read off by wrapping three functions that its module calls.
TRL runs Python's garbage collector twice in every iteration; that is counted, and shown apart.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from datasets import Dataset
from ppo_settings import PPOSettings, answer, settings_from_command_line
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class PhaseClock(TrainerCallback):
    """Marks where one iteration passes from rollout to scoring to update."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.step_started = self.rollout_started = self.rollout_ended = self.update_started = 0.0
        self.collection = {"score": 0.0, "rest": 0.0}
        self.rows: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []
        self.collected = 0.0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def around_rollout(self, generation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.rollout_started = self.now()
            result = generation(*args, **kwargs)
            self.rollout_ended = self.now()
            return result

        return wrapped

    def around_collection(self, collect: Callable[[], int]) -> Callable[[], int]:
        def wrapped() -> int:
            # Called twice per iteration: before the update, and after on_step_end.
            started, started_cpu = self.now(), time.process_time()
            result = collect()
            self.collected += time.process_time() - started_cpu
            during = "score" if self.rollout_ended > self.step_started else "rest"
            self.collection[during] += self.now() - started
            return result

        return wrapped

    def before_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            # The same function serves the reference model, without gradient, and every epoch.
            if torch.is_grad_enabled() and not self.update_started:
                self.update_started = self.now()
            return forward(*args, **kwargs)

        return wrapped

    def on_log(self, *_args: Any, logs: dict[str, float], **_kwargs: Any) -> None:
        if "objective/scores" in logs:
            self.curve.append(
                {
                    "score": logs["objective/scores"],
                    "kl": logs["objective/kl"],
                    "cpu_seconds": time.process_time(),
                    "collection": self.collected,
                }
            )

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.step_started = self.now()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        ended = self.now()
        self.rows.append(
            {
                "rollout": self.rollout_ended - self.rollout_started,
                "score": self.update_started - self.rollout_ended - self.collection["score"],
                "update": ended - self.update_started,
                "collection": sum(self.collection.values()),
                "rest": self.rollout_started - self.step_started - self.collection["rest"],
                "total": ended - self.step_started,
            }
        )
        self.step_started, self.update_started = ended, 0.0
        self.collection = {"score": 0.0, "rest": 0.0}


def make_trainer(settings: PPOSettings, clock: PhaseClock, output_dir: str) -> PPOTrainer:
    """Builds the trainer with the same settings as benchmarks/our_ppo.py."""
    models = Path(settings.models)
    tokenizer = AutoTokenizer.from_pretrained(models / "policy", padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(models / "policy", dtype=torch.float32)
        for _ in range(2)
    )
    reward_model, critic = (
        AutoModelForSequenceClassification.from_pretrained(
            models / "reward_model", dtype=torch.float32
        )
        for _ in range(2)
    )
    # The trainer's own Accelerator reads the precision here, and not from the `bf16` argument.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if settings.dtype == "bfloat16" else "no"
    lines = (models / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    config = PPOConfig(
        output_dir=output_dir,
        total_episodes=settings.batch_size * (settings.warmup + settings.steps),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=settings.ppo_epochs,
        response_length=settings.new_tokens,
        stop_token="eos" if settings.ended else None,
        temperature=1.0,
        kl_coef=settings.kl_coef,
        gamma=1.0,
        lam=settings.gae_lambda,
        learning_rate=settings.learning_rate,
        bf16=settings.dtype == "bfloat16",
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]}),
        eval_dataset=Dataset.from_dict({"input_ids": []}),
        callbacks=[clock],
    )


def measure(settings: PPOSettings) -> dict[str, Any]:
    """Trains for a few steps and returns the median seconds of each phase after the warm-up."""
    clock = PhaseClock(settings.device)
    ppo_trainer.batch_generation = clock.around_rollout(ppo_trainer.batch_generation)
    ppo_trainer.gc = SimpleNamespace(collect=clock.around_collection(gc.collect))
    ppo_trainer.forward = clock.before_forward(ppo_trainer.forward)
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(sys.stderr):
        trainer = make_trainer(settings, clock, output_dir)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return answer(
        settings,
        clock.rows,
        packages=("trl", "transformers", "torch"),
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if settings.device == "cuda" else 0,
        curve=clock.curve,
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    asked = settings_from_command_line()
    torch.set_num_threads(asked.threads)
    print(json.dumps(measure(asked)))
