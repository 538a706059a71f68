"""Every search by its name, with the function, its group of settings and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from tokencredit.decoding.search.hf_cascade import CardsSettings, cascade_sampling
from tokencredit.decoding.search.hf_implicit_search import implicit_beam_search, implicit_scorer
from tokencredit.decoding.search.hf_sampling import (
    Drawing,
    best_of_n,
    best_of_n_kl,
    require_different,
)
from tokencredit.decoding.search.hf_segment_search import (
    ResponseScorer,
    SearchOutput,
    speculative_rejection,
    tree_search,
)
from tokencredit.decoding.search.implicit_rules import layer_lengths
from tokencredit.errors import ConfigError
from tokencredit.ranges import require_at_least
from tokencredit.sampling import Sampling


@dataclass(frozen=True)
class SearchTask:
    """What every search is given.

    Attributes:
        model: a causal language model in evaluation mode, which writes.
        prompt_ids: padded on the left.
        prompt_mask: True on real tokens.
        score: of responses, finished or not, by the reward model.
        sampling: how tokens are drawn.
        n: responses that are drawn, or begun, for each prompt.
        implicit: a model that DPO trained and its reference; None where none is needed.
        eos_token_ids: end a response, and belong to it.
        pad_token_id: stands where there is no token.
        draw: what draws whole responses in the model's place; None for the model.
    """

    model: PreTrainedModel
    prompt_ids: Int[Tensor, "prompts prompt"]
    prompt_mask: Bool[Tensor, "prompts prompt"]
    score: ResponseScorer
    sampling: Sampling
    n: int
    implicit: tuple[PreTrainedModel, PreTrainedModel] | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    draw: Drawing | None = None

    @property
    def writing(self) -> dict[str, Any]:
        """The arguments that all searches share: prompts, and how responses are drawn and end."""
        names = ("prompt_ids", "prompt_mask", "sampling", "eos_token_ids", "pad_token_id")
        return {name: getattr(self, name) for name in names}

    def implicit_models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The model that DPO trained and its reference.

        Raises:
            ConfigError: there is none.
        """
        if self.implicit is None:
            raise ConfigError(
                "there is no implicit model; expected one that DPO trained, and its reference: "
                "give implicit=(model, reference)"
            )
        return self.implicit


@dataclass(frozen=True)
class ChunkBeamSettings:
    """Beams over chunks; with one beam, blockwise controlled decoding. Each draws `n` chunks."""

    tokens: int = field(default=16, metadata={"was": "chunk_tokens"})
    """Tokens of a chunk."""
    beams: int = 1
    """Beginnings that go on after each chunk."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "tokens", "beams")


@dataclass(frozen=True)
class TreeBonSettings:
    """TreeBoN: a tree of `n` beginnings in every layer."""

    layers: int = 4
    """Number of layers; each writes its share of the tokens."""
    children: int = 2
    """Continuations of each beginning that is kept; n / children beginnings are kept."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "layers", "children")


@dataclass(frozen=True)
class RejectionSettings:
    """Speculative rejection: `n` beginnings, fewer at every check."""

    share: float = field(default=0.5, metadata={"was": "rejection_share"})
    """Share of the running beginnings that each check rejects; from 0 to below 1."""
    check_every: int = 16
    """Tokens between two checks."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "check_every")
        if not 0.0 <= self.share < 1.0:
            raise ConfigError(
                f"rejection.share is {self.share}; expected from 0 (none is rejected) to below 1"
            )


@dataclass(frozen=True)
class ImplicitBeamSettings:
    """Beam search by the implicit reward of a model that DPO trained."""

    beams: int = 5
    """Beginnings that are followed."""
    top_k: int = 10
    """How many likeliest tokens of each beam are tried; 0 for all."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "beams")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; expected 0 (all tokens) or more")


@dataclass(frozen=True)
class Search:
    """A search as commands know it.

    Attributes:
        words: what it does, in a line.
        cost: what the models write and read for one response.
        function: from a task and the search's settings to one response per prompt.
        settings: name of the group of settings that it reads; None if there is none.
        needs: which models it asks, besides the one that writes.
        draws: whether tokens are drawn, so that temperature, top-k and top-p tell.
        whole: whether it draws whole responses and nothing else, which a server can do for it.
        require: raises ConfigError for settings, sampling and n that do not fit each other.
        known_kl: what sampling and n alone say of the divergence from the language model, in nats.
        source: the arXiv number of its paper; empty where it is common knowledge.
        differs: from what was published; empty where nothing is known to differ.
    """

    words: str
    cost: str
    function: Callable[[SearchTask, Any], SearchOutput]
    settings: str | None = None
    needs: tuple[Literal["reward model", "implicit model"], ...] = ("reward model",)
    draws: bool = True
    whole: bool = False
    require: Callable[[Any, Sampling, int], None] = lambda _settings, _sampling, _n: None
    known_kl: Callable[[Sampling, int], dict[str, float]] = lambda _sampling, _n: {}
    source: str = ""
    differs: str = ""


def _unguided(task: SearchTask, _settings: None) -> SearchOutput:
    return best_of_n(task.model, score=task.score, n=1, draw=task.draw, **task.writing)


