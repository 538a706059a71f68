"""The settings of `tokencredit generate`, with the combinations that it refuses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tokencredit.decoding.rules import GUIDANCE_METHODS, GuidanceMethod
from tokencredit.decoding.search.hf_cascade import CardsSettings
from tokencredit.decoding.search.hf_methods import (
    SEARCHES,
    ChunkBeamSettings,
    ImplicitBeamSettings,
    RejectionSettings,
    Search,
    TreeBonSettings,
)
from tokencredit.errors import ConfigError
from tokencredit.names import named
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least
from tokencredit.recipes.settings import LoadingSettings, group, setting
from tokencredit.sampling import Sampling
from tokencredit.text.reading_settings import ReadingSettings, require_writer


@dataclass(frozen=True)
class PromptSettings:
    """Which prompts are answered."""

    column: str = setting("prompt", was="prompt_column")
    """Column of the prompts, texts or lists of chat messages; `prompt` also finds other usual
    names."""
    split: str = "train"
    """Split of a dataset folder or id, or a slice of one."""
    limit: int | None = setting(None, was="max_prompts")
    """Use only the first prompts; None uses all."""
    tokens: int | None = setting(None, was="prompt_tokens")
    """Keep this many first tokens of each prompt; None keeps all."""

    def __post_init__(self) -> None:
        for name in ("limit", "tokens"):
            if getattr(self, name) is not None:
                require_at_least(self, 1, name)


@dataclass(frozen=True)
class GuidanceSettings:
    """Methods that choose token by token."""

    beta: float | None = None
    """Weight of the score, in log-probability per nat of score; None takes the method's own."""
    top_k: int | None = None
    """Candidates per token; None takes the method's own, 0 the whole vocabulary."""
    top_p: float = 1.0
    """Keep the fewest candidates that together have this share of their probability; 1 keeps
    all."""
    scorer: Literal["auto", "packed", "rows", "full"] = "auto"
    """How candidates are scored; all ways give the same scores. `auto` takes the fastest that the
    reward model allows. A model over the vocabulary has one way."""

    def __post_init__(self) -> None:
        if self.beta is not None and not math.isfinite(self.beta):
            raise ConfigError(f"beta is {self.beta}; expected a finite number, or None")
        if (self.top_k is not None and self.top_k < 0) or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"top_k is {self.top_k} and top_p {self.top_p}; expected candidates: top_k >= 0 (0 "
                "for all) and top_p in (0, 1]"
            )


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn, and how many."""

    min_new_tokens: int = 0
    """Fewest tokens of a response; no end of sequence comes earlier."""
    max_new_tokens: int = 64
    """Most tokens of a response; longer ones are cut."""
    temperature: float | None = None
    """Temperature: logits are divided by it, with guidance those of the sum; 0 takes the largest.
    None takes the method's own, which is 1 unless its paper has another."""
    top_k: int | None = None
    """Draw from this many likeliest tokens; 0 for all. None takes the method's own, which is all
    unless its paper has another."""
    top_p: float = 1.0
    """Draw from the fewest tokens that together have this probability; 1 for all."""

    def __post_init__(self) -> None:
        self.of_search()
        if self.temperature == 0.0 and ((self.top_k or 0) > 0 or self.top_p < 1.0):
            raise ConfigError(
                f"temperature is 0, which takes the most probable token, with top_k {self.top_k} "
                f"and top_p {self.top_p}; expected neither of the two, or a positive temperature"
            )

    def of_search(self, *, suppress_tokens: tuple[int, ...] = ()) -> Sampling:
        """What a search draws from, less some ids that are never drawn."""
        return Sampling(
            suppress_tokens=suppress_tokens,
            min_new_tokens=self.min_new_tokens,
            max_new_tokens=self.max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p,
        )

    def of_guide(self, method: GuidanceMethod) -> dict[str, Any]:
        """Arguments of `generate()` for a method that chooses token by token."""
        if not method.draws or self.temperature == 0.0:
            return {"do_sample": False}
        given = {"temperature": self.temperature, "top_k": self.top_k}
        chosen = {name: value for name, value in given.items() if value is not None}
        return method.sampling | chosen | {"top_p": self.top_p}


