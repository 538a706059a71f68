"""Entries of the documentation that are made from the tables in the code.

An entry is a heading of three `#` with the name of the method. What stands under it is made here;
only its formula is written by hand, and stays.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tokencredit.decoding.rules import GUIDANCE_METHODS, GuidanceMethod
from tokencredit.decoding.search.hf_methods import SEARCHES, Search
from tokencredit.policy.losses.token_weights import TOKEN_WEIGHTS
from tokencredit.recipes.methods import GUIDES, search_needs
from tokencredit.recipes.preferences.settings import TokenWeightSettings

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
# A sentence, and the facts of each line by their words in bold.
Told = tuple[str, Sequence[Mapping[str, str]]]
COUNTED = ("best-of-n", "chunk-beam", "tree-bon", "speculative-rejection")  # they read `n`


def generation() -> dict[str, Told]:
    """Every method of `generate`."""
    kept = [json.loads((RESULTS / f"decoding/{task}.json").read_text()) for task in ("imdb", "hh")]
    measured = {row["name"].split()[0] for task in kept for row in task["rows"]}
    told: dict[str, Told] = {}
    for name, one in {**GUIDANCE_METHODS, **SEARCHES}.items():
        facts = _guided(one) if isinstance(one, GuidanceMethod) else _search(name, one)
        command = {
            "Command": f"`tokencredit generate --method {name}`",
            "Measured": "[yes](results/decoding.md)" if name in measured else "no",
        }
        told[name] = (one.words, [facts, command, *_source(one.source, one.differs)])
    return told


def weight() -> dict[str, Told]:
    """Every kind of weight of tokens."""
    kept = json.loads((RESULTS / "preferences/token-weights.json").read_text())
    compared = {row["weights"].split()[0] for row in kept} - {"none"}
    measured = {{"edits": "edits", "best": "select"}.get(one, "credit") for one in compared}
    told: dict[str, Told] = {}
    for name, one in TOKEN_WEIGHTS.items():
        options = [f"`{key}` {getattr(TokenWeightSettings, key)}" for key in one.options]
        facts = {"Needs": one.needs or "nothing", "Options": ", ".join(options) or "none"}
        command = {
            "Command": f"`tokencredit train-preferences --token_weights.kind {name}`",
            "Measured": "[yes](results/preferences.md)" if name in measured else "no",
        }
        told[name] = (one.words, [facts, command, *_source(one.source, one.differs)])
    return told


# By kind: the setting that chooses a method, the page of the entries, and what they tell.
GENERATED: dict[str, tuple[str, str, Callable[[], dict[str, Told]]]] = {
    "generation": ("method", "decoding.md", generation),
    "weight": ("token_weights.kind", "train-preferences.md", weight),
}


def with_entries(text: str, page: str) -> str:
    """A page with its entries made anew; their formulas stay as they are.

    Raises:
        ValueError: a method has no heading on its page.
    """
    for _, own, told in GENERATED.values():
        for name, (words, lines) in told().items() if own == page else ():
            heading = f"\n### {name}\n\n"
            if heading not in text:
                raise ValueError(f"{page} has no heading for {name!r}; expected '### {name}'")
            start = text.index(heading) + len(heading)
            rest = re.split(r"(?=^#{2,4} )", text[start:], maxsplit=1, flags=re.M)
            formulas = re.findall(r"^\$\$\n.+?\n\$\$\n\n", rest[0], flags=re.M | re.S)
            facts = [". ".join(f"**{key}**: {said}" for key, said in row.items()) for row in lines]
            made = [
                f"{words[0].upper()}{words[1:]}.\n\n",
                *formulas,
                *(f"- {row}.\n" for row in facts),
            ]
            text = text[:start] + "".join(made) + "\n" * (len(rest) > 1) + "".join(rest[1:])
    return text


def _guided(one: GuidanceMethod) -> Mapping[str, str]:
    top_k, drawn_from = one.guide["top_k"], one.sampling.get("top_k")
    settings = [f"`guidance.beta` {one.guide['guidance_beta']:g}"]
    settings += [f"`guidance.top_k` {top_k}"] * bool(top_k)
    settings += [f"`sampling.top_k` {drawn_from}"] * bool(drawn_from)
    temperature = one.sampling.get("temperature", 1.0)
    settings += [f"`sampling.temperature` {temperature:g}"] * (temperature != 1.0)
    cost = "scores of `guidance.top_k` candidates" if top_k else "one pass of that model"
    return {
        "Needs": GUIDES[one.needs],
        "Cost": f"{cost} for each token",
        "Settings": ", ".join(settings),
    }


def _search(name: str, one: Search) -> Mapping[str, str]:
    settings = ["`n`"] * (name in COUNTED) + [f"`{one.settings}`"] * bool(one.settings)
    return {
        "Needs": search_needs(one),
        "Cost": one.cost,
        "Settings": " and ".join(settings) or "none",
    }


def _source(number: str, differs: str) -> Sequence[Mapping[str, str]]:
    if not number:
        return []
    paper = f"[{number}](https://arxiv.org/abs/{number})"
    return [{"Source": paper, "Differs from the paper": differs or "nothing known"}]
