"""How tokens are drawn from a policy: temperature, top-k, top-p, and what may be drawn at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.logprobs import sampled_logits, top_allowed


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        min_new_tokens: no end of sequence before this many tokens.
        max_new_tokens: responses are cut here.
        temperature: logits are divided by it; 0 takes the most probable token, which searches can
            do and training cannot: there is no distribution to learn from.
        top_k: draw from this many tokens; 0 for all.
        top_p: draw from the fewest tokens with this probability together; 1 for all.
        suppress_tokens: ids that are never drawn.
        force_eos: draw the end of sequence, the first where there are several, as the last token of
            a response of full length.

    Raises:
        ConfigError: a number is out of its range.

    >>> Sampling(max_new_tokens=4, temperature=-1.0)
    Traceback (most recent call last):
    tokencredit.errors.ConfigError: temperature is -1.0; expected 0 (the most probable) or more
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppress_tokens: tuple[int, ...] = ()
    force_eos: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens {self.max_new_tokens};"
                " expected 0 <= min <= max and max >= 1"
            )
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}; expected 0 (the most probable) or more"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_k is {self.top_k} and top_p {self.top_p}; expected top_k >= 0 (0 for all) "
                "and top_p in (0, 1]"
            )

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p cut the distribution, beyond temperature and suppression."""
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def bans(self) -> bool:
        """Whether there are tokens that cannot be drawn in some places."""
        return self.min_new_tokens > 0 or len(self.suppress_tokens) > 0 or self.force_eos

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn with the model's own probabilities, wherever they may be."""
        return self.temperature == 1.0 and not self.truncates

    @property
    def without_shape(self) -> "Sampling":
        """The lengths and the bans alone, with the model's own probabilities."""
        return replace(self, temperature=1.0, top_k=0, top_p=1.0)


def end_ids(eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """What ends a response, as a tuple, however it was named.

    >>> end_ids(2), end_ids([2, 5]), end_ids(None)
    ((2,), (2, 5), ())
    """
    if eos_token_id is None:
        return ()
    return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)


def drawable_tokens(
    sampling: Sampling, vocab_size: int, eos_token_id: int | Sequence[int] | None
) -> Bool[Tensor, "time vocab"]:
    """Which tokens suppression and forcing leave at each of `max_new_tokens` positions.

    Args:
        sampling: says what is suppressed and forced.
        vocab_size: of the policy's logits.
        eos_token_id: ends a response; several where any of them does, None or none where nothing
            does.

    Raises:
        ConfigError: a suppressed id lies outside the vocabulary.

    >>> drawable_tokens(Sampling(max_new_tokens=2, min_new_tokens=1, force_eos=True), 3, 2)
    tensor([[ True,  True, False],
            [False, False,  True]])
    """
    places = torch.arange(sampling.max_new_tokens)
    return drawable_rows(sampling, vocab_size, eos_token_id)[row_of_place(sampling, places)]


def drawable_rows(
    sampling: Sampling, vocab_size: int, eos_token_id: int | Sequence[int] | None
) -> Bool[Tensor, "three vocab"]:
    """What may be drawn early, later, and in a last place that is forced: all that can differ.

    A vocabulary of 150,000 tokens and a thousand places make 150 MB of `drawable_tokens`; these
    rows, chosen by `row_of_place`, are the same in less.

    Args:
        sampling: as of `drawable_tokens`.
        vocab_size: as there.
        eos_token_id: as there.

    Raises:
        ConfigError: a suppressed id lies outside the vocabulary.
    """
    if any(not 0 <= token < vocab_size for token in sampling.suppress_tokens):
        raise ConfigError(
            f"suppress_tokens are {list(sampling.suppress_tokens)}; expected ids from 0 to "
            f"{vocab_size - 1}"
        )
    rows = torch.ones(3, vocab_size, dtype=torch.bool)
    rows[:, list(sampling.suppress_tokens)] = False
    ends = end_ids(eos_token_id)
    if ends:
        rows[0, list(ends)] = False
        rows[2] = torch.arange(vocab_size) == ends[0]
    return rows


def row_of_place(sampling: Sampling, places: Int[Tensor, "places"]) -> Int[Tensor, "places"]:
    """Which of `drawable_rows` holds at each place of a response, counted from 0.

    >>> sampling = Sampling(max_new_tokens=4, min_new_tokens=1, force_eos=True)
    >>> row_of_place(sampling, torch.arange(4))
    tensor([0, 1, 1, 2])
    """
    rows = (places >= sampling.min_new_tokens).long()
    return (
        rows.masked_fill(places == sampling.max_new_tokens - 1, 2) if sampling.force_eos else rows
    )


def sampling_logits(
    logits: Float[Tensor, "*batch vocab"],
    drawable: Bool[Tensor, "*#batch vocab"] | None,
    sampling: Sampling,
) -> Float[Tensor, "*batch vocab"]:
    """Logits of the distribution that `sampling` draws from, top-k and top-p included.

    Args:
        logits: of the policy.
        drawable: as of `drawable_tokens`, for these places; None where nothing is banned.
        sampling: how to draw.

    Raises:
        ConfigError: the temperature is 0, which leaves no distribution.
    """
    scaled = sampled_logits(logits, temperature=sampling.temperature, allowed=drawable)
    if not sampling.truncates:
        return scaled
    allowed = top_allowed(scaled, top_k=sampling.top_k, top_p=sampling.top_p)
    return scaled.masked_fill(~allowed, -torch.inf)