@dataclass(frozen=True)
class ImplicitSettings:
    """A model that DPO trained, whose log-ratio to its reference is a reward."""

    model: str | None = None
    """Hub id or folder; needed by `tree-bon` and `implicit-beam`."""
    reference: str | None = None
    """What it was trained from; None for the policy."""

    def __post_init__(self) -> None:
        if self.reference is not None and self.model is None:
            raise ConfigError(
                f"implicit.reference is {self.reference!r} without implicit.model; expected both, "
                "or neither"
            )


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of one batch of responses."""

    policy: str
    """Hub id or folder of the causal language model."""
    reward_model: str
    """Hub id or folder of a sequence-classification model; for methods over the vocabulary, such as
    `cd`, of a causal language model with the vocabulary of the policy."""
    prompts: str
    """Dataset id or JSON-lines file."""
    output: str
    """Folder for `responses.jsonl` and `metrics.json`."""
    method: str = "pargs"
    """How to steer; `tokencredit methods --kind generation` lists the methods, and docs/decoding.md
    says which to use when."""
    n: int = 10
    """Responses per prompt of `best-of-n`; beginnings of `tree-bon` and `speculative-rejection`;
    chunks that `chunk-beam` draws after each beam."""
    held_out_reward_model: str | None = None
    """A second reward model, which only judges."""
    data: PromptSettings = group(PromptSettings)
    """Which prompts are answered."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of prompts that cannot be used."""
    guidance: GuidanceSettings = group(GuidanceSettings)
    """Settings of methods that choose token by token."""
    sampling: SamplingSettings = group(SamplingSettings)
    """How tokens are drawn, and how many."""
    cards: CardsSettings = group(CardsSettings)
    """Settings of `cards`."""
    chunk_beam: ChunkBeamSettings = group(ChunkBeamSettings)
    """Settings of `chunk-beam`."""
    tree_bon: TreeBonSettings = group(TreeBonSettings)
    """Settings of `tree-bon`."""
    rejection: RejectionSettings = group(RejectionSettings)
    """Settings of `speculative-rejection`."""
    implicit_beam: ImplicitBeamSettings = group(ImplicitBeamSettings)
    """Settings of `implicit-beam`."""
    implicit: ImplicitSettings = group(ImplicitSettings)
    """The models of `tree-bon` and `implicit-beam`."""
    reading: ReadingSettings = group(ReadingSettings)
    """How reward models read texts, where their configurations do not say."""
    policy_reading: ReadingSettings = group(ReadingSettings)
    """How the policy reads prompts, and what ends its responses."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models and tokenizers are loaded."""
    vllm_server: str | None = setting(None, free=True)
    """Address of a vLLM server of the policy that draws the responses of `unguided` and
    `best-of-n`, for example `http://localhost:8000`; None draws them here."""
    batch_size: int = 8
    """Prompts at a time."""
    seed: int = 0
    """Seed of sampling."""
    show_example: bool = setting(False, free=True)
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = None
    """Device to compute on, such as `cuda`; None for the CPU."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size", "n")
        require_writer(self.policy_reading, name="policy_reading")
        row = self.row
        if isinstance(row, Search):
            row.require(self.settings_of(row), self.sampling.of_search(), self.n)
        elif row.needs == "vocabulary" and self.guidance.scorer != "auto":
            raise ConfigError(
                f"guidance.scorer is {self.guidance.scorer!r} and method {self.method!r}, whose "
                "reward model scores the whole vocabulary in one pass; expected 'auto'"
            )
        if self.vllm_server is not None and not (isinstance(row, Search) and row.whole):
            names = [name for name, search in SEARCHES.items() if search.whole]
            raise ConfigError(
                f"vllm_server is {self.vllm_server!r} and method {self.method!r}, which looks at "
                f"what the language model says on the way; expected {' or '.join(names)}, or no "
                "vllm_server"
            )
        self._require_implicit(isinstance(row, Search) and "implicit model" in row.needs)
        self._require_that_all_is_read(row)

    @property
    def row(self) -> GuidanceMethod | Search:
        """The row of the method in its table.

        Raises:
            ConfigError: no method has this name.
        """
        methods: dict[str, GuidanceMethod | Search] = {**GUIDANCE_METHODS, **SEARCHES}
        return named("method", self.method, methods)

    def settings_of(self, search: Search) -> Any:
        """The group that a search reads; None where it reads none."""
        return None if search.settings is None else getattr(self, search.settings)

    def _require_implicit(self, needed: bool) -> None:
        if needed != (self.implicit.model is not None):
            names = [name for name, row in SEARCHES.items() if "implicit model" in row.needs]
            raise ConfigError(
                f"implicit.model is {self.implicit.model!r} and method {self.method!r}; expected a "
                f"model that DPO trained for {', '.join(names)}, and for no other"
            )

    def _require_that_all_is_read(self, row: GuidanceMethod | Search) -> None:
        if isinstance(row, Search):
            self._require_defaults(
                "guidance",
                "a method that is guided token by token (sampling.top_k and sampling.top_p cut off "
                "what searches draw from)",
            )
        if not row.draws:
            names = ("temperature", "top_k", "top_p")
            self._require_defaults("sampling", "a method that draws tokens", only=names)
        for name, search in SEARCHES.items():
            if search.settings is not None and search.settings != getattr(row, "settings", None):
                self._require_defaults(search.settings, f"method {name!r}")

    def _require_defaults(
        self, name: str, reader: str, *, only: Sequence[str] | None = None
    ) -> None:
        """Raise ConfigError if this method does not read settings that were given."""
        settings = getattr(self, name)
        for one in fields(settings):
            value = getattr(settings, one.name)
            if value != one.default and (only is None or one.name in only):
                own = getattr(self.row, "settings", None)
                reads = f" (it reads the settings of {own})" if own else ""
                raise ConfigError(
                    f"{name}.{one.name} is {value!r} and method {self.method!r}, which does not "
                    f"read it{reads}; expected {reader}, or no {name}.{one.name}"
                )
