"""What is known of every answer before training begins: computed once, kept in the run folder.

Log-probabilities under frozen models, credit of tokens and states at the ends of prompts are
constants of a run. They are computed in pieces, each of which is a file; a run that was stopped
goes on with the next piece. No frozen model is in memory while the policy is trained, unless the
loss compares whole distributions.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import rows_of_like_length
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.masking import left_packed
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.models.hf_short_attention import short_attention
from tokencredit.models.hf_trunk import trunk_output
from tokencredit.recipes.preferences.rows import AnswerRow
from tokencredit.recipes.preferences.settings import TrainPreferencesConfig
from tokencredit.recipes.run.checksums import digest
from tokencredit.recipes.run.run_folder import writing
from tokencredit.recipes.training.arguments import training_device
from tokencredit.recipes.training.supervised import autocast
from tokencredit.scorers.hf_credit_models import loaded_credit_models
from tokencredit.scorers.hf_implicit import loaded_reference
from tokencredit.scorers.hf_token_scores import CreditedScorer
from tokencredit.scorers.rewards import Rewards
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import TokenSums, loaded_rewards
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.hf_token_rows import EncodedText, response_batch, right_padded

FOLDER = "constants"
_ROWS_PER_FILE = 256

Numbers = list[list[Tensor]]
"""For each row and each of its answers: numbers, one per response token or a state."""

OfTexts = Callable[[list[AnswerRow]], list[Tensor]]
"""From rows to what belongs to each of their answers, one after another."""


def cached_numbers(folder: Path, name: str, rows: Sequence[AnswerRow], made: OfTexts) -> Numbers:
    """Numbers of all answers, read from the run folder as far as they are there.

    Of several processes each computes its share of the files; all of them read all.

    Args:
        folder: of the run.
        name: of the numbers.
        rows: all of them.
        made: computes the numbers of some rows.

    Raises:
        RunFolderError: a file cannot be written.
    """
    state = PartialState()
    pieces = [rows[at : at + _ROWS_PER_FILE] for at in range(0, len(rows), _ROWS_PER_FILE)]
    paths = [folder / FOLDER / f"{name}-{at:05d}.safetensors" for at in range(len(pieces))]
    for at, (piece, path) in enumerate(zip(pieces, paths, strict=True)):
        mine = at % state.num_processes == state.process_index
        if mine and _read(path, piece) is None:
            _write(path, piece, made(list(piece)))
    state.wait_for_everyone()
    found: Numbers = []
    for piece, path in zip(pieces, paths, strict=True):
        numbers = _read(path, piece)
        flat = iter(made(list(piece)) if numbers is None else numbers)
        found += [[next(flat) for _ in row.texts] for row in piece]
    return found


def forget_numbers(folder: Path) -> None:
    """Take the files away: the run is done."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _key(rows: Sequence[AnswerRow]) -> str:
    """Tells these answers from others."""
    return digest([text.input_ids for row in rows for text in row.texts])


def _write(path: Path, rows: Sequence[AnswerRow], numbers: list[Tensor]) -> None:
    flat = {
        "values": torch.cat([one.float().cpu().flatten() for one in numbers]),
        "sizes": torch.tensor([one.numel() for one in numbers]),
    }
    beside = path.with_suffix(".writing")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        save_file(flat, beside, metadata={"answers": _key(rows)})
        beside.rename(path)


