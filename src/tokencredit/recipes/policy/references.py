"""Responses of the reference to the prompts, drawn and scored once, with which scores are compared.

Their scores stand in `references.jsonl` of the run folder, a row for each prompt in the step that
had it first. A resumed run reads them there, and drops those of steps that it does again.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from tokencredit.aggregation.transforms import (
    SCORE_TRANSFORMS,
    ReferenceScores,
    RunningMoments,
    priced_scores,
)
from tokencredit.batch import Prompt, padded_rows
from tokencredit.errors import DataError
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.prompts import PolicyPrompts, prompts_of_step, seeded
from tokencredit.recipes.policy.rollout import Rollout, drawn_lengths, kept_rows, repeated
from tokencredit.recipes.policy.scoring import scores_where_possible
from tokencredit.recipes.policy.setting_groups import sampling_of
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import on_device
from tokencredit.recipes.run.checksums import digest
from tokencredit.recipes.run.run_folder import append_jsonl, read_jsonl
from tokencredit.scorers.evidence import Responses

FILE = "references.jsonl"
"""Where the scores of the reference's responses stand in a run folder."""


@dataclass(frozen=True)
class Reference:
    """What is known of the reference's responses to one prompt.

    Attributes:
        lengths: tokens of each response.
        scores: of each response by each source of reward, as it gave them; None for what could not
            be scored.
    """

    lengths: list[int]
    scores: dict[str, list[float | None]]


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt as the policy reads it, and as it was asked where others read it in another way."""

    ids: list[int]
    asked: Prompt | None

    @property
    def key(self) -> str:
        """Tells it from other prompts, those cut elsewhere among them."""
        return digest(self.ids)


def compared_sources(config: TrainPolicyConfig) -> list[str]:
    """The sources whose scores are compared with the reference's, prompt by prompt."""
    return [
        one.label
        for one in config.sources
        if one.score.reference_responses
        and not SCORE_TRANSFORMS[one.score.transform].against_mixture
    ]


def normalised_by_reference(config: TrainPolicyConfig) -> list[str]:
    """The sources whose scores are normalised by those of the reference."""
    return [one.label for one in config.sources if one.score.normalization == "reference"]


def read_references(folder: Path) -> dict[str, Reference]:
    """What a run knows of the reference's responses so far, by the key of their prompt."""
    return {
        row["prompt"]: Reference(row["lengths"], row["scores"]) for row in read_jsonl(folder / FILE)
    }


def reference_moments(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    prompts: PolicyPrompts,
    known: dict[str, Reference],
    *,
    folder: Path,
) -> dict[str, RunningMoments]:
    """Moments of the reference's scores on the first prompts of the run, by source.

    Scores are counted as those of the policy are: after their ceiling and the price of length.

    Args:
        config: the settings.
        accelerator: of the run; all processes must ask.
        models: of the run.
        prompts: all of them.
        known: what was drawn before; what is drawn now is added.
        folder: of the run.

    Raises:
        DataError: a source can score none of the responses.
    """
    labels = normalised_by_reference(config)
    if not labels:
        return {}
    count = min(config.references.prompts, len(prompts.rows))
    first = prompts_of_step(len(prompts.rows), count, config.seed, 0)
    with torch.random.fork_rng(_devices(accelerator)):
        rng = seeded(config.seed, -1, 0)
        rows = kept_rows([prompts.rows[i] for i in first], config.data.tokens, rng)
    asked = [None if prompts.asked is None else prompts.asked[i] for i in first]
    chosen = [AskedPrompt(ids, text) for ids, text in zip(rows, asked, strict=True)]
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    added = _add_references(config, accelerator, models, mine, known, step=0)
    _write_references(folder, accelerator, added, step=0)
    scores = {one.label: one.score for one in config.sources}
    found = {}
    for label in labels:
        pairs = [
            (score, length)
            for one in chosen
            for score, length in zip(
                known[one.key].scores[label], known[one.key].lengths, strict=True
            )
            if score is not None
        ]
        if not pairs:
            raise DataError(
                f"the reward {label!r} can score no response of the reference to the first {count} "
                "prompts; expected some, whose mean and deviation normalise its scores"
            )
        raw, lengths = torch.tensor(pairs).unbind(-1)
        own = scores[label]
        counted = priced_scores(raw, lengths, ceiling=own.ceiling, length_price=own.length_price)
        found[label] = RunningMoments().updated(counted)
    return found


