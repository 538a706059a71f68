"""The page to try a reward model with: a form, and heat maps of what was typed.

It works without its script. With it the answer comes into the page, tokens tell their numbers, and
a link holds what was typed, after its `#`, which no browser sends.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tokencredit.errors import DataError
from tokencredit.evaluation.token_display import objective_shares
from tokencredit.evaluation.token_heatmap import TokenHeatmap, text_heatmap
from tokencredit.server.rows import RowScores, TokenRow

_SCRIPT = files("tokencredit.server").joinpath("page.js").read_text(encoding="utf-8")
_DIGEST = b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# Nothing is loaded or framed and no script but the page's own runs, whatever a text might hold.
PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{_DIGEST}'; "
    "connect-src 'self'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" a browser sends the page's own form as one of an unknown origin.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# What is chosen where nothing was: what `explain` draws.
_FIRST_CHOICE = ("attention", "prefix-difference")
_MOST_FIELDS = 256
_LETTERS = ("A", "B")


@dataclass(frozen=True)
class Filled:
    """What was typed into the form, and what was chosen.

    Attributes:
        prompt: may be empty.
        response: to it.
        other: a second response, to compare; empty where there is none.
        token: that the server asks for.
        credit: names of methods.
        objectives: names of objectives that are shown apart.
    """

    prompt: str = ""
    response: str = ""
    other: str = ""
    token: str = ""
    credit: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()

    @property
    def responses(self) -> tuple[str, ...]:
        """The one response, or both."""
        return (self.response, self.other) if self.other else (self.response,)

    def chosen(
        self, credit: Sequence[str], objectives: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The methods and objectives to show; where no method was chosen, the first choice.

        Args:
            credit: on offer.
            objectives: likewise.

        >>> Filled().chosen(["terminal", "attention"], ["helpful"])
        (('attention',), ('helpful',))
        >>> Filled(credit=("terminal",)).chosen(["terminal", "attention"], ["helpful"])
        (('terminal',), ())
        """
        if self.credit:
            return self.credit, self.objectives
        first = tuple(name for name in _FIRST_CHOICE if name in credit)
        return first or tuple(credit), tuple(objectives)


@dataclass(frozen=True)
class Offer:
    """What the form lets one choose.

    Attributes:
        credit: names of methods.
        objectives: names of what the reward model scores apart.
        asks_token: whether there is a field for a token.
    """

    credit: Sequence[str] = ()
    objectives: Sequence[str] = ()
    asks_token: bool = False


def filled_form(body: bytes) -> Filled:
    r"""What a browser sends.

    Raises:
        DataError: there are far more fields than the form has.

    >>> filled_form(b"prompt=How%3F&response=a+%F0%9F%99%82%0D%0Ab").response
    'a 🙂\nb'
    """
    try:
        fields = parse_qs(
            body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError as error:
        raise DataError(
            f"a form that cannot be read ({error}); expected the fields prompt, response, other, "
            "credit, objective and token"
        ) from error
    # Browsers end the lines of a form as mail does.
    typed = {name: values[0].replace("\r\n", "\n") for name, values in fields.items()}
    return Filled(
        **{name: typed.get(name, "") for name in ("prompt", "response", "other", "token")},
        credit=tuple(fields.get("credit", ())),
        objectives=tuple(fields.get("objective", ())),
    )


def page(
    filled: Filled,
    offer: Offer,
    *,
    rows: Sequence[TokenRow] = (),
    scores: Sequence[RowScores] = (),
    problem: str | None = None,
) -> str:
    """The page as HTML, everything escaped.

    Args:
        filled: what stands in the form; the token never does.
        offer: what can be chosen.
        rows: the tokens of each response.
        scores: what they are worth; none shows no heat map.
        problem: what went wrong.
    """
    credit, objectives = filled.chosen(offer.credit, offer.objectives)
    titles = [f"Response {letter}" for letter in _LETTERS] if len(rows) > 1 else ["Response"]
    shown = [
        _heatmap(text, row, said, title=title, objectives=objectives)
        for text, row, said, title in zip(filled.responses, rows, scores, titles, strict=False)
    ]
    heatmap = None
    if shown:
        heatmap = shown[0].html() if len(shown) == 1 else shown[0].beside(*shown[1:]).html()
    return _TEMPLATE.render(
        filled=filled,
        offer=offer,
        credit=credit,
        objectives=objectives,
        heatmap=heatmap,
        titles=_LETTERS[: len(scores)],
        lines=_lines(scores) if scores else [],
        problem=problem,
        script=Markup(_SCRIPT),
    )


def _heatmap(
    text: str, row: TokenRow, scores: RowScores, *, title: str, objectives: Sequence[str]
) -> TokenHeatmap:
    """Token scores by each credit method, and below them those of the objectives, weighted."""
    shown: dict[str, list[float]] = {}
    parts: list[str] = []
    for method, paid in scores.token_scores.items():
        own = {
            name: (one.weight, one.token_scores.get(method))
            for name, one in (scores.objectives or {}).items()
            if name in objectives
        }
        shares = objective_shares(method, own)
        shown |= {method: paid, **shares}
        parts += shares
    caption = f"{title}: score {scores.sequence_score:+.3f} nats"
    return text_heatmap(text, row.spans, row.tokens, shown, caption=caption, parts=tuple(parts))


@dataclass(frozen=True)
class _ScoreLine:
    """What one objective adds to the score of each response, or the scores themselves."""

    name: str
    added: list[float | None]
    weight: float | None = None
    alone: list[float] | None = None

    @property
    def difference(self) -> float | None:
        """How much more the second response got than the first; None without both numbers."""
        match self.added:
            case [float(first), float(second)]:
                return second - first
        return None


def _lines(scores: Sequence[RowScores]) -> list[_ScoreLine]:
    found = []
    for name in scores[0].objectives or {}:
        each = [one.objectives[name] for one in scores if one.objectives]
        added = [None if one.weight is None else one.weight * one.sequence_score for one in each]
        alone = [one.sequence_score for one in each]
        found.append(_ScoreLine(name, added, each[0].weight, alone))
    return [*found, _ScoreLine("Score", [one.sequence_score for one in scores])]


_TEMPLATE = Environment(
    loader=PackageLoader("tokencredit.server", "."), autoescape=True
).get_template("page.html")
