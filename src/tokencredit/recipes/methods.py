"""Every method that can be chosen by name, in tables: `tokencredit methods`."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tokencredit.aggregation.methods import AGGREGATIONS
from tokencredit.credit.methods import CREDIT_METHODS, NEEDS
from tokencredit.names import require_named

_KINDS = ("credit", "combination")


@dataclass(frozen=True)
class MethodsConfig:
    """Settings of the overview."""

    kind: str | None = None
    """`credit` or `combination`; None shows all tables."""

    def __post_init__(self) -> None:
        if self.kind is not None:
            require_named("kind", self.kind, _KINDS)


def methods(config: MethodsConfig) -> None:
    """Print what can be chosen by name, with what each needs."""
    console = Console()
    for kind in _KINDS if config.kind is None else (config.kind,):
        console.print({"credit": _credit, "combination": _combination}[kind]())


def _credit() -> Table:
    rows = (
        (
            name,
            method.text,
            ", ".join(NEEDS[need] for need in method.needs),
            method.conserves,
            "yes" if method.causal else "no",
            method.passes,
        )
        for name, method in CREDIT_METHODS.items()
    )
    columns = ("--credit.method", "pays", "needs", "a row sums to", "causal", "passes")
    return _table("Credit methods", columns, rows)


def _combination() -> Table:
    rows = ((name, one.text, one.acts, str(one.models)) for name, one in AGGREGATIONS.items())
    columns = ("--combine.method", "is", "acts", "rewards at least")
    return _table("Combinations of several rewards", columns, rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(*columns, title=title, show_lines=True)
    for row in rows:
        table.add_row(*row)
    return table
