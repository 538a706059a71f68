"""The whole story on the built-in task, from raw text to policies with a reward on every token.

    tokencredit quickstart

A language model learns film reviews of a small grammar, a reward model learns pairs of them (at
every prefix), and PPO trains the language model with that reward model under four credits: the
same seed, settings and budget each. The grammar knows the true reward of any text and the true
credit of every word, so what the policies write and where the credit falls can be judged without
the reward model. Models that are there already are used again.
"""

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tokencredit.errors import RunFolderError
from tokencredit.evaluation.agreement import pearson_correlation
from tokencredit.evaluation.heatmap import heatmap_html
from tokencredit.evaluation.plots import plot_credit_by_position, plot_learning_curves
from tokencredit.evaluation.report import ReportFigure, ReportTable, report_html
from tokencredit.hf_text import EncodedResponses, encode_responses
from tokencredit.recipes.run_folder import read_jsonl, write_atomically
from tokencredit.recipes.token_scorer import CreditName, score_for_policy
from tokencredit.recipes.train_language_model import TrainLanguageModelConfig, train_language_model
from tokencredit.recipes.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.train_reward_model import TrainRewardModelConfig, train_reward_model
from tokencredit.reward_model.hf_backbone import load_reward_model
from tokencredit.toy.hf_tokenizer import toy_tokenizer
from tokencredit.toy.reviews import sample_pairs, sample_prompt, sample_review
from tokencredit.toy.truth import split_words, true_reward, true_token_scores

