"""How far a step of PPO, or a token of guided decoding, is from the matrix products in it.

    python benchmarks/bound.py ppo                # 16 and 48 new tokens
    python benchmarks/bound.py decoding           # packed, k = 10

One thread, processor time. A bound is the floating-point operations of a part, counted by PyTorch
as it makes them (matrix products and attention), at the best rate that a product of two 1024 x 1024
matrices in float32 reached in the same process, between the steps. What is over it is products of
other shapes, all operations that are no products, and what Python and PyTorch do between them.

`narrow` is the same with models of as many layers and of width 16, where there is next to nothing
to multiply: what Python and PyTorch need to call the operations.

`ppo` runs our side of `ppo.py`; `decoding` the models of `decoding.py`. The second table of a step
has the shares of the kinds of operations, by the profiler of PyTorch: medians of operations of the
same shapes, so that other work on the machine counts less. Time between operations is not in it.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "softmax and draws": (
        "_softmax",
        "_log_softmax",
        "exponential_",
        "multinomial",
        "topk",
        "sort",
    ),
    "the optimiser": ("_fused_adamw_",),
}


class Parts:
    """Processor seconds and operations of named parts of a step, less those of parts inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.flops: dict[str, int] = defaultdict(int)
        self.counter: FlopCounterMode | None = None
        self._step: dict[str, float] = defaultdict(float)
        self._names: list[str] = []

    def _mark(self) -> None:
        """Give what has passed to the innermost part that is open."""
        now = time.process_time()
        total = 0 if self.counter is None else self.counter.get_total_flops()
        if self._names:
            self._step[self._names[-1]] += now - self._last[0]
            self.flops[self._names[-1]] += total - self._last[1]
        self._last = (now, total)

    _last: tuple[float, int] = (0.0, 0)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def _begin(self, name: str) -> None:
        self._mark()
        self._names.append(name)

    def _end(self) -> None:
        self._mark()
        self._names.pop()

    def inside(self, model: torch.nn.Module, name: str) -> None:
        """Count the forward passes of a model as a part."""
        model.register_forward_pre_hook(lambda *_: self._begin(name))
        model.register_forward_hook(lambda *_: self._end())

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Count all calls of a function as a part."""
        inner = getattr(owner, attribute)

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.of(name):
                return inner(*arguments, **options)

        setattr(owner, attribute, counted)

    def end_step(self, *, keep: bool) -> None:
        if keep:
            for name, taken in self._step.items():
                self.seconds[name].append(taken)
        self._step.clear()


def products_per_second(size: int = 1024, repeats: int = 4) -> float:
    """Operations per processor second of one product of square matrices, at its best."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(8):
            torch.mm(left, right)
        taken.append((time.process_time() - start) / 8)
    return 2 * size**3 / min(taken)


def taken_by(
    step: Callable[[], None], parts: Parts, *, repeats: int
) -> tuple[dict[str, float], float]:
    """Median processor seconds of each part, by steps in turn with products, and their rate."""
    parts.seconds.clear()
    rates = []
    for index in range(2 + repeats):
        step()
        parts.end_step(keep=index >= 2)
        rates.append(products_per_second())
    return {name: statistics.median(found) for name, found in parts.seconds.items()}, max(rates)


def operations_of(step: Callable[[], None], parts: Parts) -> dict[str, int]:
    """Floating-point operations of each part of a step."""
    parts.flops.clear()
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with counter:
        parts.counter, parts._last = counter, (0.0, 0)
        step()
        parts.counter = None
    parts.end_step(keep=False)
    return dict(parts.flops)


def table_of_parts(
    step: Callable[[], None], narrow: Callable[[], None], parts: Parts, *, repeats: int
) -> str:
    """The parts of a step beside their bounds, and beside a step with next to no numbers."""
    least, _ = taken_by(narrow, parts, repeats=repeats)
    taken, rate = taken_by(step, parts, repeats=repeats)
    flops = operations_of(step, parts)
    lines = [
        f"Products reach {rate / 1e9:.0f} GFLOP/s.",
        "",
        "| part | GFLOP | bound, ms | narrow, ms | CPU ms | share | time / bound |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    whole = sum(taken.values())
    rows = [(name, flops.get(name, 0), least.get(name, 0.0), taken[name]) for name in taken]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), whole))
    for name, count, narrow_seconds, seconds in rows:
        bound = count / rate
        ratio = f"{seconds / bound:.2f}" if bound > 0.02 * seconds else ""
        lines.append(
            f"| {name} | {count / 1e9:.2f} | {1e3 * bound:.1f} | {1e3 * narrow_seconds:.1f} "
            f"| {1e3 * seconds:.1f} | {seconds / whole:.0%} | {ratio} |"
        )
    return "\n".join(lines)