def _best_of_n(task: SearchTask, _settings: None) -> SearchOutput:
    return best_of_n(task.model, score=task.score, n=task.n, draw=task.draw, **task.writing)


def _best_of_n_kl(sampling: Sampling, n: int) -> dict[str, float]:
    """The bound holds against what is drawn from, which has to be the language model as it is."""
    return {"kl_at_most": best_of_n_kl(n)} if sampling.is_plain else {}


def _cards(task: SearchTask, settings: CardsSettings) -> SearchOutput:
    return cascade_sampling(task.model, score=task.score, **task.writing, **vars(settings))


def _require_target(settings: CardsSettings, _sampling: Sampling, _n: int) -> None:
    if settings.target_reward is None:
        raise ConfigError(
            "cards.target_reward is not given for method 'cards'; expected what a good response "
            "scores by this reward model: `generate --method best-of-n` shows what can be had"
        )


def _chunk_beam(task: SearchTask, settings: ChunkBeamSettings) -> SearchOutput:
    tokens, chunk = task.sampling.max_new_tokens, settings.tokens
    return tree_search(
        task.model,
        score=task.score,
        keep=settings.beams,
        children=task.n,
        lengths=[min(chunk, tokens - start) for start in range(0, tokens, chunk)],
        **task.writing,
    )


def _tree_bon(task: SearchTask, settings: TreeBonSettings) -> SearchOutput:
    return tree_search(
        task.model,
        score=implicit_scorer(*task.implicit_models()),
        keep=task.n // settings.children,
        children=settings.children,
        lengths=layer_lengths(task.sampling.max_new_tokens, settings.layers),
        final_score=task.score,
        passes=2,
        **task.writing,
    )


def _require_tree(settings: TreeBonSettings, sampling: Sampling, n: int) -> None:
    layer_lengths(sampling.max_new_tokens, settings.layers)
    if n % settings.children:
        raise ConfigError(
            f"n is {n} and tree_bon.children {settings.children}; expected a multiple of children: "
            "every layer of the tree has n beginnings"
        )


def _speculative_rejection(task: SearchTask, settings: RejectionSettings) -> SearchOutput:
    return speculative_rejection(
        task.model,
        score=task.score,
        n=task.n,
        rejection_share=settings.share,
        check_every=settings.check_every,
        **task.writing,
    )


def _implicit_beam(task: SearchTask, settings: ImplicitBeamSettings) -> SearchOutput:
    model, reference = task.implicit_models()
    return implicit_beam_search(model, reference=reference, **task.writing, **vars(settings))


SEARCHES: dict[str, Search] = {
    "unguided": Search(
        "writes one response as the policy does", "one response", _unguided, needs=(), whole=True
    ),
    "best-of-n": Search(
        "draws n whole responses and keeps the best",
        "n responses, each read once",
        _best_of_n,
        whole=True,
        require=lambda _settings, sampling, n: require_different(sampling, n),
        known_kl=_best_of_n_kl,
    ),
    "cards": Search(
        "draws each segment until one is good enough (CARDS)",
        "all segments that are drawn; the text is read after each",
        _cards,
        settings="cards",
        require=_require_target,
        source="2406.16306",
        differs="tokens are drawn at a temperature of 1, not `acceptance_beta`, from all and not "
        "40; an end of sequence ends a response; the best of 20 proposals is taken, not of 21; "
        "rejected tokens leave the cache, and the mask keeps its width, which the code cuts to one "
        "column",
    ),
    "chunk-beam": Search(
        "draws n chunks after each beginning and goes on with the best",
        "n chunks for each one that is kept; the text is read after each",
        _chunk_beam,
        settings="chunk_beam",
        source="2310.17022",
        differs="more than one beam is ours; an ended response stays among the beams with its "
        "score",
    ),
    "tree-bon": Search(
        "grows a tree of beginnings and prunes it by an implicit reward (TreeBoN)",
        "at most n responses, which the DPO model and its reference read layer by layer, and the "
        "reward model at the end",
        _tree_bon,
        settings="tree_bon",
        needs=("reward model", "implicit model"),
        require=_require_tree,
        source="2410.16033",
        differs="weights 1/i count response tokens from 1; equal layers and n beginnings in each "
        "are from memory of the paper",
    ),
    "speculative-rejection": Search(
        "begins n responses and gives up the worst on the way",
        "less than n responses; all beginnings are read at every check",
        _speculative_rejection,
        settings="rejection",
        source="2410.20290",
        differs="checks come after a fixed number of tokens, not when the memory of a device is "
        "full; an ended response stays for the last choice",
    ),
    "implicit-beam": Search(
        "follows the beams with the largest log-ratios of a model that DPO trained",
        "`implicit_beam.beams` responses, which the DPO model and its reference read by tokens",
        _implicit_beam,
        settings="implicit_beam",
        needs=("implicit model",),
        draws=False,
        source="2404.12358",
        differs="beams go by the sum of log-ratios; the paper's experiments, as far as known, by "
        "the likelihood of the DPO model, which is `implicit_beam_search(reference=None)` in "
        "Python",
    ),
}
"""Searches judge whole responses, or beginnings that are longer than a token; methods that choose
token by token stand in `GUIDANCE_METHODS`."""
