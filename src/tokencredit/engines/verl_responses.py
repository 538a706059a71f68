"""Responses as verl hands them to a reward manager, and scores as verl carries them back.

verl pays one number per response: what a reward manager returns is put on the last token, except
where the manager's own class or the agent loop says otherwise. `ScoreWithTokens` is that number and
brings the token scores along, through Ray and pydantic, to whoever places them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.batch import ResponseBatch
from tokencredit.engines.versions import require_version
from tokencredit.errors import DataError, ShapeError

require_version("verl", at_least="0.9.1", below="0.10", extra="verl")
from verl import DataProto  # noqa: E402

RESPONSE_MASK = "tokencredit_response_mask"
"""Where an agent loop tells the reward manager which tokens the policy chose."""


class ScoreWithTokens(float):
    """A sequence score that carries the token scores it is the sum of.

    >>> score = ScoreWithTokens([0.5, -1.0])
    >>> score, score.token_scores
    (-0.5, [0.5, -1.0])
    """

    token_scores: list[float]

    def __new__(cls, token_scores: Sequence[float]) -> "ScoreWithTokens":
        """Sum, and keep the parts."""
        score = super().__new__(cls, math.fsum(token_scores))
        score.token_scores = list(token_scores)
        return score

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.token_scores,)


@dataclass(frozen=True)
class PolicyResponse:
    """One response of a policy, without padding.

    Attributes:
        prompt_ids: what was asked, in the policy's tokens.
        response_ids: what was answered, with the words of tools.
        response_mask: True on the tokens of the policy.
        messages: what was asked, as verl's data hold it; None where they do not.
    """

    prompt_ids: Int[Tensor, "prompt"]
    response_ids: Int[Tensor, "time"]
    response_mask: Bool[Tensor, "time"]
    messages: list[dict[str, Any]] | None = None


def policy_response(data: DataProto) -> PolicyResponse:
    """The last response in the data, as verl's own reward managers take it.

    The mask of the policy's tokens is that of the batch, or of the agent loop where the batch has
    none; without either, every token of the response is the policy's.

    Args:
        data: with `prompts`, `responses` and `attention_mask`, padded on whichever side.

    Raises:
        DataError: a field is missing, or the response has no token of the policy.
    """
    last, batch = data[-1:], data.batch
    missing = {"prompts", "responses", "attention_mask"} - set(batch.keys())
    if missing:
        raise DataError(
            f"verl's batch has the fields {', '.join(sorted(batch.keys()))}; expected "
            f"{', '.join(sorted(missing))} besides"
        )
    prompts, responses = last.batch["prompts"][0], last.batch["responses"][0]
    prompt_real, response_real = _real(last, len(prompts), len(responses))
    response_ids = responses[response_real]
    mask = _policy_mask(last, response_real)
    if not bool(mask.any()):
        raise DataError(
            f"a response of {len(mask)} tokens has none of the policy; expected one at least: "
            "raise data.max_response_length, or drop prompts that leave no room for an answer"
        )
    return PolicyResponse(prompts[prompt_real], response_ids, mask, _messages(last))


def _real(
    last: DataProto, prompt_width: int, response_width: int
) -> tuple[Bool[Tensor, "prompts"], Bool[Tensor, "responses"]]:
    """True on what is not padding.

    While responses stream in, verl joins prompt and response before it pads, so that the attention
    mask of a shorter row does not lie over its columns; there it gives lengths besides.
    """
    lengths = [last.non_tensor_batch.get(f"{name}_len") for name in ("prompt", "response")]
    if lengths[0] is not None and lengths[1] is not None:
        widths = zip(lengths, (prompt_width, response_width), strict=True)
        prompt, response = (torch.arange(width) < int(n[0]) for n, width in widths)
        return prompt, response
    attended = last.batch["attention_mask"][0].bool()
    return attended[:prompt_width], attended[prompt_width:]


def _policy_mask(last: DataProto, real: Bool[Tensor, "responses"]) -> Bool[Tensor, "time"]:
    if "response_mask" in last.batch.keys():  # noqa: SIM118 - a TensorDict is no mapping here
        return last.batch["response_mask"][0].bool()[real]
    extra = last.non_tensor_batch.get("tool_extra_fields")
    told = None if extra is None else (extra[0] or {}).get(RESPONSE_MASK)
    count = int(real.sum())
    if told is None:
        return torch.ones(count, dtype=torch.bool)
    if len(told) != count:
        raise DataError(
            f"the agent loop's mask has {len(told)} tokens and its response {count}; expected one "
            "entry per token"
        )
    return torch.tensor(told, dtype=torch.bool)


def _messages(last: DataProto) -> list[dict[str, Any]] | None:
    prompts = last.non_tensor_batch.get("raw_prompt")
    return None if prompts is None else [dict(message) for message in prompts[0]]


def joined_responses(responses: Sequence[PolicyResponse]) -> ResponseBatch:
    """Responses as one batch: prompts padded on the left, responses on the right."""
    return ResponseBatch.of_rows(
        [row.prompt_ids.tolist() for row in responses],
        [row.response_ids.tolist() for row in responses],
        masks=[row.response_mask.tolist() for row in responses],
        pad_token_id=0,
    )


def placed_scores(data: DataProto, scores: Sequence[float]) -> Float[Tensor, "batch time"]:
    """Token scores of whole batches in verl's columns; a plain number goes to the last token.

    Args:
        data: with `prompts`, `responses` and `attention_mask`.
        scores: one per row.

    Raises:
        ShapeError: there is not one token score for each token of a response.
    """
    width = data.batch["prompts"].shape[1]
    attended = data.batch["attention_mask"][:, width:].bool()
    placed = torch.zeros(attended.shape, dtype=torch.float32)
    for row, (score, real) in enumerate(zip(scores, attended, strict=True)):
        placed[row, real] = token_scores_of(score, int(real.sum()))
    return placed.to(data.batch["responses"].device)


def token_scores_of(score: float, length: int) -> Float[Tensor, "{length}"]:
    """What each of so many tokens is paid; of a plain number, the last one gets it all.

    Raises:
        ShapeError: there are more or fewer token scores than tokens.
    """
    if not isinstance(score, ScoreWithTokens):
        scores = torch.zeros(length)
        scores[-1:] = score
        return scores
    if len(score.token_scores) != length:
        raise ShapeError(
            f"{len(score.token_scores)} token scores for a response of {length} tokens; expected "
            "one per token: an agent loop must not change its response after it was scored"
        )
    return torch.tensor(score.token_scores, dtype=torch.float32)
