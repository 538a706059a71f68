"""What several reward models cost against one: heads on one trunk, and models side by side.

    python benchmarks/ensembles.py --clock cpu --threads 1

Random weights of one size in one process, the variants in turn within each repeat; medians are
reported, as ratios to one of the same kind. Every variant ends with the worst case of all prefix
scores. Five heads are measured as five columns of one linear head on the states of a trunk, which
is what a model of `train-reward-model --ensemble.heads 5` computes. Models side by side are what
`rewards` of train-policy asks, without its texts.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from scoring import SIZES, report, seconds_in_turn, variants_parser
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig

from tokencredit.aggregation.combining import worst_case_scores
from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import ResponseScores
from tokencredit.models.heads import float32_outputs
from tokencredit.reward_model.hf_scores import reward_model_output
from tokencredit.scorers.ensemble import ensemble_scores

HEADS = 5


def model_of(arguments: argparse.Namespace, seed: int) -> Any:
    """A reward model of random weights."""
    config = LlamaConfig(
        **SIZES[arguments.size],
        max_position_embeddings=max(arguments.lengths),
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    return model.eval().to(arguments.device, getattr(torch, arguments.dtype))


def variants(arguments: argparse.Namespace) -> dict[str, Callable[[Tensor], Any]]:
    """Each way to score, by its name; the one it is compared with stands before it."""
    most = max(arguments.models)
    models = [model_of(arguments, seed) for seed in range(most)]
    trunk = models[0].model
    width = trunk.config.hidden_size
    heads = {
        count: nn.Linear(width, count, bias=False).to(arguments.device, trunk.dtype)
        for count in (1, HEADS)
    }

    def on_one_trunk(count: int) -> Callable[[Tensor], Any]:
        def score(ids: Tensor) -> Tensor:
            mask = torch.ones_like(ids)
            hidden = trunk(ids, attention_mask=mask, use_cache=False).last_hidden_state
            return worst_case_scores(float32_outputs(heads[count], hidden))

        return score

    def side_by_side(count: int) -> Callable[[Tensor], Any]:
        def score(ids: Tensor) -> ResponseScores:
            found = [reward_model_output(one, ids, torch.ones_like(ids)) for one in models[:count]]
            scores = [
                ResponseScores(one.sequence_scores, one.position_scores, None) for one in found
            ]
            settings = CombinationSettings("worst-case" if count > 1 else "sum")
            return ensemble_scores(scores, [1.0] * count, settings)

        return score

    return {
        "1 head": on_one_trunk(1),
        f"{HEADS} heads": on_one_trunk(HEADS),
        "1 model": side_by_side(1),
        **{f"{count} models": side_by_side(count) for count in arguments.models},
    }


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per length and variant."""
    rows, ways = [], variants(arguments)
    for length in arguments.lengths:
        ids = torch.randint(1, 8192, (arguments.batch_size, length), device=arguments.device)
        times = seconds_in_turn(ways, ids, repeats=arguments.repeats, clock=arguments.clock)
        medians = {name: statistics.median(found) for name, found in times.items()}
        for name in ways:
            base = "1 head" if name.endswith(("head", "heads")) else "1 model"
            ratio = medians[name] / medians[base]
            rows.append({"length": length, "variant": name, "of": base, "ratio": ratio})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown, those that are compared with themselves left out."""
    lines = ["| tokens | scoring | against | time |", "|---:|---|---|---:|"]
    lines += [
        f"| {row['length']} | {row['variant']} | {row['of']} | {row['ratio']:.2f} |"
        for row in rows
        if row["variant"] != row["of"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = variants_parser(__doc__.split("\n")[0], lengths=[128, 512], batch_size=4)
    parser.add_argument("--models", type=int, nargs="+", default=[2, 5])
    report(parser.parse_args(), measured, table)


if __name__ == "__main__":
    main()
