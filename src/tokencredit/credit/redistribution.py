"""A sequence score on the last token, or spread over all by shares that sum to one.

The sum of each row is the sequence score, so at gamma = 1 the objective is unchanged. Where a share
depends on what comes after its token, the reward is not causal: estimators that drop rewards
before an action (reward-to-go, GAE) are biased, the full-return gradient is not.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.masking import last_true_index, masked_row_mean, masked_sum


def uniform_credit(
    sequence_scores: Float[Tensor, "batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """An equal share of the score for every response token.

        r_t = R / T

    Conserves: yes. Causal: no (needs the final length). Bounded: by |R|. Needs: sequence scores.

    Args:
        sequence_scores: in nats.
        response_mask: True on response tokens.

    Returns:
        Token scores in nats; each row sums to its sequence score.

    Raises:
        ShapeError: there is not one score per response.

    Source: Chan et al. 2024, arXiv 2402.00782, the baseline named "uniform".

    >>> uniform_credit(torch.tensor([3.0]), torch.tensor([[True, True, True, False]]))
    tensor([[1., 1., 1., 0.]])
    """
    shares = response_mask / response_mask.sum(-1, keepdim=True).clamp(min=1)
    return (shares * score_column(sequence_scores, response_mask)).masked_fill(~response_mask, 0.0)


def attention_credit(
    sequence_scores: Float[Tensor, "batch"],
    credit_weights: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    credit_beta: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Part of the score spread by attention, the rest on the last token.

        r_t = β R · w_t / Σ_u w_u + (1 − β) R · 1[t = T]

    With the reward model's attention row as weights this is Attention Based Credit (ABC); with
    `mean_attention_received` or `last_attention_received` of the generator it is ABC-D or ABC-D2.

    Conserves: yes. Causal: no. Bounded: by |R|. Needs: sequence scores and weights.

    Args:
        sequence_scores: in nats.
        credit_weights: non-negative attention on each response token, of any scale; what lies
            outside the mask is ignored. A row of zeros is spread evenly.
        response_mask: True on response tokens.
        credit_beta: the share of the score that is spread, from 0 (terminal) to 1.

    Returns:
        Token scores in nats; each row sums to its sequence score.

    Raises:
        ConfigError: `credit_beta` lies outside [0, 1].
        ShapeError: scores, weights and mask do not fit each other.
        NumericError: a weight inside the mask is negative, NaN or infinite.

    Source: Chan et al. 2024, arXiv 2402.00782, equation for the reward of section 3 and
    `experiments/scripts/rlhf_imdb.py` of its code. Their slices assume right padding and no
    special tokens and realign silently where lengths differ; here alignment is the caller's and
    differing lengths are an error.

    >>> weights, mask = torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> attention_credit(torch.tensor([4.0]), weights, mask, credit_beta=0.5)
    tensor([[1.5000, 2.5000, 0.0000]])
    """
    if not 0.0 <= credit_beta <= 1.0:
        raise ConfigError(f"credit_beta is {credit_beta}; expected a number from 0 to 1")
    if credit_weights.shape != response_mask.shape:
        raise ShapeError(
            f"credit_weights have shape {tuple(credit_weights.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one weight per response token: align "
            "differing tokenizations first (`project_token_scores`)"
        )
    weights = credit_weights.float().masked_fill(~response_mask, 0.0)
    totals = weights.sum(-1, keepdim=True)
    if not bool((totals.isfinite() & (weights >= 0)).all()):
        raise NumericError(
            "credit_weights hold a negative, NaN or infinite value inside response_mask; "
            "expected attention probabilities"
        )
    tiny = torch.finfo(torch.float32).tiny  # totals below it would lose part of the score
    weights = torch.where(totals > tiny, weights, response_mask.float())
    shares = weights / weights.sum(-1, keepdim=True).clamp(min=tiny)
    spread = shares * score_column(sequence_scores, response_mask)
    at_the_end = terminal_credit(sequence_scores, response_mask)
    return (credit_beta * spread + (1 - credit_beta) * at_the_end).masked_fill(~response_mask, 0.0)


