"""What travels between the stages: batches of responses and of preference pairs.

Prompts are padded on the left and responses on the right, so that column `prompt` of the joined
sequence is response token 0 in every row. Padding is known by mask alone, never by token id.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError


@dataclass(frozen=True)
class ResponseBatch:
    """Prompts and their responses, as token ids.

    Attributes:
        prompt_ids: token ids, padded on the left.
        prompt_mask: True on real prompt tokens.
        response_ids: token ids, padded on the right.
        response_mask: True on response tokens that count. Tokens inside a response that the policy
            did not choose (tool output, for example) are False and stay visible to attention.

    Raises:
        ShapeError: ids and masks differ in shape, or prompts and responses in number.

    >>> batch = ResponseBatch(
    ...     prompt_ids=torch.tensor([[0, 5], [6, 7]]),
    ...     prompt_mask=torch.tensor([[False, True], [True, True]]),
    ...     response_ids=torch.tensor([[8, 9], [8, 0]]),
    ...     response_mask=torch.tensor([[True, True], [True, False]]),
    ... )
    >>> batch.input_ids
    tensor([[0, 5, 8, 9],
            [6, 7, 8, 0]])
    >>> batch.attention_mask
    tensor([[0, 1, 1, 1],
            [1, 1, 1, 0]])
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    response_ids: Int[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch time"]

    def __post_init__(self) -> None:
        for name in ("prompt", "response"):
            ids, mask = getattr(self, f"{name}_ids"), getattr(self, f"{name}_mask")
            if ids.shape != mask.shape or ids.ndim != 2:
                raise ShapeError(
                    f"{name}_ids have shape {tuple(ids.shape)} and {name}_mask "
                    f"{tuple(mask.shape)}; expected the same (batch, time) shape for both"
                )
        if len(self.prompt_ids) != len(self.response_ids):
            raise ShapeError(
                f"{len(self.prompt_ids)} prompts and {len(self.response_ids)} responses; "
                "expected one response per prompt: repeat prompts that have several"
            )

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __getitem__(self, rows: slice | Tensor) -> "ResponseBatch":
        """The batch of these rows, padding kept."""
        return ResponseBatch(
            self.prompt_ids[rows],
            self.prompt_mask[rows],
            self.response_ids[rows],
            self.response_mask[rows],
        )

    @property
    def input_ids(self) -> Int[Tensor, "batch sequence"]:
        """Prompt and response joined."""
        return torch.cat([self.prompt_ids, self.response_ids], dim=-1)

    @property
    def attention_mask(self) -> Int[Tensor, "batch sequence"]:
        """1 on every token up to the last one of the response, 0 on padding."""
        from_here_on = self.response_mask.flip(-1).cummax(-1).values.flip(-1)
        return torch.cat([self.prompt_mask, from_here_on], dim=-1).long()

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """Number of response tokens that count."""
        return self.response_mask.sum(-1)

    def to(self, device: torch.device | str) -> "ResponseBatch":
        """This batch on another device."""
        return ResponseBatch(
            self.prompt_ids.to(device),
            self.prompt_mask.to(device),
            self.response_ids.to(device),
            self.response_mask.to(device),
        )


@dataclass(frozen=True)
class PreferenceBatch:
    """Pairs of responses to the same prompts, the first of each preferred.

    Attributes:
        chosen: the preferred responses.
        rejected: the others.
        margin: how much better the chosen ones are, in nats; None where it is not known.

    Raises:
        ShapeError: the two sides, or the margins, differ in number.
    """

    chosen: ResponseBatch
    rejected: ResponseBatch
    margin: Float[Tensor, "batch"] | None = None

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise ShapeError(
                f"{len(self.chosen)} chosen and {len(self.rejected)} rejected responses; "
                "expected pairs"
            )
        if self.margin is not None and self.margin.shape != (len(self.chosen),):
            raise ShapeError(
                f"margin has shape {tuple(self.margin.shape)} for {len(self.chosen)} pairs; "
                "expected one number per pair"
            )


@runtime_checkable
class TokenScorer(Protocol):
    """Anything that pays every response token: the one seam between credit and its consumers."""

    def __call__(self, batch: ResponseBatch) -> Float[Tensor, "batch time"]:
        """Return float32 scores in nats, finite, zero outside `batch.response_mask`."""
        ...


@dataclass(frozen=True)
class ResponseScores:
    """What credit needs to know about responses.

    Attributes:
        sequence_scores: the score of each prompt with its response, in nats, float32.
        prefix_scores: column 0 is the score of the prompt alone, column t + 1 of the prefix that
            ends with response token t; zero behind the last real token. None for models that read
            in both directions.
        attention: as in `RewardModelOutput`, of the response tokens alone: what the prompt
            receives is left out and nothing is rescaled. Zero outside the response mask.
    """

    sequence_scores: Float[Tensor, "batch"]
    prefix_scores: Float[Tensor, "batch time_plus_1"] | None
    attention: Float[Tensor, "batch time"] | None


Message = dict[str, str]


Prompt = str | list[Message]
