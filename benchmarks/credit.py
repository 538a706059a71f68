"""What each credit method costs: time and memory over scoring the response and no more.

    python benchmarks/credit.py --lengths 256 1024

One random Llama as reward model, token classifier and language models. The methods run in turn
within each repeat, in a new order each time; ratios are of medians, to the model's own forward with
SDPA, head included. Methods that need one pass of one reward model should cost one pass; the others
say what they need. Times include everything from token ids to token scores.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scoring import SIZES, peak_megabytes, seconds
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
)

import tokencredit as tc
from tokencredit.batch import ResponseBatch
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.reward_model.hf_perturbed import (
    response_embeddings,
    score_of_embeddings,
    scores_without_tokens,
)
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.reward_model.hf_token_classifier import token_classifier_logits

PLAIN = "plain scoring"
PROMPT = 16
Method = Callable[[Tensor], Any]


def as_batch(ids: Tensor) -> ResponseBatch:
    """The first tokens as prompts, the rest as responses."""
    prompt, response = ids[:, :PROMPT], ids[:, PROMPT:]
    every = torch.ones_like(ids, dtype=torch.bool)
    return ResponseBatch(prompt, every[:, :PROMPT], response, every[:, PROMPT:])


def methods(arguments: argparse.Namespace) -> dict[str, tuple[str, Method]]:
    """By name: what it needs, and the function from ids to token scores."""
    config = LlamaConfig(
        **SIZES[arguments.size],
        max_position_embeddings=max(arguments.lengths),
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)

    def made(kind: Any, **changes: Any) -> Any:
        own = LlamaConfig(**config.to_dict() | changes)
        model = kind.from_config(own, attn_implementation="sdpa").eval()
        return model.to(arguments.device, getattr(torch, arguments.dtype))

    reward_model = made(AutoModelForSequenceClassification)
    classifier = made(AutoModelForTokenClassification, num_labels=2, id2label=None)
    policy, reference = made(AutoModelForCausalLM), made(AutoModelForCausalLM)

    def plain(ids: Tensor) -> Any:
        return reward_model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    def from_scores(credit: Callable[[Any, Tensor], Tensor], **options: Any) -> Method:
        def credited(ids: Tensor) -> Tensor:
            batch = as_batch(ids)
            return credit(score_responses(reward_model, batch, **options), batch.response_mask)

        return credited

    def from_logprobs(credit: Callable[..., Tensor]) -> Method:
        def credited(ids: Tensor) -> Tensor:
            batch = as_batch(ids)
            both = [response_logprobs(model, batch) for model in (policy, reference)]
            return credit(*both, batch.response_mask)

        return credited

    def smoothed(scores: Any, mask: Tensor) -> Tensor:
        prefixes = tc.smoothed_prefix_scores(scores.prefix_scores, mask, decay=0.5)
        return tc.prefix_difference_credit(prefixes, mask)

    def of_segments(scores: Any, mask: Tensor) -> Tensor:
        return tc.segment_credit(scores.prefix_scores, tc.ngram_segments(mask, n=5), mask)

    def discriminator(ids: Tensor) -> Tensor:
        batch = as_batch(ids)
        return tc.discriminator_credit(
            token_classifier_logits(classifier, batch), batch.response_mask
        )

    def gradient(credit: Callable[..., Tensor]) -> Method:
        def credited(ids: Tensor) -> Tensor:
            batch = as_batch(ids)
            embeddings = response_embeddings(reward_model, batch)
            with torch.inference_mode(False), torch.enable_grad():
                score = score_of_embeddings(reward_model, batch)
                return credit(score, embeddings.clone(), batch.response_mask)

        return credited

    def integrated(score: Any, embeddings: Tensor, mask: Tensor) -> Tensor:
        zero = torch.zeros_like(embeddings)
        return tc.integrated_gradients_credit(score, embeddings, zero, mask, steps=16)

    def leave_one_out(ids: Tensor) -> Tensor:
        batch = as_batch(ids)
        scores = scores_without_tokens(reward_model, batch)
        return tc.leave_one_out_credit(scores, batch.response_mask)

    def windows(ids: Tensor) -> Tensor:
        batch = as_batch(ids)
        scores = scores_without_tokens(reward_model, batch)
        return tc.window_credit(scores, batch.response_mask, width=3)

    one, two = "one pass", "two passes with a vocabulary"
    return {
        PLAIN: (one, plain),
        "terminal": (one, from_scores(lambda s, m: tc.terminal_credit(s.sequence_scores, m))),
        "uniform": (one, from_scores(lambda s, m: tc.uniform_credit(s.sequence_scores, m))),
        "attention": (
            one,
            from_scores(
                lambda s, m: tc.attention_credit(
                    s.sequence_scores, s.attention, m, credit_beta=0.8
                ),
                attention_layer=-1,
            ),
        ),
        "prefix differences": (
            one,
            from_scores(lambda s, m: tc.prefix_difference_credit(s.prefix_scores, m)),
        ),
        "prefix differences, smoothed": (one, from_scores(smoothed)),
        "segments of 5 tokens": (one, from_scores(of_segments)),
        "token discriminator": ("one pass of a token classifier", discriminator),
        "log-ratio": (
            two,
            from_logprobs(lambda own, ref, m: tc.log_ratio_credit(own, ref, m, dpo_beta=0.1)),
        ),
        "gradient x input": (
            "one pass forward and backward",
            gradient(tc.gradient_times_input_credit),
        ),
        "integrated gradients, 16 nodes": (
            "16 passes forward and backward",
            gradient(integrated),
        ),
        "leave one out": ("a pass per token", leave_one_out),
        "windows of up to 3 tokens": ("three short passes per token", windows),
    }


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per length and method."""
    rows = []
    every = methods(arguments)
    for length in arguments.lengths:
        ids = torch.randint(1, 8192, (arguments.batch_size, length), device=arguments.device)
        names = [
            n for n in every if n != "leave one out" or length <= arguments.leave_one_out_up_to
        ]
        fast = [n for n in names if every[n][0].startswith(("one", "two"))]
        times: dict[str, list[float]] = {name: [] for name in names}
        for name in (name for name in names if name not in fast):
            times[name].append(seconds(every[name][1], ids, arguments.clock))
        for repeat in range(-1, arguments.repeats):
            turn = repeat % len(fast)
            for name in fast[turn:] + fast[:turn]:
                elapsed = seconds(every[name][1], ids, arguments.clock)
                if repeat >= 0:
                    times[name].append(elapsed)
        plain_megabytes = peak_megabytes(every[PLAIN][1], ids)
        for name in names:
            ratios = [one / base for one, base in zip(times[name], times[PLAIN], strict=False)]
            rows.append(
                {
                    "length": length,
                    "method": name,
                    "needs": every[name][0],
                    "ratio": statistics.median(times[name]) / statistics.median(times[PLAIN]),
                    "quartiles": statistics.quantiles(ratios, n=4) if len(ratios) > 1 else None,
                    "megabytes": peak_megabytes(every[name][1], ids) if name in fast else None,
                    "plain_megabytes": plain_megabytes,
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown."""
    lines = [
        "| tokens | method | needs | time / plain | its quartiles | peak MB | MB / plain |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        quartiles, megabytes = row["quartiles"], row["megabytes"]
        spread = f"{quartiles[0]:.3f} to {quartiles[2]:.3f}" if quartiles else "one run"
        memory = (
            f"{megabytes:.1f} | {megabytes / row['plain_megabytes']:.2f}" if megabytes else "- | -"
        )
        lines.append(
            f"| {row['length']} | {row['method']} | {row['needs']} | {row['ratio']:.3f} | {spread} "
            f"| {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--leave-one-out-up-to", type=int, default=256, help="tokens")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--json", type=Path, default=None, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        rows = measured(arguments)
    print(
        f"{arguments.size} Llama, {arguments.dtype} on {arguments.device}, batches of "
        f"{arguments.batch_size}, {arguments.clock} time, medians of {arguments.repeats}, "
        f"torch {torch.__version__}\n"
    )
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"settings": vars(arguments), "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
