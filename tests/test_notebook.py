"""The example notebook, run cell by cell in plain Python; what each cell shows is looked at."""

import ast
import json
from pathlib import Path

import pytest
from saved_models import save_reward_model
from tiny_tokenizers import byte_level

from tokencredit.evaluation.token_heatmap import HeatmapsSideBySide, TokenHeatmap

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "token_credit.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def shown_by(code: str, names: dict[str, object]) -> object:
    """What a notebook shows below a cell: the value of its last line, if that has one."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    save_reward_model(folder / "output" / "quickstart" / "reward-model", byte_level())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict[str, object] = {}
        return [shown_by(code, names) for code in CODE]


def test_every_cell_runs_and_draws(shown):
    kinds = [type(one) for one in shown]
    assert kinds == [type(None), TokenHeatmap, HeatmapsSideBySide, list, TokenHeatmap]


def test_what_is_shown_is_the_heat_map_of_the_response(shown):
    html = shown[1]._repr_html_()
    assert "".join(shown[1].tokens) == " is slow at first, but the photography is superb."
    assert html.count("tokencredit-heatmap") > 1
    assert html.count("<figure") == 1
    assert shown[2]._repr_html_().count("<figure") == 2
    assert list(shown[1].scores) == ["attention", "prefix-difference"]


def test_it_is_kept_without_outputs():
    for cell in CELLS:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