def references_of_rollout(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    rollout: Rollout,
    known: dict[str, Reference],
    *,
    step: int,
    folder: Path,
) -> dict[str, ReferenceScores]:
    """What each source says of the reference's responses to the prompt of each response.

    Responses to prompts that come for the first time are drawn now, from the distribution that the
    policy's are drawn from, with the reference's weights.

    Args:
        config: the settings.
        accelerator: of the run; all processes must ask.
        models: of the run.
        rollout: of this process.
        known: what was drawn before; what is drawn now is added.
        step: its number.
        folder: of the run.
    """
    labels = compared_sources(config)
    if not labels:
        return {}
    batch = rollout.batch
    asked: Sequence[Prompt | None] = rollout.asked or [None] * len(batch)
    prompts = [
        AskedPrompt(ids[mask].tolist(), text)
        for ids, mask, text in zip(batch.prompt_ids, batch.prompt_mask, asked, strict=True)
    ]
    added = _add_references(config, accelerator, models, prompts, known, step=step)
    _write_references(folder, accelerator, added, step=step)
    device, rows = batch.response_ids.device, [known[one.key] for one in prompts]
    lengths = torch.tensor([row.lengths for row in rows], dtype=torch.float32, device=device)
    return {
        label: ReferenceScores(_numbers([row.scores[label] for row in rows], device), lengths)
        for label in labels
    }


def _write_references(
    folder: Path, accelerator: Accelerator, added: Mapping[str, Reference], *, step: int
) -> None:
    """Add what was drawn in a step to the file in the run folder.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    if accelerator.is_main_process:
        for key, one in added.items():
            append_jsonl(folder / FILE, {"step": step, "prompt": key, **asdict(one)})


def _add_references(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    prompts: Iterable[AskedPrompt],
    known: dict[str, Reference],
    *,
    step: int,
) -> dict[str, Reference]:
    """Draw for prompts that are not known, in every process its own; all then know all."""
    missing = {one.key: one for one in prompts if one.key not in known}
    found = _drawn(config, accelerator, models, list(missing.values()), step=step)
    fresh = list(zip(missing, found, strict=True))
    if accelerator.num_processes > 1:
        fresh = gather_object(fresh)
    added: dict[str, Reference] = {}
    for key, one in fresh:  # two processes may have drawn for one prompt: the first one counts
        added.setdefault(key, one)
    known |= added
    return added


@torch.no_grad()
def _drawn(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    prompts: list[AskedPrompt],
    *,
    step: int,
) -> list[Reference]:
    """Responses of the reference to prompts, as many at a time as a rollout has, and their scores.

    The random numbers of the run go on as if nothing had been drawn.
    """
    each = config.references.per_prompt
    at_once = max(1, config.batch_size // accelerator.num_processes // each)
    found: list[Reference] = []
    with torch.random.fork_rng(_devices(accelerator)):
        rng = seeded(config.seed, -1 - step, accelerator.process_index)
        for first in range(0, len(prompts), at_once):
            part = repeated(prompts[first : first + at_once], each)
            found += _drawn_at_once(config, accelerator, models, part, rng)
    return found


def _drawn_at_once(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    prompts: list[AskedPrompt],
    rng: torch.Generator,
) -> list[Reference]:
    """One response to each of these, which are the same prompts several times in a row."""
    device, ends = accelerator.device, models.reading.turn_ends
    pad = models.tokenizer.pad_token_id
    ids, mask = padded_rows([one.ids for one in prompts], fill=pad, side="left")
    lengths = drawn_lengths(config.sampling, len(prompts), rng)
    draw = partial(
        sampled_responses,
        prompt_ids=ids.to(device),
        prompt_mask=mask.to(device),
        sampling=sampling_of(config.sampling, end_ids=ends, undrawable=models.undrawable),
        response_lengths=None if lengths is None else lengths.to(device),
        pad_token_id=pad,
        eos_token_id=ends,
    )
    with accelerator.autocast():
        batch, _ = models.of_reference(draw)
    asked = [one.asked for one in prompts if one.asked is not None] or None
    responses = Responses(batch, asked)
    names = {*compared_sources(config), *normalised_by_reference(config)}
    with on_device(models.visits, *models.rewards.modules):
        scores = {
            one.name: scores_where_possible(one.scorer, responses)[0].tolist()
            for one in models.rewards.sources
            if one.name in names
        }
    each, counts = config.references.per_prompt, batch.lengths.tolist()
    return [
        Reference(
            counts[first : first + each],
            {
                name: [None if math.isnan(value) else value for value in numbers[first:][:each]]
                for name, numbers in scores.items()
            },
        )
        for first in range(0, len(prompts), each)
    ]


def _numbers(rows: list[list[float | None]], device: torch.device) -> Tensor:
    filled = [[math.nan if value is None else value for value in row] for row in rows]
    return torch.tensor(filled, dtype=torch.float32, device=device)


def _devices(accelerator: Accelerator) -> list[Any]:
    """Devices with random numbers of their own, besides the CPU."""
    return [accelerator.device] if accelerator.device.type == "cuda" else []
