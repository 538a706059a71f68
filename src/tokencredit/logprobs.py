"""From logits to log-probabilities and entropies of response tokens.

A causal model's logits at position i speak about token i + 1: `predicting_positions` shifts them,
and everything after it has column t about response token t.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokencredit.errors import ConfigError, ShapeError


def predicting_positions(
    values: Shaped[Tensor, "batch sequence *rest"], num_response_tokens: int
) -> Shaped[Tensor, "batch time *rest"]:
    """The entries from which each of the last `num_response_tokens` tokens is predicted.

    Entry t of the result stood one position before response token t: right for logits and for the
    values V(s_t) of a critic.

    Raises:
        ShapeError: nothing stands before the first of these tokens to predict it from.

    >>> predicting_positions(torch.arange(5)[None], 2)
    tensor([[2, 3]])
    """
    end = values.shape[1] - 1
    if num_response_tokens > end:
        raise ShapeError(
            f"{num_response_tokens} response tokens in a sequence of {values.shape[1]}; expected "
            "at least one prompt token (BOS, for example) before them"
        )
    return values[:, end - num_response_tokens : end]


def sampled_logits(
    logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float = 1.0,
    allowed: Bool[Tensor, "*#batch vocab"] | None = None,
) -> Float[Tensor, "*batch vocab"]:
    """Logits, in float32, of the distribution that tokens were really drawn from.

    Args:
        logits: the model's own.
        temperature: of sampling; the model's logits are divided by it.
        allowed: False for tokens that could not be drawn (a suppressed end of sequence, all but
            one where a token was forced, what top-k or top-p cut off).

    Raises:
        ConfigError: the temperature is not positive.

    >>> allowed = torch.tensor([True, False])
    >>> sampled_logits(torch.tensor([2.0, 4.0]), temperature=2.0, allowed=allowed)
    tensor([1., -inf])
    """
    if temperature <= 0:
        raise ConfigError(f"temperature is {temperature}; expected a positive number")
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    return scaled if allowed is None else scaled.masked_fill(~allowed, -torch.inf)


def top_allowed(
    logits: Float[Tensor, "*batch vocab"], *, top_k: int = 0, top_p: float = 1.0
) -> Bool[Tensor, "*batch vocab"]:
    """Tokens that top-k and then top-p sampling leave to draw from.

    Args:
        logits: after temperature and suppression.
        top_k: keep this many; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities sum to at least this; 1 keeps all.

    Raises:
        ConfigError: `top_k` is negative or `top_p` not positive, so that nothing would be left.

    >>> top_allowed(torch.tensor([0.0, 2.0, 1.0]), top_k=2)
    tensor([False,  True,  True])
    >>> top_allowed(torch.tensor([0.5, 0.3, 0.2]).log(), top_p=0.6)
    tensor([ True,  True, False])
    """
    if top_k < 0 or top_p <= 0:
        raise ConfigError(
            f"top_k is {top_k} and top_p {top_p}; expected top_k >= 0 (0 keeps all) and "
            "top_p in (0, 1] (1 keeps all)"
        )
    allowed = logits > -torch.inf
    if 0 < top_k < logits.shape[-1]:
        allowed &= logits >= logits.topk(top_k).values[..., -1:]
    if top_p < 1.0:
        ordered, order = logits.masked_fill(~allowed, -torch.inf).sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        allowed &= torch.zeros_like(allowed).scatter(-1, order, mass_before < top_p)
    return allowed


def token_logprobs(
    logits: Float[Tensor, "*batch vocab"], token_ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability of each token under the logits of its own column, in nats.

    >>> token_logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([-0.6931])
    """
    losses = cross_entropy(logits.flatten(0, -2), token_ids.flatten(), reduction="none")
    return -losses.view(token_ids.shape)


def token_entropies(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy of the distribution at each column, in nats.

    >>> token_entropies(torch.tensor([[0.0, 0.0, float("-inf")]]))
    tensor([0.6931])
    """
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
