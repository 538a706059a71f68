"""Every method that can be chosen by name, in tables: `tokencredit methods`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tokencredit.aggregation.methods import AGGREGATIONS
from tokencredit.aggregation.transforms import SCORE_TRANSFORMS
from tokencredit.credit.evidence import NEEDS
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.decoding.search.hf_methods import SEARCHES, Search
from tokencredit.judge.setups import ASKS, JUDGE_SETUPS
from tokencredit.names import require_named
from tokencredit.policy.constraints import CONSTRAINTS
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.policy.losses.token_weights import TOKEN_WEIGHTS
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.policy.objectives import OBJECTIVE_MIXES
from tokencredit.policy.selection import SELECTIONS
from tokencredit.policy.setups import ONLINE_SETUPS, ROW_KINDS
from tokencredit.preference.builders import PAIR_BUILDERS
from tokencredit.recipes.preferences.settings import TokenWeightSettings
from tokencredit.reward_model.objectives import OBJECTIVES


@dataclass(frozen=True)
class MethodsConfig:
    """Settings of the overview."""

    kind: str | None = None
    """`credit`, `transform`, `combination`, `mix`, `constraint`, `selection`, `algorithm`, `loss`,
    `weight`, `setup`, `objective`, `judge`, `builder` or `generation`; None shows all tables."""

    def __post_init__(self) -> None:
        if self.kind is not None:
            require_named("kind", self.kind, KINDS)


def methods(config: MethodsConfig) -> None:
    """Print what can be chosen by name, with what each needs."""
    console = Console()
    for kind in KINDS if config.kind is None else (config.kind,):
        console.print(KINDS[kind]())


def _credit() -> Table:
    rows = (
        (
            name,
            method.text,
            ", ".join(NEEDS[need] for need in method.needs),
            method.conserves,
            _yes(method.causal),
            method.passes,
        )
        for name, method in CREDIT_METHODS.items()
    )
    columns = ("--credit.method", "pays", "needs", "a row sums to", "causal", "passes")
    return _table("Credit methods", columns, rows)


def _transform() -> Table:
    rows = ((name, one.text, str(one.references)) for name, one in SCORE_TRANSFORMS.items())
    columns = ("--score.transform", "puts in the place of a score", "reference responses at least")
    return _table("Transforms of scores", columns, rows)


def _combination() -> Table:
    rows = ((name, one.text, one.acts, str(one.models)) for name, one in AGGREGATIONS.items())
    columns = ("--combine.method", "is", "acts", "rewards at least")
    return _table("Combinations of several rewards", columns, rows)


def _mix() -> Table:
    rows = ((name, one.text, one.kl, _yes(one.groups)) for name, one in OBJECTIVE_MIXES.items())
    columns = ("--objectives.mix", "an advantage is", "price of KL", "needs groups")
    return _table("Mixes of advantages of several rewards", columns, rows)


def _constraint() -> Table:
    rows = ((name, one.text, f"{one.start:g}") for name, one in CONSTRAINTS.items())
    columns = ("--constraints.method", "keeps", "multiplier at first")
    return _table("Constraints on single rewards", columns, rows)


def _selection() -> Table:
    rows = ((name, one.text, str(one.samples)) for name, one in SELECTIONS.items())
    columns = ("--selection.keep", "learns from", "responses to a prompt at least")
    return _table("Selections of responses", columns, rows)


def _algorithm() -> Table:
    rows = (
        (
            name,
            one.words,
            one.needs,
            _yes(one.keeps_credit),
            _yes(one.needs_causal_credit),
        )
        for name, one in ALGORITHMS.items()
    )
    columns = ("--algorithm.name", "takes", "needs", "keeps dense credit", "wants causal credit")
    return _table("Algorithms of train-policy", columns, rows)


def _loss() -> Table:
    rows = (
        (
            name,
            one.words,
            one.learns_from,
            " and ".join(one.compares_with) or "none",
            ", ".join(need.replace("_", " ") for need in one.needs),
            ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in one.options.items()
            ),
        )
        for name, one in PREFERENCE_LOSSES.items()
    )
    columns = ("--loss", "is", "learns from", "compares with", "needs", "options")
    return _table("Losses of train-preferences", columns, rows)


def _setup() -> Table:
    rows = (
        (
            name,
            one.words,
            str(one.samples),
            one.judged_by,
            ROW_KINDS[one.rows][1],
            one.loss,
            " or ".join(one.references) or "none",
        )
        for name, one in ONLINE_SETUPS.items()
    )
    columns = ("--setup", "is", "--samples", "--judged_by", "learns from", "--loss", "--reference")
    return _table("Set-ups of iterate-preferences", columns, rows)


def _objective() -> Table:
    rows = (
        (objective, positions, one.rows, one.reading, ", ".join(one.options))
        for (objective, positions), one in OBJECTIVES.items()
    )
    columns = ("--objective", "--positions", "learns from", "is read at", "options")
    return _table("Objectives of train-reward-model", columns, rows)


def _judge() -> Table:
    rows = (
        (
            name,
            one.words,
            ASKS[one.asks],
            "one token" if one.answers else "a text",
            "both" if one.both_orders else "drawn",
        )
        for name, one in JUDGE_SETUPS.items()
    )
    columns = ("JUDGE_SETUPS", "is", "compares", "judge answers with", "orders")
    return _table("Set-ups of judges, in Python", columns, rows)


def _builder() -> Table:
    rows = (
        (
            name,
            one.words,
            ", ".join(one.numbers) or "nothing",
            ", ".join((*one.may, *one.models)),
            ", ".join(one.settings),
        )
        for name, one in PAIR_BUILDERS.items()
    )
    columns = ("--method", "makes", "needs columns", "may have", "--build")
    return _table("Builders of pairs", columns, rows)


def _weight() -> Table:
    rows = (
        (
            name,
            one.words,
            one.needs or "nothing",
            ", ".join(f"{option} {getattr(TokenWeightSettings, option)}" for option in one.options),
        )
        for name, one in TOKEN_WEIGHTS.items()
    )
    columns = ("--token_weights.kind", "weighs", "needs", "options")
    return _table("Weights of tokens", columns, rows)


GUIDES = {
    "sequences": "a reward model of whole responses",
    "prefixes": "a reward model trained on prefixes",
    "vocabulary": "a model that scores the vocabulary",
}
"""What a method that chooses token by token needs, in words."""

JUDGES = {"reward model": "a reward model", "implicit model": "a model that DPO trained"}
"""What a search needs, in words."""


def search_needs(search: Search) -> str:
    """The models that a search asks besides the one that writes, in words."""
    return " and ".join(JUDGES[need] for need in search.needs) or "nothing"


def _generation() -> Table:
    guided = (
        (name, one.words, GUIDES[one.needs], "guidance") for name, one in GUIDANCE_METHODS.items()
    )
    searches = (
        (name, one.words, search_needs(one), one.settings or "none")
        for name, one in SEARCHES.items()
    )
    columns = ("--method", "what it does", "needs", "settings")
    return _table("Methods of generate", columns, [*guided, *searches])


KINDS: dict[str, Callable[[], Table]] = {
    "credit": _credit,
    "transform": _transform,
    "combination": _combination,
    "mix": _mix,
    "constraint": _constraint,
    "selection": _selection,
    "algorithm": _algorithm,
    "loss": _loss,
    "weight": _weight,
    "setup": _setup,
    "objective": _objective,
    "judge": _judge,
    "builder": _builder,
    "generation": _generation,
}


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(*columns, title=title, show_lines=True)
    for row in rows:
        table.add_row(*row)
    return table
