"""`tokencredit methods` shows every row of every table."""

from dataclasses import fields
from typing import get_args

import pytest
from rich.console import Console

from tokencredit.aggregation.methods import AGGREGATIONS
from tokencredit.aggregation.transforms import SCORE_TRANSFORMS
from tokencredit.cli import main
from tokencredit.credit.methods import CREDIT_METHODS, CreditMethod
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.decoding.search.hf_methods import SEARCHES
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.policy.constraints import CONSTRAINTS
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.policy.losses.token_weights import TOKEN_WEIGHTS
from tokencredit.policy.methods import ALGORITHMS
from tokencredit.policy.objectives import OBJECTIVE_MIXES
from tokencredit.policy.selection import SELECTIONS
from tokencredit.policy.setups import ONLINE_SETUPS
from tokencredit.preference.builders import PAIR_BUILDERS
from tokencredit.recipes import methods as recipe
from tokencredit.recipes.preferences.settings import TokenWeightSettings, WeightKind
from tokencredit.reward_model.objectives import OBJECTIVES

NAMES = {
    "credit": CREDIT_METHODS,
    "transform": SCORE_TRANSFORMS,
    "combination": AGGREGATIONS,
    "mix": OBJECTIVE_MIXES,
    "constraint": CONSTRAINTS,
    "selection": SELECTIONS,
    "algorithm": ALGORITHMS,
    "loss": PREFERENCE_LOSSES,
    "weight": TOKEN_WEIGHTS,
    "setup": ONLINE_SETUPS,
    "judge": JUDGE_SETUPS,
    "builder": PAIR_BUILDERS,
    "objective": [name for pair in OBJECTIVES for name in pair],
    "generation": [*GUIDANCE_METHODS, *SEARCHES],
}


def test_weights_of_tokens_are_those_of_the_settings():
    assert get_args(WeightKind) == ("none", *TOKEN_WEIGHTS)
    read = [option for one in TOKEN_WEIGHTS.values() for option in one.options]
    assert ["kind", *read] == [one.name for one in fields(TokenWeightSettings)]


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setattr(recipe, "Console", lambda: Console(width=400))


@pytest.mark.parametrize("kind", NAMES)
def test_every_row_of_a_table_is_shown(wide, capsys, kind):
    assert main(["methods", "--kind", kind]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in NAMES[kind])


def test_all_tables_are_shown_and_new_rows_among_them(wide, capsys, monkeypatch):
    mine = CreditMethod(lambda e, _: e.attention, "mine", ("attention",), "no", causal=False)
    monkeypatch.setitem(CREDIT_METHODS, "my-own-credit", mine)
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert "my-own-credit" in shown
    assert all(f" {next(iter(names))} " in shown for names in NAMES.values())


def test_an_unknown_kind_is_told_the_near_one(capsys):
    assert main(["methods", "--kind", "algorithms"]) == 1
    assert "did you mean 'algorithm'" in capsys.readouterr().err
