"""From logits to log-probabilities and entropies of response tokens.

A causal model's logits at position i speak about token i + 1: `predicting_positions` shifts them,
and everything after it has column t about response token t. `drawn_logprobs` and `drawn_entropies`
do both at once, and hold fewer tensors of the size of all logits.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
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


def drawn_logprobs(
    logits: Float[Tensor, "batch sequence vocab"],
    token_ids: Int[Tensor, "batch time"],
    *,
    temperature: float = 1.0,
    allowed: Bool[Tensor, "*#batch vocab"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Log-probabilities of the last tokens of each row, in the distribution they were drawn from.

    The same as `token_logprobs` of the `sampled_logits` at the `predicting_positions`, and so are
    its gradients. But the backward pass makes the gradient of the logits from the distributions
    alone, and fills and copies no other tensors of that size.

    Args:
        logits: the model's own; entry i of a row speaks about its token i + 1.
        token_ids: the tokens that stand at the end of each row.
        temperature: of sampling; the logits are divided by it.
        allowed: False for tokens that could not be drawn, as in `sampled_logits`.

    Returns:
        In nats, float32.

    Raises:
        ConfigError: the temperature is not positive.
        ShapeError: nothing stands before the first of these tokens to predict it from.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [9.0, 0.0]]])
    >>> drawn_logprobs(logits, torch.tensor([[1, 1]]))
    tensor([[-0.6931, -0.3133]])
    """
    predicting_positions(logits, token_ids.shape[-1])  # for its error
    found: Tensor = _DrawnLogprobs.apply(  # type: ignore[no-untyped-call]
        logits, token_ids, temperature, allowed
    )
    return found


@torch.no_grad()
def drawn_entropies(
    logits: Float[Tensor, "batch sequence vocab"],
    num_response_tokens: int,
    *,
    temperature: float = 1.0,
    allowed: Bool[Tensor, "*#batch vocab"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Entropies of the distributions that the last tokens of each row were drawn from, in nats.

    Without gradient, a row at a time. Arguments and errors are those of `drawn_logprobs`.

    >>> drawn_entropies(torch.zeros(1, 3, 2), 2)
    tensor([[0.6931, 0.6931]])
    """
    columns = predicting_positions(logits, num_response_tokens)
    rows = [
        token_entropies(_drawn_row(columns, row, temperature, allowed))
        for row in range(len(logits))
    ]
    return torch.stack(rows) if rows else columns[..., 0].float()


class _DrawnLogprobs(torch.autograd.Function):
    """What `drawn_logprobs` does, row by row, so that what is made on the way stays in caches."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        token_ids: Tensor,
        temperature: float,
        allowed: Tensor | None,
    ) -> Tensor:
        columns = predicting_positions(logits, token_ids.shape[-1])
        kept = ctx.needs_input_grad[0]
        logprobs = columns.new_empty(token_ids.shape, dtype=torch.float32)
        # Of every token of the vocabulary, for the backward pass alone.
        every = columns.new_empty(columns.shape if kept else (0,), dtype=torch.float32)
        for row, ids in enumerate(token_ids):
            drawn = _drawn_row(columns, row, temperature, allowed)
            here = torch.log_softmax(drawn, -1, out=every[row]) if kept else drawn.log_softmax(-1)
            logprobs[row] = here.gather(-1, ids[:, None]).squeeze(-1)
        ctx.save_for_backward(every, token_ids, logprobs)
        ctx.shape, ctx.dtype, ctx.temperature = logits.shape, logits.dtype, temperature
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        every, token_ids, logprobs = ctx.saved_tensors
        weights = gradients[0] / ctx.temperature
        # A token that could not be drawn has no logit to move.
        of_token = weights.masked_fill(logprobs == -torch.inf, 0.0)
        found = every.new_empty(ctx.shape, dtype=ctx.dtype)
        columns = predicting_positions(found, token_ids.shape[-1])
        found[:, : -columns.shape[1] - 1] = 0.0
        found[:, -1:] = 0.0
        for row, ids in enumerate(token_ids):
            here = every[row].exp().mul_(-weights[row, :, None])
            columns[row] = here.scatter_add_(-1, ids[:, None], of_token[row, :, None])
        return found, None, None, None


def _drawn_row(
    columns: Float[Tensor, "batch time vocab"],
    row: int,
    temperature: float,
    allowed: Bool[Tensor, "*#batch vocab"] | None,
) -> Float[Tensor, "time vocab"]:
    """The logits of one row, as `sampled_logits` makes them."""
    here = allowed[row] if allowed is not None and allowed.ndim == 3 else allowed
    return sampled_logits(columns[row], temperature=temperature, allowed=here)
