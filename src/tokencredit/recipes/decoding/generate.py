"""Responses steered token by token with a reward model, and what that cost and brought.

    tokencredit generate --policy LM --reward_model RM --prompts prompts.jsonl --output out

Methods that choose token by token are one rule (`tokencredit.decoding.rules`): log-probabilities of
the language model plus `guidance.beta` times the score of the text with each candidate. Searches
(`tokencredit.decoding.search.hf_methods`) judge whole responses or longer beginnings; best-of-n and
plain sampling stand among them for comparison.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tokencredit.batch import Prompt
from tokencredit.decoding.search.hf_methods import Search
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.hf_datasets import load_prompts
from tokencredit.recipes.decoding.methods import loaded_models, method_responses, response_scores
from tokencredit.recipes.decoding.rows import response_metrics, response_rows
from tokencredit.recipes.decoding.settings import GenerateConfig
from tokencredit.recipes.run.left_out import (
    encodable_prompts,
    require_some,
    tell_left_out,
    usable,
)
from tokencredit.recipes.run.run_folder import open_run_folder, write_atomically
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import free_settings


@quiet_transformers()
def generate(config: GenerateConfig) -> Path:
    """Write the responses and print what they cost and brought.

    Returns:
        `responses.jsonl`: prompt, response, scores, KL, and per token the candidates with their
        log-probabilities and scores.

    Raises:
        DataError: no prompt can be answered, or one cannot where that is an error.
        ModelError: a model is missing, or has no pad token or the wrong head.
        NumericError: the score of a candidate is NaN.
        RunFolderError: the folder holds something else, or cannot be written.
    """
    models = loaded_models(config)
    left_out = config.dataset.collecting()
    prompts = load_prompts(
        config.prompts,
        split=config.data.split,
        column=config.data.column,
        limit=config.data.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    if config.data.tokens is None:  # else the reward model reads the ids that are kept
        models.reward_reading.require_renderable(prompts)
    encoded = encodable_prompts(
        prompts,
        models.reading,
        left_out,
        where=config.prompts,
        kept=config.data.tokens,
        new_tokens=config.sampling.max_new_tokens,
        readers=[models.policy],
    )
    print_reading("policy", models.reading)
    example = (encoded[0][0], "") if config.show_example else None
    print_reading("reward model", models.reward_reading, example=example)
    folder = open_run_folder(config.output, config, free=free_settings(GenerateConfig))
    torch.manual_seed(config.seed)
    found: list[dict[str, Any]] = []
    seconds = 0.0

    def answered(some: list[tuple[Prompt, list[int]]]) -> list[dict[str, Any]]:
        nonlocal seconds
        rows = [row[: config.data.tokens] for _, row in some]
        asked = [prompt for prompt, _ in some] if config.data.tokens is None else None
        began = time.perf_counter()
        answers = method_responses(config, models, rows, asked)
        taken = time.perf_counter() - began
        scores = response_scores(config, models, answers.batch, asked)
        seconds += taken
        return list(response_rows(models, answers, scores))

    starts = range(0, len(encoded), config.batch_size)
    for start in track(starts, "generate", disable=not config.progress):
        found += usable(answered, encoded[start : start + config.batch_size], left_out)
    require_some(found, left_out)
    tell_left_out(left_out, folder / "skipped.jsonl")
    write_atomically(
        folder / "responses.jsonl",
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found),
    )
    metrics = response_metrics(found, seconds)
    if isinstance(config.row, Search):
        metrics |= config.row.known_kl(config.sampling.of_search(), config.n)
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    table = Table("", config.method, title=f"{len(found)} responses")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}")
    Console().print(table)
    print(f"responses: {folder / 'responses.jsonl'}")
    return folder / "responses.jsonl"
