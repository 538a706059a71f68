"""The page to try a reward model with: a form, and the heat map of what was typed. No script."""

from dataclasses import dataclass
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader

from tokencredit.errors import DataError
from tokencredit.evaluation.heatmap import heatmap_html
from tokencredit.evaluation.token_display import share_name, text_pieces
from tokencredit.server.rows import RowScores, TokenRow

# Nothing is loaded, run or framed, whatever a text might hold.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" a browser sends the page's own form as one of an unknown origin.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Filled:
    """What was typed into the form."""

    prompt: str = ""
    response: str = ""
    token: str = ""


def filled_form(body: bytes) -> Filled:
    r"""What a browser sends.

    Raises:
        DataError: there are more fields than the form has.

    >>> filled_form(b"prompt=How%3F&response=a+%F0%9F%99%82%0D%0Ab").response
    'a 🙂\nb'
    """
    try:
        fields = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=9)
    except ValueError as error:
        raise DataError(
            f"a form that cannot be read ({error}); expected the fields prompt, response and token"
        ) from error
    # Browsers end the lines of a form as mail does.
    typed = {name: values[0].replace("\r\n", "\n") for name, values in fields.items()}
    return Filled(*(typed.get(name, "") for name in ("prompt", "response", "token")))


def page(
    filled: Filled,
    *,
    asks_token: bool,
    row: TokenRow | None = None,
    scores: RowScores | None = None,
    problem: str | None = None,
) -> str:
    """The page as HTML, everything escaped.

    Args:
        filled: what stands in the form; the token never does.
        asks_token: whether there is a field for one.
        row: the tokens of the response.
        scores: what they are worth; None shows no heat map.
        problem: what went wrong.
    """
    heatmap = None
    if row is not None and scores is not None:
        texts, groups = text_pieces(filled.response, row.spans, row.tokens)
        sums = {
            name: [sum(paid[index] for index in group) for group in groups]
            for name, paid in _rows(scores).items()
        }
        heatmap = heatmap_html(texts, sums, caption=f"score {scores.sequence_score:+.3f} nats")
    return _TEMPLATE.render(filled=filled, asks_token=asks_token, heatmap=heatmap, problem=problem)


def _rows(scores: RowScores) -> dict[str, list[float]]:
    """Token scores by each credit method, and below them those of the objectives, weighted."""
    rows = {}
    for method, paid in scores.token_scores.items():
        rows[method] = paid
        for name, one in (scores.objectives or {}).items():
            own = one.token_scores.get(method)
            if own is not None and one.weight is not None:
                share = [one.weight * score for score in own]
                rows[share_name(method, name, one.weight)] = share
    return rows


_TEMPLATE = Environment(
    loader=PackageLoader("tokencredit.server", "."), autoescape=True
).get_template("page.html")
