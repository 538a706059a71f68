"""Best of n and reliability without training: draws of the reference, scored by five models.

    python runs/honest_draws.py output/honest docs/results/honest

Draws 256 responses of the built-in task's language model to each of 200 prompts, scores them by the
five reward models of `runs/honest.sh` and by the true reward, and writes three tables: the true
reward of the best of n by each way to combine the models, how well the score tells the true reward
among the responses that each selection keeps, and how often the safety test errs.
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokencredit.aggregation.methods import AGGREGATIONS, CombinationSettings
from tokencredit.batch import padded_rows
from tokencredit.evaluation.best_of_n import expected_best_of_n
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.policy.bounds import safety_test
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.policy.selection import SELECTIONS, kept_responses, score_reliability
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.sampling import Sampling
from tokencredit.scorers.evidence import Responses, response_scores
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.scorers.sources import named_scorer
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.toy.lexicon import NEGATIONS
from tokencredit.toy.reviews import sample_prompt
from tokencredit.toy.truth import split_words, true_reward

PROMPTS, DRAWS, TOKENS, SEED = 200, 256, 40, 2024
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GROUP = 8  # responses that a selection chooses among
COUNTS = (50, 100, 200, 500, 1000)
TESTS, FAILURES = 10_000, 0.05
QUICKSTART = Path("output/quickstart")
COMBINATIONS = {
    "mean": CombinationSettings(),
    "worst case": CombinationSettings("worst-case"),
    "mean less 0.1 variance": CombinationSettings("mean-less-variance", variance_coef=0.1),
    "mean less 0.5 variance": CombinationSettings("mean-less-variance", variance_coef=0.5),
    "mean less deviation": CombinationSettings("mean-less-deviation"),
    "log-sigmoids": CombinationSettings("log-sigmoid-sum"),
}
Table = list[dict[str, str]]


@torch.no_grad()
def drawn(models: list[str]) -> dict[str, Any]:
    """Scores of every model, the true reward, and negations, of each prompt and response."""
    rng, asked = random.Random(SEED), dict[str, None]()
    while len(asked) < PROMPTS:
        asked[sample_prompt(rng)] = None
    language_model = str(QUICKSTART / "language-model")
    tokenizer = load_tokenizer(language_model)
    policy = load_model(AutoModelForCausalLM, language_model, device="cpu")
    reading = reading_of(policy, tokenizer, ReadingSettings())
    scorers = [named_scorer(model, reading) for model in models]
    torch.manual_seed(SEED)
    found: dict[str, Any] = {"scores": [[] for _ in scorers], "true": [], "negated": []}
    for prompt in asked:
        rows = reading.prompt_rows([prompt] * DRAWS, where="the prompts")
        batch, _ = sampled_responses(
            policy,
            *padded_rows(rows, fill=tokenizer.pad_token_id, side="left"),
            sampling=Sampling(max_new_tokens=TOKENS, min_new_tokens=TOKENS),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=reading.turn_ends or None,
        )
        responses = Responses(batch, [prompt] * DRAWS)
        for kept, scorer in zip(found["scores"], scorers, strict=True):
            kept.append(response_scores(scorer, responses).sequence_scores.tolist())
        words = [split_words(one.response) for one in decoded_responses(tokenizer, batch)]
        found["true"].append([true_reward(row) for row in words])
        found["negated"].append([float(not NEGATIONS.keys().isdisjoint(row)) for row in words])
    return found


def best_of_n(scores: Tensor, true: Tensor) -> Table:
    """The true reward of the best of n, by one model (mean over the five) and by all of them."""
    wide = (scores - scores.mean((1, 2), keepdim=True)) / scores.std((1, 2), keepdim=True)
    found = {
        "one model": torch.stack([expected_best_of_n(one, true, SIZES) for one in wide]).mean(0)
    }
    for name, settings in COMBINATIONS.items():
        weights = torch.full((len(wide),), 1 / len(wide) if settings.method == "sum" else 1.0)
        combined = AGGREGATIONS[settings.method].combined(wide.movedim(0, -1), weights, settings)
        found[name] = expected_best_of_n(combined, true, SIZES)
    found["true reward"] = expected_best_of_n(true, true, SIZES)
    kl = {
        "chosen by": "KL is at most",
        **{f"best of {n}": f"{math.log(n) - (n - 1) / n:.2f}" for n in SIZES},
    }
    rows = [
        {
            "chosen by": name,
            **{
                f"best of {n}": f"{column.mean():.2f} ± {column.std() / len(column) ** 0.5:.2f}"
                for n, column in zip(SIZES, values.T, strict=True)
            },
        }
        for name, values in found.items()
    ]
    return [kl, *rows]


def reliability(scores: Tensor, true: Tensor) -> Table:
    """R² of the true reward on one model's score, among what each selection keeps."""
    flat = scores.reshape(len(scores), -1)
    groups = torch.arange(flat.shape[1]) // GROUP
    rows = []
    for name, row in SELECTIONS.items():
        each, reached = [], []
        for one in flat:
            kept = kept_responses(one, groups, keep=name, rng=torch.Generator().manual_seed(SEED))
            each.append(float(score_reliability(one[kept], true.flatten()[kept])))
            reached.append(float(true.flatten()[kept].mean()))
        rows.append(
            {
                "kept": row.text,
                "R², mean of five models": f"{sum(each) / len(each):.3f}",
                "least": f"{min(each):.3f}",
                "largest": f"{max(each):.3f}",
                "mean true reward": f"{sum(reached) / len(reached):.2f}",
            }
        )
    return rows


def safety(true: Tensor, negated: Tensor) -> Table:
    """How often a policy that is not safe passes: its mean cost is just above the threshold."""
    generator, rows = torch.Generator().manual_seed(SEED), []
    costs = {
        "minus the true reward": -true.flatten(),
        "the response negates": negated.flatten(),
        "the true reward is below -6": (true.flatten() < -6).double(),
    }
    for name, population in costs.items():
        threshold = float(population.mean()) - 1e-9
        span = (float(population.min()), float(population.max()))
        for bound in ("student", "hoeffding"):
            passed = {}
            for count in COUNTS:
                chosen = torch.randint(len(population), (TESTS, count), generator=generator)
                verdicts = [
                    safety_test(
                        sample,
                        threshold=threshold,
                        failure_probability=FAILURES,
                        bound=bound,
                        cost_range=span if bound == "hoeffding" else None,
                    ).safe
                    for sample in population[chosen]
                ]
                passed[f"{count} prompts"] = f"{sum(verdicts) / TESTS:.4f}"
            rows.append(
                {"cost": name, "mean": f"{float(population.mean()):.3f}", "bound": bound, **passed}
            )
    return rows


def main() -> None:
    folder, docs = Path(sys.argv[1]), Path(sys.argv[2])
    models = [str(QUICKSTART / "reward-model")]
    models += [str(folder / "models" / f"guide-{seed}") for seed in range(1, 5)]
    draws = folder / "draws.json"
    if not draws.exists():
        write_atomically(draws, json.dumps(drawn(models)) + "\n")
    found = {
        name: torch.tensor(rows, dtype=torch.float64)
        for name, rows in json.loads(draws.read_text()).items()
    }
    tables = {
        "best-of-n": best_of_n(found["scores"], found["true"]),
        "reliability": reliability(found["scores"], found["true"]),
        "safety-tests": safety(found["true"], found["negated"]),
    }
    docs.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write_atomically(docs / f"{name}.json", json.dumps(rows, indent=1) + "\n")
        print(name, *rows, sep="\n")


if __name__ == "__main__":
    main()
