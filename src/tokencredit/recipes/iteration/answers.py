"""What a policy answers in a round, and what is said of it: drawn and scored once, kept on disk.

Prompts are asked a few at a time, with a seed that follows from the run's, the round and the first
of them. So a round that was stopped goes on with the next prompts, and draws what it would have
drawn, however many processes share the work.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch, padded_rows
from tokencredit.errors import DataError
from tokencredit.masking import masked_sum
from tokencredit.models.hf_architecture import require_room
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.preference.hf_datasets import load_prompted_responses, load_prompts
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.preference.pairs import PromptedResponse
from tokencredit.recipes.iteration.models import RoundModels, models_of_round
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.policy.prompts import prompts_of_step
from tokencredit.recipes.policy.rollout import repeated
from tokencredit.recipes.policy.scoring import Unscored, passed_responses, scores_where_possible
from tokencredit.recipes.reward_model.vocabulary_turns import ended_row
from tokencredit.recipes.run.left_out import encodable, tell_left_out
from tokencredit.recipes.run.run_folder import (
    jsonl_text,
    read_jsonl,
    write_atomically,
    writing,
)
from tokencredit.recipes.training.supervised import autocast, processes_of
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.text.hf_token_rows import response_batch

_BATCHES_PER_FILE = 16


@dataclass(frozen=True)
class Answer:
    """One response to a prompt.

    Attributes:
        group: number of the prompt in its round.
        prompt: what was asked.
        response: its text.
        ended: False for one that was cut off.
        tokens: how many it has; 0 for a demonstration.
        own: False for a demonstration.
        score: of the reward model, or 1 for one that passes where judges alone are asked; None for
            what could not be scored.
        passed: whether all judges pass it; None without judges.
        held_out_score: of the other reward model.
        log_ratio: log-probability under the policy less that under the first model, in nats, at the
            temperature of sampling.
        own_score: what the policy itself says of it.
        earlier_score: what the policy before says.
    """

    group: int
    prompt: Prompt
    response: str
    ended: bool
    tokens: int = 0
    own: bool = True
    score: float | None = None
    passed: bool | None = None
    held_out_score: float | None = None
    log_ratio: float | None = None
    own_score: float | None = None
    earlier_score: float | None = None


Question = tuple[PromptedResponse, list[int]]
"""A prompt, with a demonstration where there is one, and its token ids."""


def answers_of_round(
    config: IteratePreferencesConfig, number: int, folder: Path, *, last: bool = False
) -> list[Answer]:
    """The responses of a round, drawn and scored, or read again as far as they are there.

    Args:
        config: the settings.
        number: of the round, from 0.
        folder: of the run.
        last: whether no training follows, so that one response to each prompt is enough.

    Returns:
        Those to a prompt together, the same on every process.

    Raises:
        DataError: there are no prompts, or all are bad.
        ModelError, ConfigError, ServerError: as `models_of_round`.
        RunFolderError: a file cannot be written.
    """
    assert config.samples is not None
    samples, name = (1, "final") if last else (config.samples, "responses")
    path, pieces = folder / f"{name}-{number:03d}.jsonl", folder / f".{name}-{number:03d}"
    if not path.exists():
        models = models_of_round(config, number)
        questions = _questions(config, models, number, folder)
        _draw(config, models, number, questions, pieces, samples)
        del models
        clear_device_cache(garbage_collection=True)
    state = processes_of(config)
    if state is not None:
        state.wait_for_everyone()
    if not path.exists() and (state is None or state.is_main_process):
        files = sorted(pieces.glob("*.jsonl"))
        write_atomically(path, "".join(one.read_text(encoding="utf-8") for one in files))
    if state is not None:
        state.wait_for_everyone()
    if state is None or state.is_main_process:
        shutil.rmtree(pieces, ignore_errors=True)
    return [Answer(**row) for row in read_jsonl(path)]


def has_answers(folder: Path, _error: Exception) -> bool:
    """Whether a run that fails has drawn anything to go on from.

    Args:
        folder: of the run.
    """
    return any((*folder.glob("responses-*.jsonl"), *folder.glob(".responses-*/*.jsonl")))


def _questions(
    config: IteratePreferencesConfig, models: RoundModels, number: int, folder: Path
) -> list[Question]:
    """The prompts of a round as the policy reads them."""
    left_out: list[LeftOut] | None = config.dataset.collecting()
    source: dict[str, Any] = {
        "split": config.data.split,
        "limit": config.data.limit,
        "dataset": config.dataset,
        "left_out": left_out,
    }
    if config.demonstrations is None:
        prompts = load_prompts(config.prompts, column=config.data.column, **source)
        rows = [PromptedResponse(prompt, "") for prompt in prompts]
    else:
        rows = load_prompted_responses(
            config.prompts,
            prompt_column=config.data.column,
            response_column=config.demonstrations,
            **source,
        )

    def with_ids(some: list[PromptedResponse]) -> list[Question]:
        ids = models.reading.prompt_rows([row.prompt for row in some], where=config.prompts)
        longest = max(map(len, ids)) + config.sampling.max_new_tokens
        require_room(models.policy, longest)
        return list(zip(some, ids, strict=True))

    encoded = encodable(with_ids, rows, left_out)
    if not encoded:
        raise DataError(f"{config.prompts} holds no prompt; expected one at least")
    state = processes_of(config)
    if state is None or state.is_main_process:
        tell_left_out(left_out, folder / "skipped.jsonl")
    count = config.prompts_per_round or len(encoded)
    chosen = prompts_of_step(len(encoded), count, config.seed, number)
    return [encoded[at] for at in chosen]


@torch.no_grad()
def _draw(
    config: IteratePreferencesConfig,
    models: RoundModels,
    number: int,
    questions: Sequence[Question],
    pieces: Path,
    samples: int,
) -> None:
    """Write the answers of a round, a file for every few batches, those that are not there yet."""
    state, size = processes_of(config), config.prompts_at_once
    starts = range(0, len(questions), size)
    files = [starts[at : at + _BATCHES_PER_FILE] for at in range(0, len(starts), _BATCHES_PER_FILE)]
    mine = range(len(files))
    if state is not None:
        mine = mine[state.process_index :: state.num_processes]
    shown = config.progress and (state is None or state.is_main_process)
    for at in track(mine, f"round {number}: responses", disable=not shown):
        path = pieces / f"{at:05d}.jsonl"
        if path.exists():
            continue
        found: list[Answer] = []
        for start in files[at]:  # of prompts that are asked together
            torch.manual_seed(_seed(config.seed, number, start))
            some = questions[start : start + size]
            with autocast(config.training, models.device):
                found += _answers(config, models, some, start, samples)
        with writing(path):
            write_atomically(path, jsonl_text(map(asdict, found)))


def _seed(seed: int, number: int, start: int) -> int:
    """Seed of a draw, made of those of the run, the round and the first of its prompts."""
    return ((seed * 1_000_003 + number) * 1_000_003 + start) % 2**63


def _answers(
    config: IteratePreferencesConfig,
    models: RoundModels,
    questions: Sequence[Question],
    start: int,
    samples: int,
) -> list[Answer]:
    """Answers to prompts that are asked together, those to each prompt one after another."""
    asked = repeated([row.prompt for row, _ in questions], samples)
    groups = repeated(range(start, start + len(questions)), samples)
    ids, mask = padded_rows(
        repeated([row for _, row in questions], samples),
        fill=int(models.tokenizer.pad_token_id),
        side="left",
    )
    batch, cut = sampled_responses(  # (prompts * samples, time)
        models.policy,
        ids.to(models.device),
        mask.to(models.device),
        sampling=config.sampling_of_run(models.undrawable),
        pad_token_id=int(models.tokenizer.pad_token_id),
        eos_token_id=models.reading.turn_ends or None,
    )
    texts = [one.response for one in decoded_responses(models.tokenizer, batch)]
    found = [
        Answer(group, prompt, text, not is_cut, tokens)
        for group, prompt, text, is_cut, tokens in zip(
            groups, asked, texts, cut.tolist(), batch.lengths.tolist(), strict=True
        )
    ]
    found = _judged(models, found, batch)
    found = _with(found, "log_ratio", _log_ratios(config, models, batch))
    if config.learns_from_own_ratio:
        found = _with(found, "own_score", _own_scores(models.policy, models.base, batch))
        if models.earlier is not None:
            # A model that has nothing to be compared with is asked for likelihoods.
            base = None if models.earlier is models.base else models.base
            found = _with(found, "earlier_score", _own_scores(models.earlier, base, batch))
    return sorted(found + _demonstrated(config, models, questions, start), key=lambda a: a.group)


def _demonstrated(
    config: IteratePreferencesConfig,
    models: RoundModels,
    questions: Sequence[Question],
    start: int,
) -> list[Answer]:
    """The demonstrations of these prompts, scored as own responses are."""
    if config.demonstrations is None:
        return []
    rows = [row for row, _ in questions]
    found = [
        Answer(start + at, row.prompt, row.response, row.ended, own=False)
        for at, row in enumerate(rows)
    ]
    texts = models.reading.rows(
        [row.prompt for row in rows],
        [row.response for row in rows],
        ended=[row.ended for row in rows],
    )
    # Up to the end of the turn, as the policy writes: what a template puts after it is no answer.
    texts = [ended_row(text, models.reading.turn_ends) for text in texts]
    batch = response_batch(texts, pad_id=int(models.tokenizer.pad_token_id)).to(models.device)
    return _judged(models, found, batch)


def _judged(models: RoundModels, answers: Sequence[Answer], batch: ResponseBatch) -> list[Answer]:
    """Answers with what reward models and judges say of them."""
    responses = Responses(batch, [one.prompt for one in answers])
    found = list(answers)
    scorers = {"score": models.scorer, "held_out_score": models.held_out}
    for name, scorer in scorers.items():
        if scorer is not None:
            found = _with(found, name, scores_where_possible(scorer, responses)[0])
    if models.judges:
        none = torch.zeros(len(batch), dtype=torch.bool, device=batch.response_ids.device)
        passed, unscored = passed_responses(models.judges, responses, Unscored(none))
        said = zip(found, passed.tolist(), strict=True)
        found = [replace(one, passed=yes) for one, yes in said]
        if models.scorer is None:
            found = _with(found, "score", passed.float().masked_fill(unscored.rows, math.nan))
    return found


def _log_ratios(
    config: IteratePreferencesConfig, models: RoundModels, batch: ResponseBatch
) -> Float[Tensor, "batch"]:
    """How much likelier the policy finds its responses than the first model does."""
    if models.first is models.policy:
        return torch.zeros(len(batch))
    own, first = (
        response_logprobs(model, batch, temperature=config.sampling_of_run().temperature)
        for model in (models.policy, models.first)
    )
    return masked_sum(own - first, batch.response_mask)


def _own_scores(model: Any, base: Any, batch: ResponseBatch) -> Float[Tensor, "batch"]:
    """Log-ratio of responses to a base, or without one the log-probability per token."""
    sums = masked_sum(response_logprobs(model, batch), batch.response_mask)
    if base is None:
        return sums / batch.lengths.clamp(min=1)
    return sums - masked_sum(response_logprobs(base, batch), batch.response_mask)


def _with(answers: Sequence[Answer], name: str, values: Tensor) -> list[Answer]:
    """Answers with numbers of this name; None for those that are NaN."""
    found = []
    for one, value in zip(answers, values.tolist(), strict=True):
        told: dict[str, Any] = {name: None if math.isnan(value) else value}
        found.append(replace(one, **told))
    return found
