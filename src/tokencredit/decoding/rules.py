"""One rule for guided decoding: candidates, their scores added to the language model, one drawn.

    π(v | x, y_{<t}) ∝ exp((log p(v | x, y_{<t}) + β · s(x, y_{<t} v)) / τ),   v ∈ C_t

Published methods differ in the candidates C, in what the score s is and in β and τ;
`GUIDANCE_METHODS` lists them. The temperature divides the sum, not the language model alone.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.masking import masked_sum


@dataclass(frozen=True)
class GuidanceMethod:
    """A published method as settings of the rule.

    Attributes:
        words: how it chooses the next token, in a line.
        source: the arXiv number of its paper.
        guide: arguments of the guide: `guidance_beta`, which tokens are candidates, `clip`.
        sampling: arguments of `generate()`: the temperature, and a top-k of the sum.
        needs: the reward model: one trained on whole `sequences`, on all their `prefixes`, or one
            that scores the whole `vocabulary` in one pass.
        vocabulary_scores: what of the last is added: its logits, or its log-probabilities.
        differs: from what was published; empty where nothing is known to differ.
    """

    words: str
    source: str
    guide: dict[str, Any]
    sampling: dict[str, Any]
    needs: Literal["sequences", "prefixes", "vocabulary"]
    vocabulary_scores: Literal["logits", "logprobs"] = "logits"
    differs: str = ""

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; otherwise the largest sum is taken."""
        return bool(self.sampling["do_sample"])


_GREEDY = {"do_sample": False}
_SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

_ARGS = "the code adds scores to logits, not to log-probabilities, which makes the same choice"

GUIDANCE_METHODS: dict[str, GuidanceMethod] = {
    "args-greedy": GuidanceMethod(
        "takes the largest sum of log-probability and score (ARGS)",
        "2402.01694",
        {"guidance_beta": 1.0, "top_k": 10},
        _GREEDY,
        needs="sequences",
        differs=_ARGS,
    ),
    "args-stochastic": GuidanceMethod(
        "draws by the sum of log-probability and score, at a temperature of 0.7",
        "2402.01694",
        {"guidance_beta": 1.0, "top_k": 10},
        _SAMPLED | {"temperature": 0.7},
        needs="sequences",
        differs=_ARGS,
    ),
    "pargs": GuidanceMethod(
        "draws by the sum of log-probability and score of the prefix (PARGS)",
        "2406.07780",
        {"guidance_beta": 2.0, "top_k": 10},
        _SAMPLED,
        needs="prefixes",
        differs="the prefix is read as the reward model learnt it; the code reads it otherwise in "
        "training and in decoding",
    ),
    "pargs-greedy": GuidanceMethod(
        "takes the largest sum of log-probability and score of the prefix",
        "2406.07780",
        {"guidance_beta": 1.0, "top_k": 10},
        _GREEDY,
        needs="prefixes",
        differs="as `pargs`",
    ),
    "rad": GuidanceMethod(
        "draws by the sum of log-probability and score, clipped to [0, 1] (RAD)",
        "2310.09520",
        {"guidance_beta": 30.0, "top_k": 20, "clip": (0.0, 1.0)},
        _SAMPLED,
        needs="prefixes",
        differs="a reward model with other tokens reads the text with the candidate; the code "
        "tokenises each candidate by itself",
    ),
    # The top k is taken of the sum, so that a token the language model deems absurd can enter.
    "farma": GuidanceMethod(
        "draws from the 10 largest sums of logit and value, of the whole vocabulary (FaRMA)",
        "2502.04517",
        {"guidance_beta": 1.0, "top_k": 0},
        _SAMPLED | {"top_k": 10},
        needs="vocabulary",
        differs="both models keep their caches, which the code does without",
    ),
    "genarm": GuidanceMethod(
        "draws from the product of the policy and an autoregressive reward model (GenARM)",
        "2410.08193",
        {"guidance_beta": 1.0, "top_k": 0},
        _SAMPLED,
        needs="vocabulary",
        vocabulary_scores="logprobs",
        differs="the code averages both and divides the temperature by 1 + alpha, which is the "
        "same law",
    ),
    "cd": GuidanceMethod(
        "draws by the sum of log-probability and value of each next token (controlled decoding)",
        "2310.17022",
        {"guidance_beta": 1.0, "top_k": 0},
        _SAMPLED,
        needs="vocabulary",
        differs="the value of every token comes from one pass; the formula is from memory of the "
        "paper",
    ),
}
"""The rule with the settings of each paper or its code. Scores of reward models differ in scale by
orders of magnitude: `guidance_beta` is where to start, not what to keep."""