def _read(path: Path, rows: Sequence[AnswerRow]) -> list[Tensor] | None:
    """The numbers of a file; None where it is not there, not whole, or of other answers."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("answers") != _key(rows):
                return None
            sizes = file.get_tensor("sizes").tolist()
            return list(file.get_tensor("values").split(sizes))
    except (OSError, SafetensorError):
        return None


def reference_logprobs(
    config: TrainPreferencesConfig, model: PreTrainedModel, *, pad_id: int
) -> OfTexts:
    """Log-probabilities of response tokens under a frozen model.

    Args:
        config: the settings.
        model: frozen.
        pad_id: fills padding.
    """

    def of_batch(texts: list[EncodedText]) -> Tensor:
        return response_logprobs(model, response_batch(texts, pad_id=pad_id))

    return by_batches(config, model, of_batch)


def prompt_states(
    config: TrainPreferencesConfig, model: PreTrainedModel, *, pad_id: int
) -> OfTexts:
    """The last hidden state at the end of the prompt, of a frozen model.

    Args:
        config: the settings.
        model: frozen.
        pad_id: fills padding.
    """

    def of_batch(texts: list[EncodedText]) -> Tensor:
        ids, real, _ = right_padded(texts, pad_id=pad_id)
        packed, _ = left_packed(ids, real.bool())
        with trunk_output(model) as seen:
            model(input_ids=packed.to(model.device), use_cache=False, logits_to_keep=1)
        hidden = seen[-1][1].last_hidden_state
        ends = torch.tensor([text.start - 1 for text in texts], device=hidden.device)
        return hidden[torch.arange(len(texts), device=hidden.device), ends].float()

    return by_batches(config, model, of_batch, per_token=False)


def by_batches(
    config: TrainPreferencesConfig,
    model: PreTrainedModel,
    of_batch: Callable[[list[EncodedText]], Tensor],
    *,
    per_token: bool = True,
) -> OfTexts:
    """A function of batches of like length as one of rows.

    Args:
        config: the settings.
        model: that the function asks.
        of_batch: from texts to a tensor with a row for each.
        per_token: whether the rows have an entry, or several, for each response token.
    """

    @torch.no_grad()
    def made(rows: list[AnswerRow]) -> list[Tensor]:
        texts = [text for row in rows for text in row.texts]
        found: list[Tensor] = [torch.zeros(0)] * len(texts)
        lengths = torch.tensor([len(text) for text in texts])
        model.eval()
        for some in rows_of_like_length(lengths, 2 * config.training.batch_size):
            batch = [texts[at] for at in some.tolist()]
            with _computing(config, model, max(map(len, batch))):
                values = of_batch(batch).cpu()
            for at, value, text in zip(some.tolist(), values, batch, strict=True):
                found[at] = value[: len(text) - text.start] if per_token else value
        return found

    return made


@contextmanager
def _computing(
    config: TrainPreferencesConfig, model: PreTrainedModel, longest: int
) -> Iterator[None]:
    """The precision of training, and the attention that is fastest in it."""
    precision: AbstractContextManager[Any] = autocast(config.training, model.device)
    with precision, short_attention(model, longest):
        yield


def frozen_reference(
    config: TrainPreferencesConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The reference as a model of its own.

    Args:
        config: names it.
        tokenizer: of the policy.

    Raises:
        ModelError: it is not there, or has another vocabulary.
    """
    return loaded_reference(
        config.reference or config.model,
        tokenizer,
        **config.loading.of_frozen,
        device=training_device(config),
    ).requires_grad_(False)


def token_credit_of(
    config: TrainPreferencesConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_id: int,
) -> OfTexts:
    """What each response token is paid by the credit of the settings.

    Args:
        config: the settings.
        model: of the policy, whose files say what ends a response.
        tokenizer: of the policy.
        pad_id: fills padding.

    Raises:
        ConfigError, ModelError, ServerError: the credit lacks what it needs, or reads other ids.
    """
    scorer = _loaded_credit(config, model, tokenizer)

    @torch.no_grad()
    def made(rows: list[AnswerRow]) -> list[Tensor]:
        texts = [text for row in rows for text in row.texts]
        asked = [prompt for row in rows for prompt in row.prompts]
        found: list[Tensor] = [torch.zeros(0)] * len(texts)
        lengths = torch.tensor([len(text) for text in texts])
        for some in rows_of_like_length(lengths, 2 * config.training.batch_size):
            at = some.tolist()
            batch = response_batch([texts[i] for i in at], pad_id=pad_id)
            paid = scorer(batch.to(training_device(config)), [asked[i] for i in at]).cpu()
            for i, value in zip(at, paid, strict=True):
                found[i] = value[: len(texts[i]) - texts[i].start]
        return found

    return made


def _loaded_credit(
    config: TrainPreferencesConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> CreditedScorer | Rewards:
    """What pays tokens; contrasted prompts ask the model as it is, unless another is named."""
    credit: CreditSettings = config.credit_of_run
    writer = written_by(tokenizer, model)
    size = 2 * config.training.batch_size
    loading = {**vars(config.loading), "device": training_device(config)}
    if config.reward_model is None:
        models = loaded_credit_models(credit, tokenizer, loading=loading)
        return TokenSums(writer, credit, models, config.segments, size).credited
    return loaded_rewards(
        (RewardSource(config.reward_model, name="reward"),),
        credit,
        config.segments,
        CombinationSettings(),
        writer,
        reading=config.reward_reading,
        micro_batch_size=size,
        loading=loading,
    )


def bounded_already(credit: CreditSettings) -> bool:
    """Whether credit lies between −1/2 and 1/2 as it is."""
    return "two_prompts" in credit_method(credit.method).needs
