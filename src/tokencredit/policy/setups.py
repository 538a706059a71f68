"""Ways to learn from the policy's own responses round by round, by their names.

Each round draws responses, judges them, chooses rows, and trains on these with an offline loss. A
published method is a row of `ONLINE_SETUPS`: what is drawn, how it is judged, which rows are made,
which loss, and which model is its reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokencredit.policy.losses.compared import Rows

JudgedBy = Literal["scores", "win-rates", "log-ratio", "nothing"]
RowKind = Literal[
    "best-worst", "best-random", "best-second", "all-pairs", "demonstration", "list", "best", "each"
]

ROW_KINDS: dict[RowKind, tuple[Rows, str]] = {
    "best-worst": ("pairs", "the best response against the worst"),
    "best-random": ("pairs", "the best against one of the others"),
    "best-second": ("pairs", "the best against the second"),
    "all-pairs": ("pairs", "every better response against every worse one"),
    "demonstration": ("pairs", "the demonstration against each response"),
    "list": ("lists", "all responses with their scores"),
    "best": ("singles", "the best response"),
    "each": ("singles", "every response"),
}
"""What is made of the responses to a prompt: what a loss learns from, and the words."""


@dataclass(frozen=True)
class OnlineSetup:
    """One row of the table.

    Attributes:
        words: what it is, in a line.
        source: where it comes from.
        samples: responses to each prompt, unless the settings say otherwise.
        judged_by: `scores` of a reward model or judges, `win-rates` by these scores among the
            responses to a prompt, the policy's own `log-ratio`, or `nothing`.
        rows: a name in `ROW_KINDS`.
        loss: a name in `PREFERENCE_LOSSES`.
        references: what its reference may be: the `first` model, the `previous` policy, which the
            round starts from; the published one first. None where the loss has none.
        options: of the loss, where its own defaults are others.
        temperature: of sampling.
        rounds_of_rows: from how many rounds, the last one included, rows are learnt.
        free: whether judge, rows and loss are for the settings to say.
    """

    words: str
    source: str
    samples: int
    judged_by: JudgedBy
    rows: RowKind
    loss: str
    references: tuple[Literal["first", "previous"], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    rounds_of_rows: int = 1
    free: bool = False


_EITHER: tuple[Literal["first", "previous"], ...] = ("previous", "first")

ONLINE_SETUPS: dict[str, OnlineSetup] = {
    "online-dpo": OnlineSetup(
        "DPO on the best and the worst of several responses (RLHF Workflow)",
        "2405.07863",
        8,
        "scores",
        "best-worst",
        "dpo",
        _EITHER,
    ),
    "inpo": OnlineSetup(
        "towards a Nash policy, anchored between first and previous policy",
        "2407.00617",
        8,
        "scores",
        "best-worst",
        "inpo",
        ("first",),
    ),
    "dno": OnlineSetup(
        "soft labels by how often each response wins among all",
        "2404.03715",
        5,
        "win-rates",
        "all-pairs",
        "dno",
        ("previous",),
    ),
    "dno-practical": OnlineSetup(
        "DPO on pairs with a large gap, demonstrations among the responses",
        "2404.03715",
        5,
        "scores",
        "all-pairs",
        "dpo",
        ("previous",),
    ),
    "cream": OnlineSetup(
        "self-rewarding, trusted as far as the policy before ranks alike",
        "2410.12735",
        5,
        "log-ratio",
        "best-worst",
        "cream",
        _EITHER,
        temperature=0.8,
    ),
    "spin": OnlineSetup(
        "DPO of demonstrations against own responses",
        "2401.01335",
        1,
        "nothing",
        "demonstration",
        "dpo",
        ("previous",),
        rounds_of_rows=2,
    ),
    "superhf": OnlineSetup(
        "likelihood of the best response, and KL from the first model",
        "2310.16763",
        16,
        "scores",
        "best",
        "superhf",
        ("first",),
    ),
    "rejection-sampling": OnlineSetup(
        "likelihood of the best response (RAFT, Llama 2)",
        "2304.06767",
        8,
        "scores",
        "best",
        "likelihood",
        (),
    ),
    "aligndistil": OnlineSetup(
        "two teachers at every token of own responses",
        "2503.02832",
        1,
        "nothing",
        "each",
        "aligndistil",
        (),
        options={"extrapolation": 15.0},
    ),
    "custom": OnlineSetup(
        "judge, rows and loss as the settings say",
        "",
        4,
        "scores",
        "best-worst",
        "dpo",
        _EITHER,
        free=True,
    ),
}
"""Rows by the names that `setup` takes."""