def candidate_tokens(
    logprobs: Float[Tensor, "batch vocab"],
    *,
    top_k: int = 10,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_candidates: int | None = None,
) -> tuple[Int[Tensor, "batch candidates"], Bool[Tensor, "batch candidates"]]:
    """The tokens that are scored, most probable first.

    Args:
        logprobs: of the language model; logits do as well. Minus infinity bans a token.
        top_k: this many of the most probable tokens; 0 for all.
        top_p: of these, the fewest with at least this share of their probability; 1 for all.
        min_p: of these, those at least this fraction as probable as the most probable one.
        max_candidates: no more than this many in any case.

    Returns:
        Ids, and True where they count: rows with fewer candidates repeat their first one at the
        end. With no limit at all every token is a candidate, in the order of the vocabulary.

    Raises:
        ConfigError: a number is out of its range, or `top_k` larger than the vocabulary.
        NumericError: a row holds NaN or bans every token.

    >>> probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.9, 0.05, 0.05]])
    >>> candidate_tokens(probabilities.log(), top_k=3, top_p=0.8)
    (tensor([[1, 2],
            [0, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    vocab = logprobs.shape[-1]
    _require_ranges(vocab, top_k, top_p, min_p, max_candidates)
    _require_some_token(logprobs)
    logprobs = logprobs.float().log_softmax(-1)
    if top_k == 0 and top_p == 1.0 and min_p == 0.0 and max_candidates is None:
        return torch.arange(vocab, device=logprobs.device).expand(logprobs.shape), (
            logprobs > -torch.inf
        )
    most = min(top_k or vocab, max_candidates or vocab)
    kept, ids = logprobs.topk(most)
    mask = kept > -torch.inf
    if top_p < 1.0:
        whole = logprobs.topk(top_k).values.logsumexp(-1, keepdim=True) if top_k else 0.0
        shares = (kept - whole).exp()
        mask = mask & (shares.cumsum(-1) - shares < top_p)
    if min_p > 0.0:
        mask = mask & (kept >= kept[:, :1] + math.log(min_p))
    if top_p < 1.0 or min_p > 0.0:
        widest = int(mask.sum(-1).amax()) if len(mask) else 0
        ids, mask = ids[:, :widest], mask[:, :widest]
    return torch.where(mask, ids, ids[:, :1]), mask


def guided_logits(
    logprobs: Float[Tensor, "batch vocab"],
    candidate_ids: Int[Tensor, "batch candidates"],
    candidate_mask: Bool[Tensor, "batch candidates"],
    scores: Float[Tensor, "batch candidates"],
    *,
    guidance_beta: float,
    clip: tuple[float, float] | None = None,
) -> Float[Tensor, "batch vocab"]:
    """Log-probabilities of the candidates with their scores added; minus infinity elsewhere.

        z_v = log p(v) + β · min(max(s_v, a), b),   v ∈ C

    Args:
        logprobs: of the language model, or its logits: the same law after a softmax.
        candidate_ids: as of `candidate_tokens`.
        candidate_mask: True on candidates that count.
        scores: of the text with each candidate, in nats. What is the same for all candidates of a
            row (the score of the text so far) changes nothing. Minus infinity takes one out.
        guidance_beta: units of log-probability per unit of score; 0 leaves the language model.
        clip: smallest and largest score that tells.

    Returns:
        Logits, float32: what to sample from, or to take the largest of.

    Raises:
        ConfigError: `guidance_beta` is not finite, or `clip` not ascending.
        ShapeError: candidates, mask and scores do not fit each other.
        NumericError: the score of a candidate is NaN or plus infinity.

    Source: Khanov et al. 2024, arXiv 2402.01694, the score of section 2; clipped by Deng and Raffel
    2023, arXiv 2310.09520. The published code of the first adds scores to logits instead of
    log-probabilities, which differs by a constant.

    >>> logprobs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> ids, mask = candidate_tokens(logprobs, top_k=2)
    >>> guided_logits(logprobs, ids, mask, torch.tensor([[0.0, 2.0]]), guidance_beta=1.0)
    tensor([[-0.6931,  0.7960,    -inf]])
    """
    if not math.isfinite(guidance_beta) or (clip is not None and not clip[0] < clip[1]):
        raise ConfigError(
            f"guidance_beta is {guidance_beta} and clip {clip}; expected a finite number, and None "
            "or the smallest and the largest score that tells"
        )
    if not candidate_ids.shape == candidate_mask.shape == scores.shape:
        raise ShapeError(
            f"candidate_ids have shape {tuple(candidate_ids.shape)}, candidate_mask "
            f"{tuple(candidate_mask.shape)} and scores {tuple(scores.shape)}; expected one score "
            "per candidate"
        )
    scores = scores.float().masked_fill(~candidate_mask, -torch.inf)
    wrong = (scores.isnan() | (scores == torch.inf)).any(-1)
    if bool(wrong.any()):
        raise NumericError(
            f"candidates have NaN or infinite scores in rows {wrong.nonzero().flatten().tolist()}; "
            "expected finite ones: look for NaN weights of the reward model, or load it in float32 "
            "or bfloat16 rather than float16"
        )
    counts = scores > -torch.inf
    added = scores.masked_fill(~counts, 0.0)
    added = guidance_beta * (added if clip is None else added.clamp(*clip))
    guided = logprobs.float().gather(-1, candidate_ids) + added
    nothing = torch.full(logprobs.shape, -torch.inf, device=logprobs.device)
    return nothing.scatter_reduce(
        -1, candidate_ids, guided.masked_fill(~counts, -torch.inf), "amax"
    )


def chosen_tokens(
    logits: Float[Tensor, "batch vocab"],
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch"]:
    """One token per row: drawn from the softmax of the logits over the temperature.

    Args:
        logits: as of `guided_logits`.
        temperature: divides them; 0 takes the largest.
        generator: of the random numbers; the global one by default.

    Raises:
        ConfigError: the temperature is negative or no number.
        NumericError: a row holds NaN or bans every token.

    >>> chosen_tokens(torch.tensor([[0.0, 2.0, -torch.inf]]), temperature=0.0)
    tensor([1])
    """
    if not 0.0 <= temperature < math.inf:
        raise ConfigError(f"temperature is {temperature}; expected 0 (the largest) or more")
    _require_some_token(logits)
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def guidance_kl(
    logits: Float[Tensor, "batch vocab"], logprobs: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch"]:
    """How far guidance moves the next token: its Kullback-Leibler divergence from the model.

        KL = Σ_v π(v) (log π(v) − log p(v))

    Args:
        logits: of the guided distribution.
        logprobs: of the language model, or its logits.

    Returns:
        Nats, float32; not negative.

    >>> guidance_kl(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    guided, plain = logits.float().log_softmax(-1), logprobs.float().log_softmax(-1)
    possible = guided > -torch.inf
    return masked_sum(guided.exp() * (guided - plain), possible).clamp(min=0.0)


def _require_some_token(logits: Float[Tensor, "batch vocab"]) -> None:
    """Every row holds numbers, and not only minus infinity."""
    wrong = ~(logits.amax(-1) < torch.inf) | (logits.amax(-1) == -torch.inf)
    if bool(wrong.any()):
        raise NumericError(
            f"rows {wrong.nonzero().flatten().tolist()} of the logits hold NaN or infinity, or ban "
            "every token; expected at least one token with a finite logit"
        )


def _require_ranges(
    vocab: int, top_k: int, top_p: float, min_p: float, max_candidates: int | None
) -> None:
    """Settings of `candidate_tokens` within their ranges."""
    if not (0 <= top_k <= vocab and 0.0 < top_p <= 1.0 and 0.0 <= min_p <= 1.0):
        raise ConfigError(
            f"top_k is {top_k}, top_p {top_p} and min_p {min_p}; expected top_k from 0 (all) to "
            f"the {vocab} tokens of the vocabulary, top_p in (0, 1] and min_p in [0, 1]"
        )
    if max_candidates is not None and max_candidates < 1:
        raise ConfigError(f"max_candidates is {max_candidates}; expected 1 or more, or None")
