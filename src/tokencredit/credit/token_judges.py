"""Credit from models that judge single tokens.

A classifier trained on edits, a language model that rewrites responses, and severities of the
errors that a span classifier marks.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, NumericError, ShapeError


def discriminator_credit(
    token_logits: Float[Tensor, "batch time 2"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Twice the probability that a token is a good one, less 1.

        r_t = 2 p_t − 1 = tanh((z_t⁺ − z_t⁻) / 2),   p_t = softmax(z_t)⁺

    Conserves: no. Causal: yes (if the classifier is). Bounded: by 1. Needs: token logits.

    A response is paid for every token, so a classifier that leans to one side pays for length, or
    against it.

    Args:
        token_logits: of a negative and a positive token, in nats, given by the classifier at the
            judged token itself.
        response_mask: True on response tokens.

    Returns:
        Token scores in [-1, 1]; 0 where the classifier cannot tell.

    Raises:
        ShapeError: there are not two logits for every token.

    Source: Yoon et al. 2024, arXiv 2407.16574 (TLCR). Their code applies the softmax twice, so that
    no score exceeds 0.462 in size, and lays the score of a token beside the log-prob of the next
    one; here there is one softmax, and the score belongs to the token that was judged.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 40.0]]])
    >>> discriminator_credit(logits, torch.tensor([[True, True]]))
    tensor([[0., 1.]])
    """
    if token_logits.shape != (*response_mask.shape, 2):
        raise ShapeError(
            f"token_logits have shape {tuple(token_logits.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected a negative and a positive logit per token"
        )
    logits = token_logits.float().masked_fill(~response_mask[:, :, None], 0.0)
    negative, positive = logits.unbind(-1)
    return torch.tanh((positive - negative) / 2)


MQM_SCORES = (0.0, -1.0, -5.0, -10.0)
"""Correct, minor, major and critical: the penalties of Multidimensional Quality Metrics."""


def severity_credit(
    severity_ids: Int[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    severity_scores: Float[Tensor, "severities"] | Sequence[float] = MQM_SCORES,
) -> Float[Tensor, "batch time"]:
    """The score of the severity of the error that each token is part of.

        r_t = SEV[c_t]

    Conserves: no. Causal: yes. Bounded: by the largest severity score. Needs: severities.

    Severities that depend on the rest of the response, such as those of a model that reads in both
    directions, make the credit depend on it too.

    Args:
        severity_ids: the severity of each token: 0 correct, then from the mildest to the worst, as
            `token_span_labels` or the most likely class of a token classifier give them.
        response_mask: True on response tokens.
        severity_scores: SEV, by default 0, -1, -5 and -10 for correct, minor, major and critical.
            A positive score of correct tokens pays for length.

    Returns:
        Token scores, each of them an entry of `severity_scores`.

    Raises:
        ShapeError: ids and mask differ in shape, or an id inside the mask has no score.

    Source: Ramos et al. 2024, arXiv 2411.05986, which compares several tables; the default is that
    of MQM (Freitag et al. 2021, arXiv 2104.14478: minor 1, major 5) with 10 for critical errors,
    and which of the paper's tables is best could not be checked.

    >>> severity_credit(torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, True]]))
    tensor([[ 0., -1., -5.]])
    """
    table = torch.as_tensor(severity_scores, dtype=torch.float32, device=severity_ids.device)
    if severity_ids.shape != response_mask.shape:
        raise ShapeError(
            f"severity_ids have shape {tuple(severity_ids.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one severity per token"
        )
    ids = severity_ids.masked_fill(~response_mask, 0).long()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
        raise ShapeError(
            f"severity_ids run from {int(ids.min())} to {int(ids.max())} and there are "
            f"{len(table)} severity_scores; expected ids from 0, one score for each"
        )
    return table[ids].masked_fill(~response_mask, 0.0)


def likelihood_credit(
    rewriter_logprobs: Float[Tensor, "batch time"],
    likeliest_logprobs: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    agreement_score: float = 1.0,
    divergence_score: float = -1.0,
    margin: float = 1e-3,
) -> Float[Tensor, "batch time"]:
    """Pay while a rewriter would write the response as it is; charge each token that it would not.

        r_t = r₋ if y_t diverges
            = r₊ if no token up to t does
            = 0  else

        y_t diverges where max_v log π(v | x, y, y_{<t}) − log π(y_t | x, y, y_{<t}) > m

    Conserves: no. Causal: no. Bounded: by the larger score. Needs: log-probs of a rewriter.

    The rewriter is a language model trained to write the better response after it has read the
    prompt and a response: the chosen one whichever of a pair it read. It reads prompt and response
    y as its prompt, then is fed y again token by token. Up to the first divergence this is where
    its own greedy answer agrees with y; after it, what it would write next after the y so far.

    Args:
        rewriter_logprobs: of each response token as the rewriter's answer, in nats.
        likeliest_logprobs: of the token that the rewriter finds likeliest in the same place.
        response_mask: True on response tokens.
        agreement_score: r₊, in nats; not negative.
        divergence_score: r₋, in nats; not positive.
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
