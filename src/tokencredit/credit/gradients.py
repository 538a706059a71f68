"""Credit from the gradient of the score with respect to the embeddings of the response tokens.

It costs one backward pass, or as many as there are steps on the way from a baseline, instead of a
score for every token. What a model has to offer is its score as a differentiable function of
embeddings; how a token that is not there looks is the choice of the baseline.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, ModelError, NumericError, ShapeError

ScoreOfEmbeddings = Callable[[Float[Tensor, "batch time width"]], Float[Tensor, "batch"]]
"""Score of each response, in nats, when its tokens have these embeddings.

No score may depend on the embeddings of another response. Embeddings outside the response mask
are given as zeros, and mean nothing."""


def gradient_times_input_credit(
    score_of_embeddings: ScoreOfEmbeddings,
    embeddings: Float[Tensor, "batch time width"],
    response_mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Gradient of the score at the embedding of a token, multiplied with that embedding.

        r_t = Σ_d e_{t,d} · ∂R / ∂e_{t,d}

    Conserves: no. Causal: no. Bounded: no. Needs: embedding gradients.

    It is what the score would lose if it were linear and the embedding of the token became zero.

    Args:
        score_of_embeddings: score of each response, in nats, differentiable.
        embeddings: of the response tokens; what lies outside the mask is ignored.
        response_mask: True on response tokens.

    Returns:
        Token scores in nats; the sum of a row means nothing.

    Raises:
        ShapeError: embeddings, mask and scores do not fit each other.
        ModelError: the score has no gradient with respect to the embeddings.
        NumericError: a score or a gradient is NaN or infinite.

    Source: Shrikumar et al. 2017, arXiv 1704.02685, section 2; the gradient alone is Simonyan et
    al. 2013, arXiv 1312.6034, who take the largest partial derivative of an input by magnitude.
    Here the sum over the embedding keeps the sign.

    >>> embeddings, mask = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]]), torch.tensor([[True, True]])
    >>> gradient_times_input_credit(lambda e: e.square().sum((1, 2)), embeddings, mask)
    tensor([[10., 18.]])
    """
    inputs = _on_mask("embeddings", embeddings, response_mask)
    return _token_sums(inputs * _gradients(score_of_embeddings, inputs), response_mask)


def integrated_gradients_credit(
    score_of_embeddings: ScoreOfEmbeddings,
    embeddings: Float[Tensor, "batch time width"],
    baseline: Float[Tensor, "batch time width"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    steps: int = 32,
) -> Float[Tensor, "batch time"]:
    """Gradient times input, averaged on the straight way from a baseline to the embeddings.

        r_t = Σ_d (e_{t,d} − b_{t,d}) · ∫_0^1 ∂R / ∂e_{t,d} (b + a (e − b)) da

    Conserves: up to the score of the baseline. Causal: no. Bounded: no. Needs: embedding gradients.

    Args:
        score_of_embeddings: score of each response, in nats, differentiable.
        embeddings: of the response tokens; what lies outside the mask is ignored.
        baseline: embeddings of tokens that say nothing, such as a filler token. Zeros are usual.
        response_mask: True on response tokens.
        steps: gradients per response. The integral is a Gauss-Legendre sum: exact for a score
            that is a polynomial of degree up to 2 `steps` on the way. A model that normalises its
            inputs can turn sharply there and need a hundred: look at the sums of the rows.

    Returns:
        Token scores in nats; each row sums to the score of the response less the score of the
        baseline, as nearly as the sum over the steps is the integral.

    Raises:
        ConfigError: `steps` is not positive.
        ShapeError: embeddings, baseline, mask and scores do not fit each other.
        ModelError: the score has no gradient with respect to the embeddings.
        NumericError: a score or a gradient is NaN or infinite.

    Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 1. They approximate the integral
    by a sum at even distances (equation 3), which needs more steps for the same error.

    >>> embeddings, mask = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]]), torch.tensor([[True, True]])
    >>> integrated_gradients_credit(
    ...     lambda e: e.square().sum((1, 2)), embeddings, torch.zeros(1, 2, 2), mask, steps=1
    ... )
    tensor([[5., 9.]])
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; expected at least one gradient")
    if baseline.shape != embeddings.shape:
        raise ShapeError(
            f"baseline has shape {tuple(baseline.shape)} and embeddings {tuple(embeddings.shape)}; "
            "expected the same: expand one embedding with `expand_as`"
        )
    start = _on_mask("baseline", baseline, response_mask)
    way = _on_mask("embeddings", embeddings, response_mask) - start
    mean_gradient = torch.zeros_like(way)
    for point, weight in _gauss_legendre(steps):
        mean_gradient += weight * _gradients(score_of_embeddings, start + point * way)
    return _token_sums(way * mean_gradient, response_mask)


def _on_mask(
    name: str, values: Float[Tensor, "batch time width"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time width"]:
    """Values in float32 and without gradient, zeros outside the mask."""
    if values.shape[:2] != response_mask.shape:
        raise ShapeError(
            f"{name} have shape {tuple(values.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one embedding per response token"
        )
    return values.detach().float().masked_fill(~response_mask[:, :, None], 0.0)


def _token_sums(
    products: Float[Tensor, "batch time width"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    return products.sum(-1).masked_fill(~response_mask, 0.0)


def _gradients(
    score_of_embeddings: ScoreOfEmbeddings, embeddings: Float[Tensor, "batch time width"]
) -> Float[Tensor, "batch time width"]:
    """Gradient of each response's score with respect to its own embeddings."""
    with torch.enable_grad():
        inputs = embeddings.detach().requires_grad_()
        scores = score_of_embeddings(inputs)
        if scores.shape != embeddings.shape[:1]:
            raise ShapeError(
                f"score_of_embeddings gives scores of shape {tuple(scores.shape)} for "
                f"{len(embeddings)} responses; expected one score per response"
            )
        gradient = None
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(scores.sum(), inputs, allow_unused=True)
    if gradient is None:
        raise ModelError(
            "the score has no gradient with respect to the embeddings; expected a function that "
            "computes with what it is given: neither detached nor under torch.no_grad()"
        )
    if not bool(scores.isfinite().all() & gradient.isfinite().all()):
        raise NumericError(
            "a score or its gradient is NaN or infinite; expected finite ones: look for NaN "
            "weights, or load the model in float32"
        )
    return gradient


def _gauss_legendre(nodes: int) -> list[tuple[float, float]]:
    """Points in (0, 1) and weights, exact for polynomials of degree below twice the nodes.

    Source: Golub and Welsch 1969, "Calculation of Gauss quadrature rules".
    """
    order = torch.arange(1, nodes, dtype=torch.float64)
    beside_diagonal = torch.diag(order / (4 * order.square() - 1).sqrt(), diagonal=1)
    points, vectors = torch.linalg.eigh(beside_diagonal + beside_diagonal.mT)
    return list(zip(((points + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))
