"""Train a judge that answers with one of two tokens: `tokencredit train-judge`.

    tokencredit train-judge --data pairs.jsonl --model lm --judge.setup pairwise-rl --output judge

Every pair is two questions of the set-up: both orders, or each response by itself. The judge learns
the right one of its two answers by classification over these alone, all spellings of an answer
together: log p(yes) - log p(no) is the logit (RLBFF, arXiv 2509.21319, trains its scalar model so).
That both orders are asked is ours for set-ups that compare two. The run folder is a language model:
`judge.setup` of the commands asks it as it was trained.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tokencredit.errors import ConfigError, DataError
from tokencredit.judge.hf_judge import answer_tokens, question_rows
from tokencredit.judge.lessons import Lesson, pair_lessons
from tokencredit.judge.setups import JudgeSetup
from tokencredit.models.hf_loading import pad_token_id
from tokencredit.models.hf_passes import evaluating
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.judge.settings import TrainJudgeConfig
from tokencredit.recipes.reward_model.pair_data import training_pairs
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.models import (
    language_model_to_train,
    reading_to_train,
    with_adapters,
    without_adapters,
)
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.supervised import (
    autocast,
    encoded_sides,
    finished_run,
    supervised_run,
    write_results,
)
from tokencredit.recipes.training.trainer import LossTrainer, ModelFunction, row_numbers, train
from tokencredit.text.hf_reading import Reading

__all__ = ["TrainJudgeConfig", "train_judge"]

Asked = tuple[list[int], float]
"""A question as token ids, and the side of its right answer: 1 for the first, -1 for the other."""
Answers = tuple[list[int], list[int]]
"""Ids of the tokens that spell each of the two answers."""


def train_judge(config: TrainJudgeConfig) -> Path:
    """Train one judge; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `metrics.json`, `metrics.jsonl`, `config.yaml`. Of
        held-out pairs the metrics hold `held_out_accuracy` of single questions,
        `held_out_pair_accuracy` of both together, in logits, the mean loss, and of set-ups that
        show two responses `held_out_turns`, the share of pairs whose verdict turns with the order.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there, or its vocabulary lacks an answer.
        ConfigError: the set-up has no two answers of one token, or lacks what it asks for.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    setup = _two_way_setup(config)
    done = finished_run(config)
    if done is not None:
        return done
    pairs, eval_pairs, left_out = training_pairs(config)
    set_seed(config.seed)
    model, tokenizer = _start(config)
    reading = reading_to_train(model, tokenizer, config.reading)
    answers = _answers(tokenizer, setup)
    encode = partial(_asked, config, setup, reading)
    rows, eval_rows = encoded_sides(config, encode, pairs, eval_pairs, left_out)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        adapted = with_adapters(model, config.lora, task_type="CAUSAL_LM")
        pad = pad_token_id(tokenizer)

        def evaluate() -> dict[str, float]:
            return _held_out(config, adapted, eval_rows, answers, pad=pad)

        metrics = _train(
            config, adapted, rows, answers, folder, evaluate if eval_rows else None, pad=pad
        )
        metrics |= evaluate() if eval_rows else {}
        whole = without_adapters(
            adapted, config.lora, lambda: _start(config)[0], task_type="CAUSAL_LM"
        )
        write_results(whole, tokenizer, metrics, folder, name="judge")
    return folder


def _two_way_setup(config: TrainJudgeConfig) -> JudgeSetup:
    setup = config.judge.row()
    if len(setup.answers) != 2 or setup.asks == "list":
        raise ConfigError(
            f"judge.setup is {config.judge.setup!r}, whose judge answers with "
            f"{list(setup.answers) or 'a text'}; expected a set-up with two answers of one token, "
            "or for texts `build-judge-prompts` and `train-policy`"
        )
    return setup


