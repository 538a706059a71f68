"""`tokencredit <command>`: finds the recipe, builds its settings, runs it.

Nothing heavy is imported before a command is known, so that help comes at once.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from tokencredit.names import nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "quickstart",
        "run the whole story on the built-in task: models, four credits, figures",
    ),
    "train-language-model": (
        "language_model.train_language_model",
        "train a language model on texts, or fine-tune one on completions",
    ),
    "train-reward-model": (
        "reward_model.train_reward_model",
        "train a reward model on pairs, labels or ratings, whole or by prefixes",
    ),
    "describe-users": (
        "reward_model.describe_users",
        "users whom a reward model has not seen in training, by pairs of theirs (VPL)",
    ),
    "train-gate": (
        "reward_model.train_gate",
        "train a gate that weighs the objectives of a reward model by the prompt (ArmoRM)",
    ),
    "train-token-classifier": (
        "reward_model.train_token_classifier",
        "train a classifier of tokens on edits, labelled spans or steps",
    ),
    "train-implicit-reward": (
        "reward_model.train_implicit_reward",
        "train by DPO a model whose log-ratio is a reward on every token",
    ),
    "train-vocabulary-reward": (
        "reward_model.train_vocabulary_reward",
        "train a model that scores all next tokens in one pass (FaRMA, GenARM, CD)",
    ),
    "train-rewriter": (
        "reward_model.train_rewriter",
        "train a language model to rewrite rejected answers into chosen ones",
    ),
    "train-feature-model": (
        "reward_model.train_feature_model",
        "a reward model of numbers that a Python function counts in a text",
    ),
    "train-judge": (
        "judge.train_judge",
        "train a language model to judge with one token",
    ),
    "evaluate-reward-model": (
        "reward_model.evaluate_reward_model",
        "measure accuracy, calibration and length bias of a reward model on pairs",
    ),
    "evaluate-edits": (
        "reward_model.evaluate_edits",
        "measure what an edit of one attribute of a text does to its score",
    ),
    "evaluate-judge": (
        "judge.evaluate_judge",
        "measure the accuracy of a judge on pairs, and how often their order changes it",
    ),
    "vote-on-pairs": (
        "reward_model.vote_on_pairs",
        "let several reward models vote on pairs: margins, soft labels, flips",
    ),
    "build-pairs": (
        "data.build_pairs",
        "build pairs from ratings, factors, aspects, agreement or trees; choose pairs to ask about",
    ),
    "build-judge-prompts": (
        "judge.build_judge_prompts",
        "build questions with known answers, to train a judge that writes its verdict",
    ),
    "train-policy": (
        "policy.train_policy",
        "train a policy by PPO with a reward on every token, or by RLOO, GRPO and others",
    ),
    "test-safety": (
        "policy.safety",
        "test whether the mean cost of a policy on held-out prompts is low enough",
    ),
    "train-preferences": (
        "preferences.train_preferences",
        "train a policy by DPO or another offline loss, with a weight for each token",
    ),
    "iterate-preferences": (
        "iteration.iterate_preferences",
        "train on the policy's own responses, round by round: DPO, INPO, CREAM, SPIN",
    ),
    "merge-weights": (
        "merging.merge_weights",
        "merge a policy with its weights before training: averages, LiNeS, AMA",
    ),
    "generate": (
        "decoding.generate",
        "steer responses with a reward model, by tokens or segments, without training",
    ),
    "compare-learning": (
        "policy.compare_learning",
        "train with several credits or algorithms on one grid, to see which learns fastest",
    ),
    "score-tokens": (
        "credit.score_tokens",
        "score the tokens of texts, as a table or JSON lines",
    ),
    "fit-credit": (
        "credit.fit_credit",
        "fit mean scores by length and location, for credit that subtracts them",
    ),
    "methods": (
        "methods",
        "list every method that can be chosen by name, with what it needs",
    ),
    "serve": (
        "serving.serve",
        "serve a reward model over HTTP: scores and token credit for any engine",
    ),
    "compare-credit": (
        "credit.compare_credit",
        "compare where each credit falls with the words that people marked",
    ),
    "explain": (
        "credit.explain",
        "draw a heat map of one response in the terminal, as HTML or as PNG",
    ),
}
"""Each command: its module under `tokencredit.recipes`, and what it does."""
SETTINGS_APART = {
    "train-judge": "judge.settings",
    "compare-credit": "credit.compare_settings",
    "train-policy": "policy.settings",
}
"""Commands whose settings stand apart from transformers, so that help comes sooner: the modules."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    _show_what_can_be_shown()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"tokencredit {version('tokencredit')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        print(f"tokencredit: unknown command {name!r}.{hint}\n\n{_overview()}", file=sys.stderr)
        return 2
    return _run(name, rest)


def recipe_of(name: str) -> tuple[Callable[[Any], Any], type]:
    """The function behind a command, and the class of its settings."""
    module = import_module(f"tokencredit.recipes.{COMMANDS[name][0]}")
    return getattr(module, name.replace("-", "_")), settings_of(name)


def settings_of(name: str) -> type:
    """The class of a command's settings, without the command itself where it can be had alone."""
    module = import_module(f"tokencredit.recipes.{SETTINGS_APART.get(name, COMMANDS[name][0])}")
    return getattr(module, "".join(map(str.capitalize, name.split("-"))) + "Config")


def _show_what_can_be_shown() -> None:
    """Characters that the console lacks are shown by their numbers, in all that is printed."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: tokencredit <command> [--config file.yaml] [--setting value ...]\n\n"
        f"commands:\n{rows}\n\n"
        "`tokencredit <command> --help` lists the settings of a command. What is None there is\n"
        "`null` on the command line and in a file."
    )


def _run(name: str, arguments: list[str]) -> int:
    from tokencredit.errors import TokenCreditError

    try:
        config = _parsed(name, settings_of(name), arguments)
        recipe, _ = recipe_of(name)
        _show(name, config)
        with _loading_told():
            found = recipe(config)
    except TokenCreditError as error:
        print(f"tokencredit {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tokencredit {name}: interrupted", file=sys.stderr)
        return 130
    return getattr(found, "exit_status", 0)


@contextmanager
def _loading_told() -> Iterator[None]:
    """One line on standard error for every model that is loaded, from the first process alone."""
    log, level = logging.getLogger("tokencredit.loading"), logging.INFO
    if os.environ.get("RANK", "0") != "0":
        level = logging.WARNING
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        new = line not in told
        told.add(line)
        return new

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(is_new)
    level_before = log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level_before)


def _parsed(name: str, config_class: type, arguments: list[str]) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    from tokencredit.errors import ConfigError, TokenCreditError
    from tokencredit.recipes.settings import require_known
    from tokencredit.recipes.settings_files import require_few_aliases, require_small_file

    names = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    require_known(config_class, [name.removesuffix("+") for name in names])
    for word, after in pairwise([*arguments, ""]):
        if word == "--config" or word.startswith("--config="):
            require_small_file(after if word == "--config" else word.removeprefix("--config="))
        else:
            require_few_aliases(word, "an argument")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"tokencredit {name}", exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_class_arguments(config_class)
    try:
        parsed = parser.parse_args(arguments)
        parsed.pop("config", None)
        return config_class(**vars(parser.instantiate(parsed)))
    except (ArgumentError, TypeError) as error:
        raise ConfigError(f"{error}{_nearest(str(error), config_class)}") from error
    except TokenCreditError:
        raise
    except Exception as error:  # what YAML can hold is more than the parser foresees
        raise ConfigError(
            f"the settings cannot be read: {type(error).__name__}: {error}; expected --setting "
            "value, or a YAML file of UTF-8 text with one `setting: value` a line"
        ) from error


def _nearest(message: str, config_class: type) -> str:
    """What a setting that is not known was meant to be: its name today, or a near one."""
    from tokencredit.recipes.settings import moved_settings, setting_meant_by

    inside = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if inside:
        message = f"not accepted {inside[1]}.{inside[2]}"
    words = [word.strip("_.,:") for word in re.split(r"[\s'\"=]+", message.replace("-", "_"))]
    moved = [word for word in words if word in moved_settings(config_class)]
    if not any(word in message for word in ("nrecognized", "not accepted", "not expected")):
        words = []
    return next(filter(None, (setting_meant_by(config_class, w) for w in [*moved, *words])), "")


def _show(name: str, config: Any) -> None:
    from tokencredit.recipes.run.run_folder import resolved_yaml

    print(f"# tokencredit {name}\n{resolved_yaml(config)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