def quoted_credit(
    sequence_scores: Float[Tensor, "batch"],
    quoted_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    rest: Literal["even", "end"] = "even",
) -> Float[Tensor, "batch time"]:
    """What a judge says by criteria on the words that it quotes, and the rest of the score.

        r_t = q_t + (R − Σ_u q_u) · s_t
        s_t = 1 / T, or 1[t = T] with `rest` "end"

    The rest is what criteria without a quote are worth, and what a transform of the score has
    added or taken.

    Conserves: yes. Causal: no. Bounded: no. Needs: sequence scores and quoted scores.

    Args:
        sequence_scores: R, of the judge.
        quoted_scores: q, of each token what is quoted there; what lies outside the mask is ignored.
        response_mask: True on response tokens.
        rest: where the rest goes, "even" over all tokens or on the last one, "end".

    Returns:
        Token scores in the unit of the judge; each row sums to its sequence score. Without any
        quote they are those of `uniform_credit`, or of `terminal_credit`.

    Raises:
        ConfigError: `rest` is neither.
        ShapeError: scores and mask do not fit each other.
        NumericError: a quoted score inside the mask is NaN or infinite.

    Source: Wang et al. 2025, arXiv 2509.21319 (RLBFF), for quotes of a response as evidence of
    what it is said to be; to pay their tokens is ours.

    >>> quoted, mask = torch.tensor([[0.0, 2.0, 0.0]]), torch.ones(1, 3).bool()
    >>> quoted_credit(torch.tensor([5.0]), quoted, mask)
    tensor([[1., 3., 1.]])
    """
    if rest not in ("even", "end"):
        raise ConfigError(f"rest is {rest!r}; expected 'even' or 'end'")
    if quoted_scores.shape != response_mask.shape:
        raise ShapeError(
            f"quoted_scores have shape {tuple(quoted_scores.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one score per response token"
        )
    quoted = quoted_scores.float().masked_fill(~response_mask, 0.0)
    if not bool(quoted.isfinite().all()):
        raise NumericError("quoted_scores hold NaN or infinity inside response_mask")
    scores = score_column(sequence_scores, response_mask)[:, 0]
    left = (scores - quoted.sum(-1)).masked_fill(~response_mask.any(-1), 0.0)
    share = uniform_credit if rest == "even" else terminal_credit
    return quoted + share(left, response_mask)


def mean_attention_received(
    attention: Float[Tensor, "batch time time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Mean attention that each response token receives from itself and later ones (ABC-D).

        w_t = 1 / (T − t + 1) · Σ_{q=t..T} a_{q,t}

    Args:
        attention: of the generator, heads averaged: entry (q, t) is the attention that response
            token q pays to response token t. Entries above the diagonal are ignored.
        response_mask: True on response tokens.

    Returns:
        Credit weights for `attention_credit`, zero outside the mask.

    Source: Chan et al. 2024, arXiv 2402.00782, ABC-D. Their code writes the attention paid to
    generated token j into column j + 1 (`get_generator_attention_distribution`), so that every
    weight lands one token late and the first token gets none; here it lands on the token that
    received it, and the row of the last token, which their generation loop never computes, counts
    too.

    >>> attention = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])
    >>> mean_attention_received(attention, torch.tensor([[True, True]]))
    tensor([[0.7000, 0.6000]])
    """
    time = response_mask.shape[-1]
    pairs = response_mask[:, :, None] & response_mask[:, None, :]
    pairs = pairs & torch.ones(time, time, dtype=torch.bool, device=attention.device).tril()
    return masked_row_mean(attention.mT.float(), pairs.mT)


def last_attention_received(
    attention: Float[Tensor, "batch time time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Attention that the last response token pays to each response token (ABC-D2).

        w_t = a_{T,t}

    Args:
        attention: of the generator, as in `mean_attention_received`.
        response_mask: True on response tokens.

    Returns:
        Credit weights for `attention_credit`, zero outside the mask.

    Source: Chan et al. 2024, arXiv 2402.00782, ABC-D2. The departure from their code is that of
    `mean_attention_received`.

    >>> attention = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])
    >>> last_attention_received(attention, torch.tensor([[True, True]]))
    tensor([[0.4000, 0.6000]])
    """
    is_last_row = terminal_credit(attention.new_ones(len(attention)), response_mask).bool()
    row = masked_sum(attention.mT.float(), is_last_row[:, None, :].expand_as(attention))
    return row.masked_fill(~response_mask, 0.0)


def score_column(
    sequence_scores: Float[Tensor, "batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch 1"]:
    """Sequence scores in float32 as a column to multiply a (batch, time) tensor with.

    Raises:
        ShapeError: there is not one score per response; broadcasting would hide it.

    >>> score_column(torch.tensor([2.0]), torch.tensor([[True, True]]))
    tensor([[2.]])
    """
    if sequence_scores.shape != response_mask.shape[:1]:
        raise ShapeError(
            f"sequence_scores have shape {tuple(sequence_scores.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected one score per response"
        )
    return sequence_scores.float()[:, None]


def terminal_credit(
    sequence_scores: Float[Tensor, "batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Each sequence score on the last response token, zero elsewhere.

        r_t = R · 1[t = T]

    Conserves: yes. Causal: yes. Bounded: by |R|. Needs: sequence scores.

    Args:
        sequence_scores: in nats.
        response_mask: True on response tokens.

    Returns:
        Token scores in nats; each row sums to its sequence score. A row without response tokens is
        all zero.

    Raises:
        ShapeError: there is not one score per response.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.

    >>> terminal_credit(torch.tensor([2.0]), torch.tensor([[True, True, False]]))
    tensor([[0., 2., 0.]])
    """
    time = torch.arange(response_mask.shape[-1], device=response_mask.device)
    is_last = time == last_true_index(response_mask)[:, None]
    return torch.where(is_last, score_column(sequence_scores, response_mask), 0.0)
