"""Who may import what, and what comes in with a bare `import tokencredit`."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tokencredit.cli import SETTINGS_APART

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "tokencredit"
HUGGING_FACE = {
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "tokenizers",
    "transformers",
    "trl",
}
HEAVY = HUGGING_FACE | {"matplotlib", "jinja2", "jsonargparse", "rich"}
PURE = sys.stdlib_module_names | {"torch", "jaxtyping", "tokencredit"}
ALSO = {
    "__init__.py": {"lazy_loader"},
    "cli.py": {"jsonargparse"},
    "evaluation/heatmap.py": {"jinja2", "markupsafe", "matplotlib", "rich"},
    "evaluation/plots.py": {"matplotlib"},
    "evaluation/comparison_plots.py": {"matplotlib"},
    "evaluation/report.py": {"jinja2", "markupsafe"},
    "evaluation/token_heatmap.py": {"markupsafe", "rich"},
    "preference/labels.py": {"rapidfuzz"},
    "server/app.py": {"fastapi", "pydantic", "starlette"},
    "server/encoding.py": {"pydantic", "pydantic_core"},
    "server/intake.py": {"pydantic", "starlette"},
    "server/listening.py": {"fastapi", "uvicorn"},
    "server/messages.py": {"pydantic", "pydantic_core"},
    "server/metrics.py": {"prometheus_client"},
    "server/page.py": {"jinja2", "markupsafe"},
    "server/refusals.py": {"pydantic", "starlette"},
    "server/visitors.py": {"starlette"},
}

files = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
outside_recipes = [file for file in files if not file.startswith(("recipes/", "scorers/"))]


def is_adapter(file: str) -> bool:
    """Whether a file may import the library that its name begins with."""
    return file.rsplit("/", 1)[-1].startswith(("hf_", "trl_", "verl_"))


pure_files = [file for file in outside_recipes if not is_adapter(file)]
other_scorers = [file for file in files if file.startswith("scorers/") and not is_adapter(file)]


def imported_by(file: str) -> set[str]:
    """Full names of everything imported anywhere in a file, in functions too."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import; expected absolute ones"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the code."""
    report = "\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in run.stdout.split()}


def test_the_public_names_bring_no_hugging_face():
    loaded = loaded_after(
        "import tokencredit\nfor name in tokencredit.__all__: getattr(tokencredit, name)"
    )
    assert "torch" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]])
def test_the_command_line_answers_without_torch(arguments):
    loaded = loaded_after(f"from tokencredit.cli import main\nmain({arguments})")
    assert "tokencredit" in loaded
    assert not loaded & (HEAVY | {"torch"})


@pytest.mark.parametrize("command", sorted(SETTINGS_APART))
def test_help_of_commands_whose_settings_stand_apart_needs_no_hugging_face(command):
    silent = "from contextlib import redirect_stdout, suppress\nfrom io import StringIO\n"
    silent += (
        "from tokencredit.cli import main\nwith suppress(SystemExit), redirect_stdout(StringIO()):"
    )
    loaded = loaded_after(f"{silent} main([{command!r}, '--help'])")
    assert "torch" in loaded
    assert not loaded & (HUGGING_FACE | {"matplotlib"})


def test_there_are_files_of_every_kind():
    assert {"masking.py", "credit/redistribution.py"} <= set(pure_files)
    assert "text/hf_encoding.py" in outside_recipes
    assert "text/hf_encoding.py" not in pure_files
    assert len(outside_recipes) < len(files)


@pytest.mark.parametrize("file", pure_files)
def test_pure_files_need_torch_and_jaxtyping_alone(file):
    foreign = {name.split(".")[0] for name in imported_by(file)} - PURE
    assert foreign <= ALSO.get(file, set())


@pytest.mark.parametrize("file", pure_files)
def test_pure_files_do_not_reach_hugging_face_through_an_adapter(file):
    adapters = (".hf_", ".trl_", ".verl_")
    assert not {name for name in imported_by(file) if any(part in name for part in adapters)}


@pytest.mark.parametrize("file", other_scorers)
def test_scorers_that_import_hugging_face_say_so_in_their_name(file):
    assert not {name.split(".")[0] for name in imported_by(file)} & HUGGING_FACE


@pytest.mark.parametrize("file", [file for file in files if not file.startswith("recipes/")])
def test_nothing_but_the_command_line_imports_recipes(file):
    recipes = {name for name in imported_by(file) if name.startswith("tokencredit.recipes")}
    assert not recipes or file == "cli.py"


@pytest.mark.parametrize("file", files)
def test_nothing_imports_engines(file):
    engines = {name for name in imported_by(file) if name.startswith("tokencredit.engines")}
    assert not engines or file.startswith("engines/")


scripts = [
    path.relative_to(PROJECT).as_posix()
    for folder in ("benchmarks", "examples", "runs")
    for path in sorted((PROJECT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("script", scripts)
def test_scripts_import_what_the_package_has(script):
    """No test runs the long scripts, so that a name that moved would break them unseen."""
    for node in ast.walk(ast.parse((PROJECT / script).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "tokencredit":
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                if not hasattr(module, name):
                    importlib.import_module(f"{node.module}.{name}")
