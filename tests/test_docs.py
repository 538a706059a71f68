"""The documentation is true: its code runs and its tables match the code."""

import ast
import importlib
import inspect
import json
import re
import shlex
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import yaml
from method_entries import GENERATED, with_entries
from method_tables import MARKED, Entry, entries, with_tables
from package_tree import drawn_tree
from tiny_policy import tiny_config, write_models

import tokencredit
from tokencredit import errors
from tokencredit.aggregation.methods import AGGREGATIONS
from tokencredit.aggregation.transforms import SCORE_TRANSFORMS
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.policy.constraints import CONSTRAINTS
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.policy.methods import ALGORITHMS, Algorithm
from tokencredit.policy.objectives import OBJECTIVE_MIXES
from tokencredit.policy.selection import SELECTIONS
from tokencredit.policy.setups import ONLINE_SETUPS
from tokencredit.preference.builders import PAIR_BUILDERS
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import all_settings

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
PACKAGE = PROJECT / "src" / "tokencredit"
pages = {page.relative_to(PROJECT).as_posix(): page.read_text() for page in DOCS.rglob("*.md")}
pages["README.md"] = (PROJECT / "README.md").read_text()
LANGUAGES = {"python", "bash", "yaml", "text"}


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """Line number and content of the fenced blocks of one language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", pages[page], flags=re.M | re.S)
    return [(pages[page].count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def commands_in(text: str) -> list[list[str]]:
    """Name and arguments of every call of the command line, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    found = (re.match(r"(?:.* -m tokencredit\.cli|tokencredit) +(.*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


def table(page: str, title: str) -> list[list[str]]:
    """Cells of the table whose first column is headed by `title`, without its head."""
    lines = pages[page].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} "))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" |")])
    return rows


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("documented") / "my")


def prepare(page: str, folder: Path, models: Path) -> None:
    """What a reader of the page has: models in `my/`, and the settings files that it shows."""
    (folder / "my").symlink_to(models)
    for _, text in blocks(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)
        assert name, "a block of YAML begins with the name of its file"
        (folder / name[1]).write_text(text)


def page_ids(language: str) -> list[str]:
    return sorted(page for page in pages if blocks(page, language))


def test_there_are_pages_with_code_and_commands():
    assert {"README.md", "docs/guarantees.md", "docs/train-policy.md"} <= set(page_ids("python"))
    assert {"README.md", "docs/quickstart.md", "docs/train-policy.md"} <= set(page_ids("bash"))


@pytest.mark.parametrize("page", sorted(pages))
def test_every_block_says_what_it_is(page):
    opened = re.findall(r"^ *```(.*)$", pages[page], flags=re.M)
    assert set(opened[::2]) <= LANGUAGES
    assert not any(opened[1::2])


@pytest.mark.parametrize("page", page_ids("python"))
def test_python_runs(page, models, tmp_path, monkeypatch):
    if page == "docs/engines-trl.md":
        pytest.importorskip("trl", reason="TRL is an extra")
    prepare(page, tmp_path, models)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for line, text in blocks(page, "python"):
        code = compile("\n" * (line - 1) + text, str(PROJECT / page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("page", page_ids("bash"))
def test_make_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), flags=re.M)
    for _, text in blocks(page, "bash"):
        assert set(re.findall(r"^make ([\w-]+)", text, flags=re.M)) <= set(targets)


def test_commands_are_found_wherever_they_stand():
    text = "make x\ntokencredit a --b 1 \\\n  --c '[2]'\ntorchrun -m tokencredit.cli d # e\n"
    assert commands_in(text) == [["a", "--b", "1", "--c", "[2]"], ["d"]]


