"""What each credit method costs: time and memory over scoring the response and no more.

    python benchmarks/credit.py --lengths 256 1024

All methods of `CREDIT_METHODS` by their names, as `train-policy` calls them. One random Llama as
reward model, token classifier and language models. The methods run in turn within each repeat, in a
new order each time; ratios are of medians, to the model's own forward with SDPA, head included.
Methods that need one pass of one reward model should cost one pass; the others say what they need.
Times include everything from token ids to token scores.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from scoring import (
    SIZES,
    peak_megabytes,
    report,
    seconds,
    seconds_in_turn,
    variants_parser,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tokencredit.batch import ResponseBatch
from tokencredit.credit.location import LocationNormaliser
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.credit.settings import CreditSettings
from tokencredit.reward_model.hf_rewriter import TEMPLATE
from tokencredit.scorers.hf_credit_models import CreditModels, FittedCredit
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_token_scores import CreditedScorer
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.segments import SegmentSettings

PLAIN = "plain scoring"
PROMPT = 16
# Thousands of passes for one response: measured where they are named.
UNLESS_NAMED = ("shapley", "exact-shapley")
# What a judge says, and no model of scores.
OF_JUDGES = [n for n, row in CREDIT_METHODS.items() if "quoted_scores" in row.needs]
Method = Callable[[Tensor], Any]


def as_batch(ids: Tensor) -> ResponseBatch:
    """The first tokens as prompts, the rest as responses."""
    prompt, response = ids[:, :PROMPT], ids[:, PROMPT:]
    every = torch.ones_like(ids, dtype=torch.bool)
    return ResponseBatch(prompt, every[:, :PROMPT], response, every[:, PROMPT:])


def words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words, for methods that read text."""
    ids = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, size)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


def methods(arguments: argparse.Namespace) -> dict[str, tuple[str, Method]]:
    """By name: what it needs, and the function from ids to token scores."""
    config = LlamaConfig(
        **SIZES[arguments.size],
        # A rewriter reads the response twice.
        max_position_embeddings=2 * max(arguments.lengths) + 64,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)

    def made(kind: Any, **changes: Any) -> Any:
        own = LlamaConfig(**config.to_dict() | changes)
        model = kind.from_config(own, attn_implementation="sdpa").eval()
        return model.to(arguments.device, getattr(torch, arguments.dtype)).requires_grad_(False)

    reward_model = made(AutoModelForSequenceClassification)
    policy, reference = made(AutoModelForCausalLM), made(AutoModelForCausalLM)
    policy.config.rewriter_template, policy.config.rewriter_instruction = TEMPLATE, ""
    judges = {
        classes: made(AutoModelForTokenClassification, num_labels=classes, id2label=None)
        for classes in (2, 4)
    }
    tokenizer = words(config.vocab_size)
    fitted = FittedCredit(torch.zeros(max(arguments.lengths)), LocationNormaliser(0, 0, 0, 1))

    def plain(ids: Tensor) -> Any:
        return reward_model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    def of_method(name: str) -> Method:
        kind = CREDIT_METHODS[name].model_kind
        judge = judges[4 if name == "severity" else 2] if kind == "classifier" else policy
        others = CreditModels(judge if kind else None, tokenizer, reference, 0.1, fitted)

        def credited(ids: Tensor) -> Tensor:
            length = 5
            if name == "exact-shapley":  # at most 12 segments
                length = -(-(ids.shape[1] - PROMPT) // 12)
            segments = SegmentSettings("ngram", length) if _cut(name) else SegmentSettings()
            reading = written_by(tokenizer)
            scorer = LocalScorer(reward_model, reading, reading)
            credit = CreditSettings(name)
            return CreditedScorer(scorer, reading, credit, others, segments)(as_batch(ids))

        return credited

    named = arguments.methods or [n for n in CREDIT_METHODS if n not in (*UNLESS_NAMED, *OF_JUDGES)]
    return {PLAIN: ("one pass", plain)} | {name: (_needs(name), of_method(name)) for name in named}


def _cut(name: str) -> bool:
    """Whether responses are cut into segments for a method."""
    return "segments" in CREDIT_METHODS[name].needs or name == "exact-shapley"


def _needs(name: str) -> str:
    """What a method asks for besides segments and fitted means, in words for the table."""
    method = CREDIT_METHODS[name]
    asked = [need for need in method.needs if need not in ("segments", "length_means", "location")]
    passes = {"0": "no pass", "1": "one pass"}.get(method.passes, method.passes)
    return f"{passes}; {', '.join(asked).replace('_', ' ')}"


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per length and method."""
    rows = []
    every = methods(arguments)
    for length in arguments.lengths:
        ids = torch.randint(1, 8192, (arguments.batch_size, length), device=arguments.device)
        names = [
            n for n in every if n != "leave-one-out" or length <= arguments.leave_one_out_up_to
        ]
        fast = [n for n in names if n == PLAIN or CREDIT_METHODS[n].one_pass]
        times: dict[str, list[float]] = {name: [] for name in names}
        for name in (name for name in names if name not in fast):
            times[name].append(seconds(every[name][1], ids, arguments.clock))
        times |= seconds_in_turn(
            {name: every[name][1] for name in fast},
            ids,
            repeats=arguments.repeats,
            clock=arguments.clock,
        )
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
    parser = variants_parser(__doc__.split("\n")[0], lengths=[256, 1024], batch_size=1)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[n for n in CREDIT_METHODS if n not in OF_JUDGES],
        help=f"default: all but {' and '.join(UNLESS_NAMED)}",
    )
    parser.add_argument("--leave-one-out-up-to", type=int, default=256, help="tokens")
    # Some methods ask for gradients inside, which inference mode would not give.
    report(parser.parse_args(), measured, table, without_gradients=torch.no_grad)


if __name__ == "__main__":
    main()