def _start(config: TrainJudgeConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return language_model_to_train(
        config.model, config.loading, max_length=config.max_length, lora=config.lora
    )


def _answers(tokenizer: PreTrainedTokenizerBase, setup: JudgeSetup) -> Answers:
    spelled = answer_tokens(tokenizer, setup.answers)
    first, second = (
        [token for token, text in spelled.items() if text.strip().lower() == answer]
        for answer in setup.answers
    )
    return first, second


def _asked(
    config: TrainJudgeConfig, setup: JudgeSetup, reading: Reading, pairs: Sequence[PreferencePair]
) -> list[tuple[Asked, Asked]]:
    """Both questions of every pair as token ids."""
    lessons: list[Lesson] = pair_lessons(
        setup,
        [pair.prompt for pair in pairs],
        [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs],
        principle=config.judge.principle,
        rubric=config.judge.rubric,
    )
    ids = question_rows(reading, [lesson.question for lesson in lessons])
    longest = max(map(len, ids))
    if longest > config.max_length:
        raise DataError(
            f"a question has {longest} tokens; expected at most {config.max_length}: raise "
            "max_length, or drop the row"
        )
    rows = [(row, lesson.correct) for row, lesson in zip(ids, lessons, strict=True)]
    return list(zip(rows[::2], rows[1::2], strict=True))


def answer_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, *, answers: Answers
) -> Float[Tensor, "rows"]:
    """Log p(first answer) - log p(second answer) after each question, all spellings together.

    Args:
        model: a causal language model.
        input_ids: questions, padded on the right.
        attention_mask: 1 on real tokens.
        answers: ids that spell each.
    """
    ends = attention_mask.sum(-1) - 1  # (rows,)
    kept = torch.unique(ends)
    logits = model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=kept
    ).logits  # (rows, kept, vocabulary)
    rows = torch.arange(len(ends), device=ends.device)
    last = logits[rows, torch.searchsorted(kept, ends)].float()
    first, second = (last[:, ids].logsumexp(-1) for ids in answers)
    return first - second


def _train(
    config: TrainJudgeConfig,
    model: Any,
    pairs: Sequence[tuple[Asked, Asked]],
    answers: Answers,
    folder: Path,
    evaluate: Callable[[], dict[str, float]] | None,
    *,
    pad: int,
) -> dict[str, float]:
    """Train the model in place; what it took."""
    rows = [row for pair in pairs for row in pair]

    def batch(some: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        return _batch([rows[one["row"]] for one in some], pad=pad)

    trainer = LossTrainer(
        model=ModelFunction(model, partial(answer_logits, answers=answers)),
        args=training_arguments(config, folder, examples=len(rows)),
        train_dataset=row_numbers([len(ids) for ids, _ in rows]),
        data_collator=batch,
        loss=lambda logits, said: softplus(-logits * said["correct"]).mean(),
        unread=("correct",),
        run=TrainingRun.of(config, folder, evaluate),
    )
    return train(trainer, tokens=sum(len(ids) for ids, _ in rows))


def _batch(rows: Sequence[Asked], *, pad: int) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids, _ in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]
        ),
        "correct": torch.tensor([1.0 if correct > 0 else -1.0 for _, correct in rows]),
    }


@torch.no_grad()
def _held_out(
    config: TrainJudgeConfig,
    model: Any,
    pairs: Sequence[tuple[Asked, Asked]],
    answers: Answers,
    *,
    pad: int,
) -> dict[str, float]:
    """How often the right answer is the likelier one, by questions and by pairs."""
    rows = [row for pair in pairs for row in pair]
    device, leads = next(model.parameters()).device, []
    size = config.training.batch_size
    with evaluating(model), autocast(config.training, device):
        for start in range(0, len(rows), size):
            batch = _batch(rows[start : start + size], pad=pad)
            batch = {name: values.to(device) for name, values in batch.items()}
            correct = batch.pop("correct")
            leads.append((answer_logits(model, **batch, answers=answers) * correct).cpu())
    lead = torch.cat(leads)
    both = lead.view(-1, 2)
    found = {
        "held_out_loss": float(softplus(-lead).mean()),
        "held_out_accuracy": float((lead > 0).float().mean()),
        "held_out_pair_accuracy": float((both.sum(-1) > 0).float().mean()),
    }
    if config.judge.row().asks != "each":
        found["held_out_turns"] = float((both.prod(-1) <= 0).float().mean())
    return found