@pytest.mark.parametrize("page", sorted(pages))
def test_what_is_named_in_passing_exists(page):
    text = re.sub(r"^```.*?^```$", "", pages[page], flags=re.M | re.S)
    for file in re.findall(r"`((?:tests|benchmarks|runs|src)/[\w/.-]+\.\w+)`", text):
        assert (PROJECT / file).is_file(), file
    for name in re.findall(r"`(tokencredit(?:\.\w+)+)`", text):
        importlib.import_module(name)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((PROJECT / page).parent / link).is_file(), link


def test_every_page_is_in_the_navigation():
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [file for part in parts for file in files(part)]

    listed = files(yaml.safe_load((PROJECT / "mkdocs.yml").read_text())["nav"])
    assert sorted(f"docs/{file}" for file in listed) == sorted(pages.keys() - {"README.md"})


def test_every_public_name_is_on_one_page_of_the_reference():
    shown = [
        module
        for page, text in pages.items()
        if page.startswith("docs/reference/")
        for module in re.findall(r"^::: (\S+)$", text, flags=re.M)
    ]
    defined_in = {getattr(tokencredit, name).__module__ for name in tokencredit.__all__}
    assert sorted(shown) == sorted(defined_in)


def documented(file: Path) -> list[str]:
    """Docstrings of a file: its own, and those of everything in it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds))
    return [text for text in map(ast.get_docstring, nodes) if text is not None]


ROOMS = (".", "credit", "decoding", "evaluation", "judge", "models", "policy", "preference",
         "reward_model", "text", "toy")  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_can_be_read_in_a_tooltip(room):
    files = (PACKAGE / room).glob("*.py") if room == "." else (PACKAGE / room).rglob("*.py")
    texts = [(file.name, text) for file in files for text in documented(file)]
    assert texts
    for name, text in texts:
        assert not re.search(r"math::|:math:", text), text
        if not name.startswith("hf_"):
            assert not re.match(r"(The same|As|Of)\b", text), text


def credit_functions() -> set[str]:
    return {
        name
        for name in tokencredit.__all__
        if name.endswith(("_credit", "_received", "_prefix_scores"))
    }


def test_every_method_has_its_entry():
    functions = [name for one in entries() for name in quoted(one.said("Function"))]
    assert set(functions) >= credit_functions()
    assert set(functions) <= set(tokencredit.__all__)
    for one in entries():
        tests = quoted(one.said("Test"))
        assert tests
        assert all((PROJECT / test).is_file() for test in tests)
        assert one.said("Measured")
        assert one.said("Source")


def test_every_choice_of_what_stands_around_credit_has_its_entry():
    chosen = {choice for one in entries() for choice in one.chosen_by()}
    tables = {
        "credit.method": CREDIT_METHODS,
        "combine.method": AGGREGATIONS,
        "score.transform": SCORE_TRANSFORMS,
        "selection.keep": SELECTIONS,
        "objectives.mix": OBJECTIVE_MIXES,
        "constraints.method": CONSTRAINTS,
    }
    offered = {(setting, name) for setting, names in tables.items() for name in names}
    without = {("score.transform", "none"), ("selection.keep", "all")}
    assert offered - chosen == without


CREDITED = {one.title: one for one in entries() if "_credit`" in one.text and one.said("Conserves")}


@pytest.mark.parametrize("title", CREDITED)
def test_methods_say_of_themselves_what_their_entry_says(title):
    entry = CREDITED[title]
    names = quoted(entry.said("Function"))
    (credit,) = (name for name in names if name.endswith("_credit"))
    docstring = inspect.getdoc(getattr(tokencredit, credit))
    said = re.search(r"Conserves: (.+?)\. Causal: (\w+).*?\. Needs: (.+?)\.", docstring)
    assert said[1] == entry.said("Conserves")
    assert re.match(r"\w+", entry.said("Causal"))[0] == said[2]
    assert said[3] == entry.said("Needs")
    bounded = re.search(r"\. Bounded: (.+?)\. Needs:", docstring)
    assert bounded[1].replace("|R|", "abs(R)") == entry.said("Bounded")
    papers = re.findall(r"arXiv (\d{4}\.\d{5})", docstring)
    authors = re.search(r"Source: (\w+)", docstring)[1]
    source = entry.said("Source")
    assert source.startswith(authors)
    assert set(re.findall(r"\d{4}\.\d{5}", source)) <= set(papers)


def test_every_loss_of_preferences_has_its_entry():
    parts = re.split(r"^### (.+)$", pages["docs/losses.md"], flags=re.M)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    told = {title: Entry(title, text, "losses.md") for title, text in pairs}
    assert list(told) == list(PREFERENCE_LOSSES)
    for name, loss in PREFERENCE_LOSSES.items():
        assert loss.source in told[name].said("Source")
        shown = ", ".join(
            f"`{key}` {value:.3g}" if isinstance(value, float) else f"`{key}` {value}"
            for key, value in loss.options.items()
        )
        assert told[name].said("Options") == (shown or "none")


def test_every_set_up_of_rounds_has_its_row():
    rows = {quoted(row[0])[0]: row for row in table("docs/iterate-preferences.md", "`setup` | is")}
    assert list(rows) == list(ONLINE_SETUPS)
    for name, one in ONLINE_SETUPS.items():
        _, _, source, samples, judged_by, kind, loss, references = rows[name]
        assert one.source in source
        assert samples == str(one.samples)
        assert [judged_by, kind, loss] == [
            f"`{said}`" for said in (one.judged_by, one.rows, one.loss)
        ]
        assert references == (" or ".join(one.references) or "none")


def test_every_builder_of_pairs_has_its_row():
    rows = {quoted(row[0])[0]: row for row in table("docs/data.md", "`--method`")}
    assert list(rows) == list(PAIR_BUILDERS)
    for name, one in PAIR_BUILDERS.items():
        _, words, needs, settings, source, differs = rows[name]
        assert [words, differs] == [one.words, one.differs]
        assert one.source in source
        assert quoted(needs) == [*one.numbers, *one.may, *one.models]
        assert quoted(settings) == [*one.settings]


def test_every_set_up_of_judges_says_what_differs():
    listed = re.findall(r"^- `([\w-]+)` \((.+)\): (.+)\.$", pages["docs/judges.md"], flags=re.M)
    told = {name: (source, differs) for name, source, differs in listed}
    assert list(told) == list(JUDGE_SETUPS)
    for name, one in JUDGE_SETUPS.items():
        source, differs = told[name]
        assert differs == one.differs
        assert all(number in source for number in one.source.split(", "))


MARKED_PAGES = sorted(page for page, text in pages.items() if MARKED.search(text))


@pytest.mark.parametrize("page", MARKED_PAGES)
def test_tables_of_methods_are_those_of_the_code(page):
    made = with_tables(pages[page], page.removeprefix("docs/"))
    assert pages[page] == made, "PYTHONPATH=src python tests/method_tables.py"
    rows = [line for found in MARKED.finditer(pages[page]) for line in found[3].splitlines()]
    assert max(line.count(" | ") + 1 for line in rows) <= 5


@pytest.mark.parametrize("kind", GENERATED)
def test_every_generated_entry_stands_in_the_order_of_its_table(kind):
    _, page, told = GENERATED[kind]
    shown = re.findall(r"^### ([a-z-]+)$", pages[f"docs/{page}"], flags=re.M)
    assert [name for name in shown if name in told()] == list(told())
    parts = re.split(r"^#{2,4} (.+)$", pages[f"docs/{page}"], flags=re.M)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    without = {name for name in told() if "$$" not in texts[name]}
    assert without <= {"unguided", "speculative-rejection"}


def test_entries_are_made_anew_around_their_formulas():
    _, page, told = GENERATED["weight"]
    words, _ = told()["decay"]
    entries_of = "".join(f"\n### {name}\n\nOld.\n\n$$\n{name}\n$$\n\nOld.\n" for name in told())
    made = with_entries(f"{entries_of}\n## After\n", page)
    last = made.split("### decay\n\n")[1]
    assert last.startswith(
        f"{words[0].upper()}{words[1:]}.\n\n$$\ndecay\n$$\n\n- **Needs**: nothing."
    )
    assert last.endswith("advantages.\n\n## After\n")
    assert "Old" not in made
    assert with_entries(made, page) == made
    with pytest.raises(ValueError, match="no heading for 'edits'"):
        with_entries(entries_of.replace("### edits", "### cuts"), page)


def test_every_setting_of_train_policy_is_listed_with_its_default():
    def shown(default: Any) -> str:
        if default is MISSING:
            return "needed"
        if isinstance(default, bool):
            return str(default).lower()
        if default is None or default == ():
            return "empty"
        if isinstance(default, tuple) or len(str(default).split()) > 1:
            return f"`{json.dumps(default)}`"
        return str(default)

    text = pages["docs/train-policy.md"].split("## The run folder")[0]
    listed = re.findall(r"^\| `([\w.]+)` \| (`[^`]+`|\S+) \| \S", text, flags=re.M)
    settings = [(name, shown(one.default)) for name, one in all_settings(TrainPolicyConfig)]
    assert listed == settings


def test_every_metric_is_explained(models, tmp_path):
    held_out = str(models / "held-out")
    config = tiny_config(models, tmp_path / "run", steps=1, held_out_reward_model=held_out)
    train_policy(config)
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    metrics = table("docs/train-policy.md", "name")
    explained = [name for cells in metrics for name in quoted(cells[0])]
    assert sorted(explained) == sorted(row)


def test_algorithms_are_as_the_table_says():
    def said(name: str, row: Algorithm) -> list[str]:
        needs = {"critic": "a critic", "greedy": "greedy responses"}.get(row.needs, row.needs)
        facts = (row.keeps_credit, not row.needs_causal_credit)
        return [f"`{name}`", needs, *("yes" if fact else "no" for fact in facts)]

    rows = table("docs/train-policy.md", "`algorithm.name` | advantage of token t")
    listed = [[cells[0], *cells[2:]] for cells in rows]
    assert sorted(listed) == sorted(said(name, row) for name, row in ALGORITHMS.items())


def test_every_error_is_explained():
    named = {name for row in table("docs/errors.md", "type") for name in quoted(row[0])}
    concrete = {c.__name__ for c in errors.TokenCreditError.__subclasses__()}
    assert named == concrete


def test_settings_for_those_who_come_from_trl_exist():
    named = {name for row in table("docs/coming-from.md", "TRL") for name in quoted(row[1])}
    assert named <= {name for name, _ in all_settings(TrainPolicyConfig)}


def test_the_tree_is_that_of_the_package():
    shown = next(text for _, text in blocks("docs/architecture.md", "text") if "src/" in text)
    assert shown == drawn_tree(), "python tests/package_tree.py writes it anew"


def test_the_glossary_is_short_and_sorted():
    words = [row[0] for row in table("docs/glossary.md", "word")]
    assert words == sorted(words, key=str.lower)
    assert 10 < len(words) <= 20


def links(page: str) -> set[str]:
    """The pages of the site that a page leads to."""
    found = re.findall(r"\]\(([^)#:]+\.md)", pages[page])
    to = ((PROJECT / page).parent / link for link in found)
    return {file.resolve().relative_to(PROJECT).as_posix() for file in to}


@pytest.mark.parametrize(
    "answer",
    ["docs/train-policy.md", "docs/performance.md", "docs/results/index.md",
     "docs/tutorials/add-a-method.md"],
)  # fmt: skip
def test_what_readers_ask_is_within_three_clicks(answer):
    reached = {"docs/index.md"}
    for _ in range(3):
        reached |= {to for page in reached & pages.keys() for to in links(page)}
    assert answer in reached
