"""Teachers of `train-preferences`: loaded beside the policy, or asked once before training.

With `options.top_k` each response token keeps the ids of the teacher's likeliest tokens, and what
the teachers say of these and of all others together; no teacher is in memory while the policy is
trained. Without, whole distributions are compared, and the teachers speak at every step.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.errors import ConfigError
from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_architecture import vocabulary_width
from tokencredit.policy.losses.distillation import kept_logprobs, require_kept
from tokencredit.recipes.preferences.constants import Numbers, OfTexts, by_batches
from tokencredit.recipes.preferences.settings import TrainPreferencesConfig
from tokencredit.recipes.training.arguments import training_device
from tokencredit.reward_model.hf_vocabulary import trained_statistics
from tokencredit.scorers.hf_implicit import loaded_reference
from tokencredit.text.hf_token_rows import EncodedText, read_response, scored_rows


def loaded_teachers(
    config: TrainPreferencesConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, ...]:
    """The frozen models that the loss learns from, the teacher first; none for other losses.

    Args:
        config: names them.
        tokenizer: of the policy.

    Raises:
        ModelError: one is not there, or has another vocabulary.
        ConfigError: what the teacher is held against is named nowhere.
    """
    if config.teacher is None:
        return ()
    teacher = _loaded(config, config.teacher, tokenizer, "teacher")
    if config.row.teachers == 1:
        return (teacher,)
    name = config.teacher_reference or getattr(teacher.config, "dpo_reference", None)
    if name is None:
        raise ConfigError(
            f"teacher_reference is not given, and the configuration of the teacher "
            f"{config.teacher!r} names no reference; expected the model that it started from, or "
            "one that was trained on pairs turned around"
        )
    return teacher, _loaded(config, name, tokenizer, "teacher_reference")


def _loaded(
    config: TrainPreferencesConfig, name: str, tokenizer: PreTrainedTokenizerBase, argument: str
) -> PreTrainedModel:
    model = loaded_reference(
        name,
        tokenizer,
        argument=argument,
        **config.loading.of_frozen,
        device=training_device(config),
    )
    return model.requires_grad_(False).eval()


def shared_width(*models: PreTrainedModel) -> int:
    """How many ids all of them speak of: output layers may be wider than tokenizers."""
    return min(map(vocabulary_width, models))


def teacher_numbers(
    config: TrainPreferencesConfig,
    teachers: Sequence[PreTrainedModel],
    *,
    pad_id: int,
    width: int,
) -> OfTexts:
    """For each response token the ids of kept tokens, and what each teacher says of the events.

    Args:
        config: the settings.
        teachers: the one whose likeliest tokens are kept first.
        pad_id: fills padding.
        width: ids that policy and teachers share.

    Raises:
        ConfigError: more tokens are to be kept than there are.
    """
    kept = require_kept(config.options.top_k or 0, width)

    def said(
        logits: Tensor, _token_ids: Tensor, *others: Tensor
    ) -> Float[Tensor, "tokens numbers"]:
        teacher = logits[:, :width]
        ids = teacher.topk(kept).indices
        events = [kept_logprobs(one[:, :width], ids) for one in (teacher, *others)]
        return torch.cat([ids.to(teacher), *events], dim=-1)

    def of_batch(texts: list[EncodedText]) -> Tensor:
        rows = scored_rows(texts, pad_id=pad_id, read_at=read_response)
        ids, real, counted = (one.to(teachers[0].device) for one in rows)
        return trained_statistics(teachers[0], ids, real, counted, said, frozen=teachers[1:])

    return by_batches(config, teachers[0], of_batch)


def taught_columns(
    numbers: Numbers | None, magnitudes: Numbers | None, rows: Sequence[Sequence[int]]
) -> Numbers | None:
    """What each response token carries into the loss: kept ids, events, and the size of credit.

    Args:
        numbers: as of `teacher_numbers`, flat; None where teachers speak at every step.
        magnitudes: of each token; None where nothing asks for them.
        rows: the lengths of the responses of each row.

    Returns:
        For each response (tokens, entries); None where there is nothing.
    """
    parts = [one for one in (numbers, magnitudes) if one is not None]
    if not parts:
        return None
    return [
        [
            torch.cat([part[at][side].view(length, -1) for part in parts], dim=-1)
            for side, length in enumerate(lengths)
        ]
        for at, lengths in enumerate(rows)
    ]


def taught_statistic(
    config: TrainPreferencesConfig, *, width: int | None
) -> Callable[..., Float[Tensor, "tokens 2"]]:
    """From the policy's logits and what teachers say to log-probabilities and the loss's numbers.

    Args:
        config: the settings.
        width: ids that policy and teachers share; None takes what the logits have.
    """
    options, made = config.options, config.row.taught
    assert made is not None

    def statistic(
        logits: Float[Tensor, "tokens vocab"], token_ids: Int[Tensor, "tokens"], *known: Tensor
    ) -> Float[Tensor, "tokens 2"]:
        rest = list(known)
        magnitudes = None
        if options.adaptive == "credit":
            *numbers, magnitudes = rest.pop().unbind(-1)
            rest += [torch.stack(numbers, dim=-1)] if numbers else []
        if options.top_k:
            shared = logits[:, :width]
            kept = require_kept(options.top_k, shared.shape[-1])
            ids = rest[0][:, :kept].long()
            said = rest[0][:, kept:].chunk(config.row.teachers, dim=-1)
            events = [kept_logprobs(shared, ids), *said]
        else:
            kept = min(one.shape[-1] for one in (logits, *rest))
            events = [kept_logprobs(one[:, :kept], None) for one in (logits, *rest)]
        taught = made(events, options, kept, magnitudes)
        return torch.stack([token_logprobs(logits, token_ids), taught], dim=-1)

    return statistic
