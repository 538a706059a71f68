"""Credit from a language model that rewrites responses: where would it have written otherwise?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, NumericError, ShapeError


def likelihood_credit(
    rewriter_logprobs: Float[Tensor, "batch time"],
    likeliest_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    agreement_score: float = 1.0,
    divergence_score: float = -1.0,
    margin: float = 1e-3,
) -> Float[Tensor, "batch time"]:
    r"""Pay while a rewriter would write the response as it is; charge each token that it would not.

    .. math:: r_t = \begin{cases}
        r_- & \text{if } y_t \text{ diverges} \\
        r_+ & \text{if no token up to } t \text{ does} \\
        0 & \text{else}
        \end{cases} \qquad y_t \text{ diverges: }
        \max_v \log \pi(v \mid x, y, y_{<t}) - \log \pi(y_t \mid x, y, y_{<t}) > m

    Conserves: no. Causal: no. Bounded: by the larger score. Needs: log-probs of a rewriter.

    The rewriter is a language model trained to write the better response after it has read the
    prompt and a response: the chosen one whichever of a pair it read. It reads prompt and response
    y as its prompt, then is fed y again token by token. Up to the first divergence this is where
    its own greedy answer agrees with y; behind it, what it would write next after the y so far.

    Args:
        rewriter_logprobs: of each response token as the rewriter's answer, in nats.
        likeliest_logprobs: of the token that the rewriter finds likeliest in the same place.
        response_mask: True on response tokens.
        agreement_score: r+, in nats; not negative.
        divergence_score: r-, in nats; not positive.
        margin: nats by which another token may be likelier before it counts as a divergence; a
            little above zero, since the two log-probs are rounded.

    Returns:
        Token scores in nats, each one of the two scores or zero. A token that agrees again after a
        divergence is neither paid nor charged.

    Raises:
        ConfigError: a score has the wrong sign, or the margin is negative.
        ShapeError: log-probs and mask differ in shape.
        NumericError: a log-prob is NaN or infinite, or a token is likelier than the likeliest.

    Source: Zhou et al. 2024, arXiv 2409.00162 (sequence-to-sequence reward modeling), figure 2,
    whose caption is all that could be read of it: a positive score until the response diverges
    from the rewriter's output, then the response is fed token by token, and tokens that diverge
    get a negative score. How large the scores are, and that tokens which agree again get none, is
    not verified; the margin is ours. No code was found.

    >>> own = torch.tensor([[-0.1, -3.0, -0.2, -2.0]])
    >>> likeliest = torch.tensor([[-0.1, -0.5, -0.2, -0.3]])
    >>> likelihood_credit(own, likeliest, torch.tensor([[True, True, True, False]]))
    tensor([[ 1., -1.,  0.,  0.]])
    """
    if not (agreement_score >= 0 >= divergence_score and margin >= 0):
        raise ConfigError(
            f"agreement_score is {agreement_score}, divergence_score {divergence_score} and margin "
            f"{margin}; expected agreement_score >= 0, divergence_score <= 0 and margin >= 0"
        )
    if not rewriter_logprobs.shape == likeliest_logprobs.shape == response_mask.shape:
        raise ShapeError(
            f"rewriter_logprobs have shape {tuple(rewriter_logprobs.shape)}, likeliest_logprobs "
            f"{tuple(likeliest_logprobs.shape)} and response_mask {tuple(response_mask.shape)}; "
            "expected one number per response token in each"
        )
    behind = (likeliest_logprobs.float() - rewriter_logprobs.float()).masked_fill(
        ~response_mask, 0.0
    )
    if not bool((behind.isfinite() & (behind >= -max(margin, 1e-3))).all()):
        raise NumericError(
            "inside response_mask a log-prob is NaN or infinite, or a token is likelier than the "
            "likeliest; expected finite log-probs of one model, of the token and of the likeliest "
            "one, in this order"
        )
    diverges = behind > margin
    so_far_agrees = diverges.long().cumsum(-1) == 0
    agreement = torch.where(so_far_agrees, agreement_score, 0.0)
    return torch.where(diverges, divergence_score, agreement).masked_fill(~response_mask, 0.0)
