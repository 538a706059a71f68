"""Utterances of dialogues that a critic learns from, those of earlier policies among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FILE = "buffer.safetensors"
"""Where the utterances stand in a checkpoint."""


@dataclass(frozen=True)
class Utterance:
    """What was said in one turn of a dialogue, and what came of it.

    Attributes:
        state: token ids of the dialogue before it.
        said: token ids of the utterance, with what ends it.
        reward: that followed.
        is_last: whether the dialogue ended with it.
        following: token ids of the dialogue with the answer to it; empty at the end.
        has_ended: False where it was cut off.
    """

    state: list[int]
    said: list[int]
    reward: float
    is_last: bool
    following: list[int]
    has_ended: bool = True


def packed(buffer: Sequence[Utterance]) -> dict[str, Tensor]:
    """Utterances as tensors, which a checkpoint can hold.

    >>> one = Utterance([5, 6], [7], 0.5, True, [])
    >>> unpacked(packed([one])) == [one]
    True
    """
    tensors = {}
    for name in ("state", "said", "following"):
        rows: list[list[int]] = [getattr(one, name) for one in buffer]
        tensors[name] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
        tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows], dtype=torch.long)
    tensors["reward"] = torch.tensor([one.reward for one in buffer], dtype=torch.float64)
    for name in ("is_last", "has_ended"):
        tensors[name] = torch.tensor([getattr(one, name) for one in buffer], dtype=torch.bool)
    return tensors


def unpacked(tensors: dict[str, Tensor]) -> list[Utterance]:
    """The utterances that `packed` made tensors of."""
    rows = {
        name: [
            part.tolist()
            for part in torch.split(tensors[name], tensors[f"{name}_lengths"].tolist())
        ]
        for name in ("state", "said", "following")
    }
    return [
        Utterance(state, said, reward, is_last, following, has_ended)
        for state, said, reward, is_last, following, has_ended in zip(
            rows["state"],
            rows["said"],
            tensors["reward"].tolist(),
            tensors["is_last"].tolist(),
            rows["following"],
            tensors["has_ended"].tolist(),
            strict=True,
        )
    ]
