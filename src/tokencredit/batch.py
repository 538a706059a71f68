"""What travels between the stages: batches of responses and of preference pairs.

Prompts are padded on the left and responses on the right, so that column `prompt` of the joined
sequence is response token 0 in every row. Padding is known by mask alone, never by token id.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

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

    @classmethod
    def of_rows(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        pad_token_id: int,
        masks: Sequence[Sequence[bool]] | None = None,
        device: torch.device | str | None = None,
    ) -> "ResponseBatch":
        """Rows of token ids as one batch: prompts padded on the left, responses on the right.

        Args:
            prompts: token ids of each prompt; a row may be empty.
            responses: token ids of each response; a row may be empty.
            pad_token_id: fills padding.
            masks: for each response, True on the tokens that count; None counts all.
            device: to put the tensors on; None leaves them on the CPU.

        Raises:
            ShapeError: prompts, responses and masks differ in number, or a mask in length from its
                response.

        >>> ResponseBatch.of_rows([[5], [6, 7]], [[8, 9], [8]], pad_token_id=0).input_ids
        tensor([[0, 5, 8, 9],
                [6, 7, 8, 0]])
        """
        prompt_ids, prompt_mask = padded_rows(prompts, fill=pad_token_id, side="left")
        response_ids, response_mask = padded_rows(responses, fill=pad_token_id, side="right")
        if masks is not None:
            _require_as_long(masks, responses)
            response_mask = padded_rows(masks, fill=False, side="right")[0].bool()
        batch = cls(prompt_ids, prompt_mask, response_ids, response_mask)
        return batch if device is None else batch.to(device)

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


def padded_rows(
    rows: Sequence[Sequence[int]], *, fill: int, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "rows columns"], Bool[Tensor, "rows columns"]]:
    """Rows of different lengths as one tensor, and True where it holds them.

    Args:
        rows: token ids, or other whole numbers; a row may be empty.
        fill: stands where a row is shorter than the longest.
        side: where that is.

    >>> padded_rows([[5], [6, 7]], fill=0, side="left")
    (tensor([[0, 5],
            [6, 7]]), tensor([[False,  True],
            [ True,  True]]))
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    width = max(map(len, rows), default=0)
    columns = torch.arange(width)
    real = columns >= width - lengths if side == "left" else columns < lengths
    values = torch.full(real.shape, fill, dtype=torch.long)
    values[real] = torch.tensor([value for row in rows for value in row], dtype=torch.long)
    return values, real


def rows_of_like_length(
    lengths: Int[Tensor, "rows"], size: int | None = None, *, tokens: int | None = None
) -> list[Int[Tensor, "some"]]:
    """Indices of all rows in batches of like length, the longest rows first.

    Together the batches are the order of the rows: `torch.cat(batches).argsort()` is the way back.

    Args:
        lengths: of the rows, in tokens.
        size: rows per batch at most; None sets no limit.
        tokens: of a batch at most, padding included; a longer row goes alone. None sets no limit.

    Returns:
        Indices; rows of the same length keep their order. Without rows there is no batch.

    >>> rows_of_like_length(torch.tensor([3, 9, 4]), 2)
    [tensor([1, 2]), tensor([0])]
    >>> rows_of_like_length(torch.tensor([3, 9, 4]), tokens=10)
    [tensor([1]), tensor([2, 0])]
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes, left = [], lengths[order].tolist()
    while left:
        room = len(left) if tokens is None else tokens // max(left[0], 1)
        sizes.append(max(1, min(room, size or len(left), len(left))))
        left = left[sizes[-1] :]
    return list(torch.split(order, sizes))


def _require_as_long(masks: Sequence[Sequence[bool]], responses: Sequence[Sequence[int]]) -> None:
    found, expected = ([len(row) for row in rows] for rows in (masks, responses))
    if found != expected:
        raise ShapeError(
            f"masks have {found} entries for responses of {expected} tokens; expected one entry "
            "per token"
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
    """What a reward model says about responses, of which credit is made.

    Attributes:
        sequence_scores: the score of each prompt with its response, in nats, float32.
        prefix_scores: column 0 is the score of the prompt alone, column t + 1 of the prefix that
            ends with response token t; zero after the last real token. None for models that read
            in both directions.
        attention: as in `RewardModelOutput`, of the response tokens alone: what the prompt
            receives is left out and nothing is rescaled. Zero outside the response mask.
        position_scores: the number that stands at each position, where a prefix is scored by
            several of them, as by models trained on the ends of segments; None where it is the
            prefix score.
        objectives: by their names, the scores that these are made of, where the model has several.
        quoted_scores: what a judge says by its criteria, each on the tokens that it quotes as
            evidence; None where none quotes.
    """

    sequence_scores: Float[Tensor, "batch"]
    prefix_scores: Float[Tensor, "batch time_plus_1"] | None
    attention: Float[Tensor, "batch time"] | None
    position_scores: Float[Tensor, "batch time_plus_1"] | None = None
    objectives: "Mapping[str, ObjectiveScores]" = field(default_factory=dict)
    quoted_scores: Float[Tensor, "batch time"] | None = None

    def each(self, change: "Callable[[ResponseScores], ResponseScores]") -> "ResponseScores":
        """What a function makes of these scores and, in the same way, of those by objective."""
        objectives = {
            name: replace(one, scores=change(one.scores)) for name, one in self.objectives.items()
        }
        return replace(change(replace(self, objectives={})), objectives=objectives)


@dataclass(frozen=True)
class ObjectiveScores:
    """What a reward model says about responses by one of several objectives.

    Attributes:
        scores: of the responses, as they are by this objective.
        weights: of the objective in the score of each response, known when its prompt is: weighted
            scores add up to the score, those of prefixes too. None where the score is no such sum.
    """

    scores: ResponseScores
    weights: Float[Tensor, "batch"] | None


Message = dict[str, Any]
"""One turn of a conversation: who speaks, under "role", and what is said, under "content", both
texts. What else a chat template may render stands beside them: calls of tools, under
"tool_calls"."""

Prompt = str | list[Message]
"""What a response answers: a text that it goes on from, or a conversation up to its turn."""


@runtime_checkable
class RewardScorer(Protocol):
    """Anything that scores a policy's responses in the policy's own tokens, whoever computes it."""

    @property
    def gives(self) -> frozenset[str]:
        """What credit methods can be made from: names of `tokencredit.credit.evidence.NEEDS`."""
        ...

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,
        conversations: Sequence[Prompt] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> ResponseScores:
        """Return scores in nats; the last counted prefix score is the sequence score.

        `ended` is given where texts are scored: their last token does not say whether they ended.
        """
        ...
