"""The score of a reward model as a function of what is left of a response, or of its embeddings.

Perturbation and gradients (`tokencredit.credit.perturbation`, `tokencredit.credit.gradients`) and
the tests of faithfulness ask for such functions; they know no model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ModelError
from tokencredit.kept_tokens import ScoresOfKept
from tokencredit.masking import left_packed
from tokencredit.models.hf_architecture import is_causal, require_readable, sequence_classifier
from tokencredit.models.hf_passes import evaluating, row_places, separate_passes
from tokencredit.reward_model.hf_scores import reward_model_output, score_responses


def scores_without_tokens(
    model: nn.Module,
    batch: ResponseBatch,
    *,
    replacement_id: int | None = None,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None = None,
    micro_batch_size: int = 32,
) -> ScoresOfKept:
    """A function that scores the responses when only some of their tokens stay.

    Prompts stay whole, as do tokens inside a response that do not count. Subsets that were asked
    for twice in one call are scored once, and texts of like length together. Without gradients and
    without dropout.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        batch: in the model's own tokens.
        replacement_id: the token that stands in place of one that does not stay (a mask token);
            None deletes tokens, and what is after them moves up. No reward model was trained to
            read a mask token unless its own pretraining had one.
        attention_mask: real tokens of prompt and response, as in `score_responses`.
        micro_batch_size: texts per forward pass. Changes the time and memory, not the result.

    Returns:
        A function of `(batch, subsets, time)` masks, True on tokens that stay, which gives scores
        in nats, float32. The score of no token is the score of the prompt. It raises what
        `score_responses` raises.
    """
    real = (batch.attention_mask if attention_mask is None else attention_mask).bool()

    def scores(keep: Bool[Tensor, "batch subsets time"]) -> Float[Tensor, "batch subsets"]:
        rows, kept, asked = distinct_subsets(keep)
        part, present = batch[rows], real[rows]
        gone = part.response_mask & ~kept
        if replacement_id is None:
            present = present & ~torch.cat([torch.zeros_like(part.prompt_mask), gone], dim=-1)
        else:
            ids = part.response_ids.masked_fill(gone, replacement_id)
            part = ResponseBatch(part.prompt_ids, part.prompt_mask, ids, part.response_mask)
        scored = score_responses(
            model, part, attention_mask=present, micro_batch_size=micro_batch_size
        )
        return scored.sequence_scores[asked].view(keep.shape[:2])

    return scores


def response_embeddings(
    model: nn.Module, batch: ResponseBatch
) -> Float[Tensor, "batch time width"]:
    """What the model looks up for each response token, without gradient.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        batch: in the model's own tokens; ids under the mask may be anything.

    Returns:
        Embeddings in the dtype of the model, zero outside `batch.response_mask`.
    """
    embeddings = _looked_up(model, batch.response_ids, batch.response_mask)
    return embeddings.masked_fill(~batch.response_mask[:, :, None], 0.0)


def score_of_embeddings(
    model: nn.Module,
    batch: ResponseBatch,
    *,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None = None,
) -> Callable[[Float[Tensor, "batch time width"]], Float[Tensor, "batch"]]:
    """A function that scores the responses when their tokens have other embeddings.

    The prompt keeps its own, as do tokens inside a response that do not count. Without dropout,
    with gradients, all responses in one forward pass: take fewer of them at a time (`batch[rows]`)
    where memory is short.

    Args:
        model: a sequence-classification model, also inside a PEFT wrapper.
        batch: in the model's own tokens.
        attention_mask: real tokens of prompt and response, as in `score_responses`.

    Returns:
        A function of embeddings of the response tokens, which gives scores in nats, float32. Of
        `response_embeddings` it gives the scores of the responses.

    Raises:
        ModelError: the model has an encoder and a decoder, or reads its score elsewhere.
        DataError: a row has no real token, or more than the model can read.
    """
    pretrained = sequence_classifier(model)
    if getattr(pretrained.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(pretrained).__name__} reads the text twice, with an encoder and a decoder; "
            "expected one stack for a score of embeddings: leave tokens out instead"
        )
    real = (batch.attention_mask if attention_mask is None else attention_mask).bool()
    require_readable(pretrained, batch.input_ids, real)
    own = _looked_up(model, batch.input_ids, real)
    prompt, response = own.tensor_split([batch.prompt_ids.shape[1]], dim=1)
    counted = batch.response_mask[:, :, None]
    ids, packed = left_packed(batch.input_ids, real)
    groups = separate_passes(pretrained, ids, packed.sum(-1), causal=is_causal(pretrained))
    back = row_places(groups, len(ids))

    def scores(embeddings: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch"]:
        joined = torch.cat([prompt, torch.where(counted, embeddings.to(own.dtype), response)], 1)
        inputs, _ = left_packed(joined, real)  # as `reward_model_output` packs the ids
        parts = [
            _scores_of_inputs(model, batch.input_ids[rows], real[rows], inputs[rows])
            for rows in groups
        ]
        return torch.cat(parts)[back]

    return scores


def _scores_of_inputs(
    model: nn.Module,
    ids: Int[Tensor, "batch sequence"],
    real: Bool[Tensor, "batch sequence"],
    inputs: Float[Tensor, "batch packed width"],
) -> Float[Tensor, "batch"]:
    """Scores of rows of one pass, with these embeddings in place of those of their ids."""
    # Beside the ids and not instead of them: some models find the end of a text by its ids.
    lookup = sequence_classifier(model).get_input_embeddings()
    hook = lookup.register_forward_hook(lambda *call: inputs[:, : call[-1].shape[1]])
    try:
        with evaluating(model):
            return reward_model_output(model, ids, real).sequence_scores
    finally:
        hook.remove()


def distinct_subsets(
    keep: Bool[Tensor, "batch subsets time"],
) -> tuple[Int[Tensor, "distinct"], Bool[Tensor, "distinct time"], Int[Tensor, "asked"]]:
    """Every response with every subset of it once, and where each that was asked for is found."""
    batch, subsets, _ = keep.shape
    rows = torch.arange(batch, dtype=torch.int32, device=keep.device).repeat_interleave(subsets)
    keyed = torch.cat([rows[:, None], keep.flatten(0, 1)], dim=-1)
    distinct, asked = torch.unique(keyed, dim=0, return_inverse=True)
    return distinct[:, 0].long(), distinct[:, 1:].bool(), asked


def _looked_up(
    model: nn.Module, ids: Int[Tensor, "batch sequence"], real: Bool[Tensor, "batch sequence"]
) -> Float[Tensor, "batch sequence width"]:
    lookup = sequence_classifier(model).get_input_embeddings()
    with torch.no_grad():
        return lookup(ids.masked_fill(~real, 0))
