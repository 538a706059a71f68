"""Last hidden states of texts and pairs, and what the pairs of a training say of each direction."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.models.bounds import difference_covariance
from tokencredit.models.hf_architecture import padding_id
from tokencredit.models.hf_bounds import write_covariance
from tokencredit.models.hf_passes import evaluating
from tokencredit.models.hf_trunk import states_of_one_pass, trunk_output
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.reward_model.hf_scores import reward_model_output
from tokencredit.text.hf_token_rows import EncodedText, right_padded


def last_states(
    model: PreTrainedModel, texts: Sequence[EncodedText], *, batch_size: int, needed_by: str
) -> Float[Tensor, "texts width"]:
    """The last hidden state of each text, on the CPU, in float32, without gradient.

    Args:
        model: a causal classifier.
        texts: to read.
        batch_size: texts per forward pass.
        needed_by: the setting that asks for them, for messages.

    Raises:
        ModelError: as `states_of_one_pass`.
    """
    found = []
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(texts), batch_size):
            some = texts[start : start + batch_size]
            ids, real, _ = (
                one.to(model.device) for one in right_padded(some, pad_id=padding_id(model))
            )
            with trunk_output(model) as seen:
                reward_model_output(model, ids, real, every_output=True)
            hidden = states_of_one_pass(model, seen, len(some), needed_by=needed_by)
            ends = torch.tensor([len(text) - 1 for text in some], device=hidden.device)
            found.append(hidden[torch.arange(len(some)), ends].float().cpu())
    return torch.cat(found)


def states_of_pairs(
    model: PreTrainedModel, rows: Sequence[JudgedRow], *, batch_size: int, needed_by: str
) -> Float[Tensor, "pairs 2 width"]:
    """The last hidden states of the preferred and of the other answer of each pair.

    Args:
        model: a causal classifier.
        rows: pairs.
        batch_size: texts per forward pass.
        needed_by: as there.

    Raises:
        ModelError: as `last_states`.
    """
    texts = [text for row in rows for text in row.responses]
    states = last_states(model, texts, batch_size=batch_size, needed_by=needed_by)
    return states.view(len(rows), 2, -1)


def write_covariance_of_pairs(
    model: PreTrainedModel,
    rows: Sequence[JudgedRow],
    folder: Path,
    *,
    ridge: float,
    batch_size: int,
) -> None:
    """Put what pairs say of each direction of the states of a trained model beside it.

    The reference is the mean state at the end of all answers.

    Args:
        model: causal, with a linear head, as it was trained.
        rows: pairs that it learnt from.
        folder: of the model.
        ridge: as of `difference_covariance`.
        batch_size: texts per forward pass.

    Raises:
        ModelError: as `last_states`.
    """
    states = states_of_pairs(model, rows, batch_size=batch_size, needed_by="bound.ridge")
    covariance = difference_covariance(states[:, 0], states[:, 1], ridge=ridge)
    write_covariance(covariance, states.mean((0, 1)), folder)
