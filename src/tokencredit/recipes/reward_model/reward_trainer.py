"""The Trainer of a reward model: which lesson it is given, and what its batches hold."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.models.hf_architecture import is_causal, padding_id
from tokencredit.models.hf_joined_rows import shared_length
from tokencredit.models.hf_users import ContextReading
from tokencredit.recipes.reward_model.contrastive import TwoReadings
from tokencredit.recipes.reward_model.ensembles import (
    BOOTSTRAP,
    bootstrap_weights,
    loss_of_heads,
)
from tokencredit.recipes.reward_model.examples import (
    SAID,
    JudgedRow,
    beginning_row,
    example_columns,
    filler_id,
    judgements_of,
    reward_batch,
    score_reading,
)
from tokencredit.recipes.reward_model.lessons import Lesson
from tokencredit.recipes.reward_model.mixtures import PromptRouter
from tokencredit.recipes.reward_model.regularised import KeptHead
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.recipes.reward_model.shared_prefixes import (
    shared_batch,
    shared_scores,
    shares_prefixes,
)
from tokencredit.recipes.reward_model.user_groups import ROW, GroupTrainer, UserGroups
from tokencredit.recipes.reward_model.user_latents import UserLatents
from tokencredit.recipes.training.arguments import training_arguments, training_device
from tokencredit.recipes.training.models import lasting_name
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.trainer import LossTrainer, ModelFunction
from tokencredit.reward_model.objectives import Judgements
from tokencredit.scorers.hf_fractions import counted_scores
from tokencredit.scorers.hf_segment_ends import SegmentEnds


def lesson_of(
    config: TrainRewardModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[JudgedRow],
) -> Lesson:
    """How rows are learnt from, as the settings say.

    Args:
        config: the settings.
        model: as it was loaded, without adapters.
        tokenizer: of the model.
        rows: to learn from.

    Raises:
        ModelError: the model lacks what the settings need.
    """
    every_output = partial(counted_scores, every_output=True)

    def pair_losses(judged: Judgements) -> Float[Tensor, "pairs"]:
        assert config.row.pair_losses is not None
        return config.row.pair_losses(judged, config.loss)

    if config.regulariser.form is not None:
        return _regularised(config, KeptHead(config, tokenizer, rows))
    if config.contrastive.weight:
        readings = TwoReadings(config, model)
        return Lesson(readings.scores_and_features, readings.loss)
    if config.groups.count > 1:
        groups = UserGroups(config.groups, rows, pair_losses)
        return Lesson(
            every_output,
            groups.loss,
            groups.columns,
            unread=(*SAID, ROW),
            trainer=partial(GroupTrainer, groups=groups),
            joined=groups.joined,
            write=groups.write,
        )
    if config.mixture.heads > 1:
        router = PromptRouter(model, config.mixture, pair_losses)
        return Lesson(router, router.loss, router.columns, view=router.view, write=router.write)
    if config.ensemble.heads > 1:
        return _ensemble(config, len(rows))
    if config.latent.size:
        return _users(config, model, rows)
    several = config.row.rows == "several-ratings"

    def loss(scores: Any, inputs: dict[str, Tensor]) -> Tensor:
        return config.row.loss(judgements_of(scores, inputs), config.loss)

    return Lesson(
        every_output if several else counted_scores,
        loss,
        shares_prefixes=config.row.rows == "pairs",
    )


def _ensemble(config: TrainRewardModelConfig, count: int) -> Lesson:
    """Several heads side by side, each with data of its own where the settings say so."""
    drawn = bootstrap_weights(count, config.ensemble, seed=config.seed)

    def columns(_rows: Sequence[JudgedRow], indices: Sequence[int]) -> dict[str, Tensor]:
        return {} if drawn is None else {BOOTSTRAP: drawn[list(indices)]}

    def loss(scores: Any, inputs: dict[str, Tensor]) -> Tensor:
        return loss_of_heads(lambda judged: config.row.loss(judged, config.loss), scores, inputs)

    scores_of = partial(counted_scores, every_output=True)
    return Lesson(scores_of, loss, columns, unread=(*SAID, BOOTSTRAP))


def _users(config: TrainRewardModelConfig, model: PreTrainedModel, rows: list[JudgedRow]) -> Lesson:
    """Scores that depend on who judges."""
    users = UserLatents(
        model.to(training_device(config)),
        config.latent,
        rows,
        lambda judged: config.row.loss(judged, config.loss),
        batch_size=2 * config.training.batch_size,
    )
    reading = ContextReading(
        lasting_name(config.model), config.max_length, config.truncation or "prompt-start"
    )
    return Lesson(
        users, users.loss, users.columns, joined=users.joined, write=users.writing(reading)
    )


def _regularised(config: TrainRewardModelConfig, kept: KeptHead) -> Lesson:
    """One head, with the head of the language model that training starts from."""

    def loss(outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
        scores, likelihoods = outputs
        of_pairs = config.row.loss(judgements_of(scores, inputs), config.loss)
        return kept.loss(of_pairs, likelihoods, inputs)

    return Lesson(kept.scores_and_likelihoods, loss, kept.columns, unread=(*SAID, "references"))


def reward_trainer(
    config: TrainRewardModelConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[JudgedRow],
    ends: SegmentEnds | None,
    run: TrainingRun,
    lesson: Lesson,
) -> tuple[LossTrainer, int]:
    """The Trainer of a reward model, and the tokens of one pass over the data.

    Args:
        config: the settings.
        model: with or without adapters.
        tokenizer: of the model.
        rows: to learn from.
        ends: finds the ends of segments, where scores are read there; else None.
        run: what the trainer belongs to.
        lesson: how rows are learnt from.
    """
    filler, causal = filler_id(config, tokenizer), is_causal(model)
    columns = example_columns(rows, config, filler=filler, causal=causal)
    lengths = columns.pop("tokens")
    pad_id, read_at = padding_id(model), score_reading(config.row.reading, rows, ends)
    collate: Callable[..., dict[str, Tensor]] = reward_batch
    if lesson.shares_prefixes and shares_prefixes(model, rows[0], pad_id=pad_id, read_at=read_at):
        once = [
            shared_length([text.input_ids for text in rows[row].responses])
            for row in columns["row"]
        ]
        columns["length"] = [n - min(part, n // 2) for n, part in zip(lengths, once, strict=True)]
        collate, lesson = shared_batch, replace(lesson, scores_of=shared_scores)

    def batch(examples: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        some = [
            beginning_row(
                rows[example["row"]],
                example["prefix"],
                filler=filler,
                max_length=config.max_length,
                causal=causal,
            )
            for example in examples
        ]
        indices = [example["row"] for example in examples]
        said = collate(some, pad_id=pad_id, read_at=read_at)
        return said | dict(lesson.columns(some, indices))

    trainer = lesson.trainer(
        model=ModelFunction(model, lesson.scores_of),
        args=training_arguments(config, run.folder, examples=len(columns["row"])),
        train_dataset=Dataset.from_dict(columns),
        data_collator=batch,
        loss=lesson.loss,
        unread=lesson.unread,
        run=run,
    )
    return trainer, sum(lengths)
