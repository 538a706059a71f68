"""What the trunk of a model makes of texts: its last hidden state at the end of each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.models.hf_architecture import padding_id
from tokencredit.models.hf_attention import pretrained_model
from tokencredit.models.hf_passes import evaluating
from tokencredit.text.hf_token_rows import EncodedText, right_padded


@torch.no_grad()
def end_states(
    model: PreTrainedModel, rows: Sequence[EncodedText], *, batch_size: int = 16
) -> Float[Tensor, "rows width"]:
    """The last hidden state of a trunk at the last token of each text, on the CPU.

    Args:
        model: a classifier or language model; what stands behind its trunk is not asked.
        rows: texts as token ids.
        batch_size: texts per forward pass.
    """
    states, trunk = [], pretrained_model(model).base_model
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            ids, real, _ = right_padded(rows[start : start + batch_size], pad_id=padding_id(model))
            found = trunk(
                input_ids=ids.to(model.device), attention_mask=real.to(model.device).long()
            ).last_hidden_state  # (batch, sequence, width)
            ends = real.sum(-1) - 1
            states.append(found[torch.arange(len(ends)), ends].float().cpu())
    return torch.cat(states)