CREDITS: tuple[CreditName, ...] = get_args(CreditName)
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of the quickstart.

    Attributes:
        output: folder for models, runs, figures and the report.
        steps: PPO steps per credit.
        batch_size: responses per PPO step.
        reviews: texts of the language model and pairs of the reward model.
        max_new_tokens: words per response.
        learning_rate: of PPO, the same for every credit.
        gae_lambda: of PPO, the same for every credit.
        seed: of everything random.
        progress: show progress bars.
    """

    output: str = "output/quickstart"
    steps: int = 60
    batch_size: int = 32
    reviews: int = 4000
    max_new_tokens: int = 40
    learning_rate: float = 1e-3
    gae_lambda: float = 0.95
    seed: int = 0
    progress: bool = True


def quickstart(config: QuickstartConfig) -> Path:
    """Run the story and write the report.

    Returns:
        The report, one HTML file that needs nothing beside it.

    Raises:
        RunFolderError: the folder holds a quickstart with other settings, or cannot be written.
    """
    started, console, folder = time.perf_counter(), Console(), Path(config.output)
    _write_data(config, folder / "data")
    console.rule("1/4 language model")
    language_model = train_language_model(_language_model_config(config, folder))
    console.rule("2/4 reward model")
    reward_model = train_reward_model(_reward_model_config(config, folder, language_model))
    runs = {}
    for credit in CREDITS:
        console.rule(f"3/4 PPO with {credit} credit")
        runs[credit] = folder / f"policy-{credit}"
        train_policy(_policy_config(config, folder, credit, language_model, reward_model))
    console.rule("4/4 credit against truth")
    texts = read_jsonl(folder / "data" / "held-out.jsonl")
    scores, encoded = _credit_of_reviews(texts, reward_model)
    report = _write_report(config, folder, runs, scores, encoded, console)
    console.print(f"Report: {report.resolve()}", soft_wrap=True)
    console.print(f"Figures: {(folder / 'learning-curves.png').resolve()}", soft_wrap=True)
    console.print(f"         {(folder / 'credit-by-position.png').resolve()}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    return report


def _write_data(config: QuickstartConfig, folder: Path) -> None:
    """Texts, pairs, prompts and held-out reviews, drawn from one seed; written once."""
    sizes = {"reviews": config.reviews, "seed": config.seed}
    marker = folder / "drawn.json"
    if marker.exists():
        if json.loads(marker.read_text()) != sizes:
            raise RunFolderError(
                f"{folder} holds data of other settings ({marker.read_text().strip()}, now "
                f"{json.dumps(sizes)}); expected the same: choose another `output`"
            )
        return
    rng = random.Random(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {
        "texts": [{"text": sample_review(rng)} for _ in range(config.reviews)],
        "pairs": sample_pairs(rng, config.reviews),
        "prompts": [{"prompt": sample_prompt(rng)} for _ in range(1000)],
        "held-out": [
            {"prompt": pair["prompt"], "response": pair["chosen"]}
            for pair in sample_pairs(rng, 200)
        ],
    }
    for name, part in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        write_atomically(folder / f"{name}.jsonl", lines)
    toy_tokenizer().save_pretrained(folder / "tokenizer")
    write_atomically(marker, json.dumps(sizes) + "\n")


def _language_model_config(config: QuickstartConfig, folder: Path) -> TrainLanguageModelConfig:
    return TrainLanguageModelConfig(
        data=str(folder / "data" / "texts.jsonl"),
        output=str(folder / "language-model"),
        architecture=ARCHITECTURE,
        tokenizer=str(folder / "data" / "tokenizer"),
        max_length=128,
        epochs=4,
        batch_size=16,
        learning_rate=3e-3,
        seed=config.seed,
        device="cpu",
        progress=config.progress,
    )


def _reward_model_config(
    config: QuickstartConfig, folder: Path, language_model: Path
) -> TrainRewardModelConfig:
    return TrainRewardModelConfig(
        data=str(folder / "data" / "pairs.jsonl"),
        model=str(language_model),
        output=str(folder / "reward-model"),
        prompt_column="prompt",
        append_eos=False,
        max_length=96,
        epochs=3,
        batch_size=16,
        learning_rate=1e-3,
        seed=config.seed,
        device="cpu",
        progress=config.progress,
    )


def _policy_config(
    config: QuickstartConfig,
    folder: Path,
    credit: CreditName,
    language_model: Path,
    reward_model: Path,
) -> TrainPolicyConfig:
    return TrainPolicyConfig(
        policy=str(language_model),
        reward_model=str(reward_model),
        prompts=str(folder / "data" / "prompts.jsonl"),
        output=str(folder / f"policy-{credit}"),
        credit=credit,
        steps=config.steps,
        batch_size=config.batch_size,
        response_lengths="uniform",
        min_new_tokens=config.max_new_tokens,
        max_new_tokens=config.max_new_tokens,
        learning_rate=config.learning_rate,
        gae_lambda=config.gae_lambda,
        kl_coef=0.05,
        seed=config.seed,
        device="cpu",
        sample_every=1,
        sample_count=config.batch_size,
        progress=config.progress,
    )


def true_rewards_by_step(run: Path) -> list[float]:
    """Mean true reward of the responses of each step of a run, in nats."""
    by_step: dict[int, list[float]] = {}
    for sample in read_jsonl(run / "samples.jsonl"):
        by_step.setdefault(sample["step"], []).append(true_reward(split_words(sample["response"])))
    return [sum(rewards) / len(rewards) for _, rewards in sorted(by_step.items())]


def _credit_of_reviews(
    rows: list[dict[str, Any]], reward_model: Path
) -> tuple[dict[str, Float[Tensor, "batch time"]], EncodedResponses]:
    """Token scores of held-out reviews: the two truths, and every credit."""
    model, tokenizer = load_reward_model(reward_model, device="cpu")
    encoded = encode_responses(
        tokenizer, [row["prompt"] for row in rows], [row["response"] for row in rows]
    )
    mask, tokens = encoded.batch.response_mask, _token_texts(encoded, tokenizer)
    scores: dict[str, Tensor] = {
        "truth (causal)": true_token_scores(tokens, mask, truth="causal"),
        "truth (Shapley)": true_token_scores(tokens, mask, truth="shapley"),
    }
    for credit in CREDITS:
        scores[credit], _ = score_for_policy(
            model, tokenizer, tokenizer, encoded.batch, credit=credit, micro_batch_size=50
        )
    return scores, encoded


def _token_texts(encoded: EncodedResponses, tokenizer: Any) -> list[list[str]]:
    batch = encoded.batch
    return [
        [tokenizer.decode([token]) for token in ids[mask].tolist()]
        for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)
    ]


def first_step_at(curve: list[float], level: float, *, window: int = 5) -> int | None:
    """First step whose running mean reaches a level; None if none does.

    >>> first_step_at([0.0, 1.0, 2.0, 3.0], 2.0, window=2)
    4
    """
    for end in range(window, len(curve) + 1):
        if sum(curve[end - window : end]) / window >= level:
            return end
    return None


def _rows(
    config: QuickstartConfig, runs: dict[CreditName, Path], scores: dict[str, Tensor], mask: Tensor
) -> list[list[str]]:
    """One row per credit: how it learnt, and where its credit fell."""
    curves = {credit: true_rewards_by_step(run) for credit, run in runs.items()}
    window = min(5, config.steps)
    terminal = curves["terminal"]
    best = max(
        sum(terminal[end - window : end]) / window for end in range(window, len(terminal) + 1)
    )
    rows = []
    for credit, curve in curves.items():
        metrics = read_jsonl(runs[credit] / "metrics.jsonl")[-window:]
        reached = first_step_at(curve, best, window=window)
        agreement = [
            pearson_correlation(scores[credit], scores[truth], mask).nanmean()
            for truth in ("truth (causal)", "truth (Shapley)")
        ]
        rows.append(
            [
                credit,
                f"{sum(curve) / len(curve):.2f}",
                f"{sum(curve[-window:]) / window:.2f}",
                f"{sum(row['score'] for row in metrics) / window:.2f}",
                f"{sum(row['kl'] for row in metrics) / window:.1f}",
                "-" if reached is None else str(reached),
                *(f"{float(value):.2f}" for value in agreement),
            ]
        )
    return rows


COLUMNS = (
    "credit",
    "true reward, mean",
    "true reward, end",
    "model score, end",
    "KL, end",
    "terminal's best at step",
    "credit ~ causal truth",
    "credit ~ Shapley truth",
)


def _write_report(
    config: QuickstartConfig,
    folder: Path,
    runs: dict[CreditName, Path],
    scores: dict[str, Tensor],
    encoded: EncodedResponses,
    console: Console,
) -> Path:
    mask = encoded.batch.response_mask
    rows = _rows(config, runs, scores, mask)
    console.print(_rich_table(rows))
    curves = plot_learning_curves(
        {credit: [true_rewards_by_step(run)] for credit, run in runs.items()},
        folder / "learning-curves.png",
        ylabel="true reward (nats)",
        title="What the policies write, by the grammar's own reward",
        window=min(5, config.steps),
    )
    positions = plot_credit_by_position(
        {name: value for name, value in scores.items() if name != "truth (Shapley)"},
        mask,
        folder / "credit-by-position.png",
        title="When the credit of a response is paid",
        reference="truth (causal)",
    )
    page = report_html(
        "tokencredit quickstart",
        notes=_notes(config),
        tables=[ReportTable("Four credits, one budget", COLUMNS, rows, _TABLE_NOTE)],
        figures=[
            ReportFigure("Learning curves", curves, "Mean of 5 steps; one seed."),
            ReportFigure("Credit by position", positions, "Mean over 200 held-out reviews."),
        ],
        heatmaps=list(_heatmaps(scores, encoded, folder / "data" / "held-out.jsonl")),
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


_TABLE_NOTE = (
    "Rewards, scores and KL in nats per response; `end` is the mean of the last 5 steps. The last "
    "two columns are mean correlations per review between the credit and the two true credits of "
    "the grammar, on 200 held-out reviews. One seed of a small task: it shows how the pieces work, "
    "not which method is best on your data."
)


def _notes(config: QuickstartConfig) -> list[str]:
    return [
        "Film reviews of a small grammar, whose true reward and true token credit are known. A "
        "language model was trained from scratch, a reward model on noisy pairs at every prefix, "
        "then PPO with four ways to pay tokens from the same reward model.",
        f"{config.steps} PPO steps of {config.batch_size} responses of {config.max_new_tokens} "
        f"words, learning rate {config.learning_rate:g}, gae_lambda {config.gae_lambda:g}, seed "
        f"{config.seed}. Command: tokencredit quickstart",
    ]


def _heatmaps(
    scores: dict[str, Tensor], encoded: EncodedResponses, texts: Path, count: int = 3
) -> Iterable[Markup]:
    rows = read_jsonl(texts)
    for index in range(count):
        mask = encoded.batch.response_mask[index]
        text, spans = rows[index]["response"], encoded.response_spans[index]
        starts = [0, *(end for _, end in spans[:-1])]
        pieces = [text[start:end] for start, (_, end) in zip(starts, spans, strict=True)]
        yield heatmap_html(
            pieces,
            {name: value[index][mask].tolist() for name, value in scores.items()},
            caption=rows[index]["prompt"] + " ...",
        )


def _rich_table(rows: list[list[str]]) -> Table:
    table = Table(title="Four credits, one budget")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