def table_of_kinds(step: Callable[[], None], repeats: int = 2) -> str:
    """Shares of the time in operations by their kinds, as the profiler sees them."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(repeats):
            step()
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profiled.events():
        if event.name.startswith("aten::"):
            found[event.name, str(event.input_shapes)].append(event.self_cpu_time_total)
    of_kinds: dict[str, float] = defaultdict(float)
    for (name, _), taken in found.items():
        of_kinds[kind_of(name)] += statistics.median(taken) * len(taken)
    whole = sum(of_kinds.values())
    lines = ["| kind of operation | share |", "|---|---:|"]
    for kind, share in sorted(of_kinds.items(), key=lambda item: -item[1]):
        lines.append(f"| {kind} | {share / whole:.0%} |")
    return "\n".join(lines)


def kind_of(name: str) -> str:
    """The kind of an operation, by its name in the profiler."""
    own = name.removeprefix("aten::").removesuffix("_backward").removesuffix("_backward_data")
    return next((kind for kind, names in KINDS.items() if own in names), "all other operations")


def ppo(options: argparse.Namespace) -> None:
    """A step of PPO, part by part."""
    from accelerate import Accelerator
    from our_ppo import our_config
    from ppo import make_models
    from ppo_settings import PPOSettings

    from tokencredit.recipes.policy import experience, update
    from tokencredit.recipes.policy import train_policy as recipe

    recipes = {
        recipe: {"_train_step": "the rest", "rollout_of_step": "rollout"},
        experience: {
            "old_view": "first pass of the policy",
            "reference_logprobs": "reference",
            "scores_of": "reward model",
        },
        update: {"view_of": "forward passes of the update"},
    }
    parts = Parts()
    for owner, names in recipes.items():
        for attribute, name in names.items():
            parts.around(owner, attribute, name)
    parts.around(Accelerator, "backward", "backward passes")
    parts.around(torch.optim.AdamW, "step", "optimiser")
    for new_tokens in options.new_tokens:
        with tempfile.TemporaryDirectory() as folder:
            steps = []
            for size in ("narrow", "small"):
                models = Path(folder) / size
                make_models(models, size=size, prompt_tokens=8)
                settings = PPOSettings(models=str(models), new_tokens=new_tokens)
                config = our_config(settings, str(Path(folder) / f"run-{size}"))
                run, state = recipe.open_run(config, Accelerator(cpu=True), None)

                def step(run: Any = run, state: Any = state) -> None:
                    recipe._train_step(run, state)
                    state.step += 1

                steps.append(step)
            narrow, step = steps
            print(f"\n{new_tokens} new tokens\n")
            print(table_of_parts(step, narrow, parts, repeats=options.repeats), flush=True)
            print("\n" + table_of_kinds(step), flush=True)


def decoding(options: argparse.Namespace) -> None:
    """A token of guided decoding, part by part."""
    from decoding import written
    from scoring import SIZES
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
    )

    from tokencredit.decoding.candidates.hf_choice import candidate_scorer
    from tokencredit.decoding.hf_generate import guided_generate
    from tokencredit.decoding.hf_guide import RewardGuide

    prompts, new = torch.randint(1, 60, (1, 32)), options.new_tokens[0]
    parts = Parts()
    narrow = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16}
    steps: dict[str, list[Callable[[], None]]] = {"guided, packed, k = 10": [], "unguided": []}
    for shape in ({**SIZES["small"], **narrow}, SIZES["small"]):
        config = LlamaConfig(**shape, max_position_embeddings=4096, num_labels=1, pad_token_id=0)
        torch.manual_seed(0)
        language_model = AutoModelForCausalLM.from_config(config).eval()
        reward_model = AutoModelForSequenceClassification.from_config(config).eval()
        parts.inside(language_model, "language model")
        parts.inside(reward_model.model, "reward model")

        def guided(language_model: Any = language_model, reward_model: Any = reward_model) -> None:
            scorer = candidate_scorer(reward_model, method="packed")
            guide = RewardGuide(scorer, guidance_beta=1.0, top_k=10)
            options = {"logits_processor": [guide], "custom_generate": guided_generate}
            with parts.of("the rest"):
                written(language_model, prompts, new, **options)

        def unguided(language_model: Any = language_model) -> None:
            with parts.of("the rest"):
                written(language_model, prompts, new)

        for found, step in zip(steps.values(), (guided, unguided), strict=True):
            found.append(step)
    for name, (least, step) in steps.items():
        print(f"\n{name}, {new} tokens\n")
        print(table_of_parts(step, least, parts, repeats=options.repeats), flush=True)
    print("\n" + table_of_rows(SIZES["small"]))


def table_of_rows(shape: dict[str, int], rounds: int = 6) -> str:
    """The matrix products of all layers by themselves, over so many rows."""
    width, middle = shape["hidden_size"], shape["intermediate_size"]
    shapes = [(width, width)] * 4 + [(middle, width)] * 2 + [(width, middle)]
    weights = [torch.randn(*one) for _ in range(shape["num_hidden_layers"]) for one in shapes]
    size = sum(weight.numel() for weight in weights)
    lines = ["| rows | ms for all layers | GFLOP/s | GB/s of weights |", "|---:|---:|---:|---:|"]
    for rows in (1, 10, 11, 16, 32):
        inputs = {n: torch.randn(rows, n) for n in (width, middle)}
        taken = []
        for _ in range(rounds):
            start = time.process_time()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            taken.append(time.process_time() - start)
        best = min(taken)
        lines.append(
            f"| {rows} | {1e3 * best:.1f} | {2 * rows * size / best / 1e9:.0f} "
            f"| {4 * size / best / 1e9:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("of", choices=("ppo", "decoding"))
    parser.add_argument("--new-tokens", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    options.new_tokens = options.new_tokens or {"ppo": [16, 48], "decoding": [64]}[options.of]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    {"ppo": ppo, "decoding": decoding}[options.of](options)


if __name__ == "__main__":
    main()
