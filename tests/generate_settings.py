"""Settings of `generate` by `group.setting`, as the command line names them, and what it writes."""

import json
from pathlib import Path
from typing import Any, get_type_hints

from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.decoding.search.hf_methods import SEARCHES
from tokencredit.recipes.decoding.generate import generate
from tokencredit.recipes.decoding.settings import GenerateConfig
from tokencredit.recipes.run.run_folder import read_jsonl

SMALL_SEARCHES: dict[str, dict[str, Any]] = {
    "cards": {"cards.target_reward": 2.0, "cards.entropy_threshold": 1.0, "cards.max_proposals": 4},
    "chunk-beam": {"n": 3, "chunk_beam.tokens": 2, "chunk_beam.beams": 2},
    "tree-bon": {"n": 4, "tree_bon.layers": 3},
    "speculative-rejection": {"n": 4, "rejection.check_every": 2},
    "implicit-beam": {"implicit_beam.beams": 3},
    "best-of-n": {"n": 3},
}
"""Settings of each search for responses of a few tokens."""


def generate_config(**settings: Any) -> GenerateConfig:
    kinds = get_type_hints(GenerateConfig)
    alone = {name: value for name, value in settings.items() if "." not in name}
    groups: dict[str, dict[str, Any]] = {}
    for name in settings.keys() - alone.keys():
        group, _, inside = name.partition(".")
        groups.setdefault(group, {})[inside] = settings[name]
    return GenerateConfig(**alone, **{name: kinds[name](**given) for name, given in groups.items()})


def method_config(models: Path, output: Path, method: str, **changes: Any) -> GenerateConfig:
    """Settings of a method for the models in a folder: `policy`, `reward`, and `dpo` if needed."""
    settings: dict[str, Any] = {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "prompts": str(models / "prompts.jsonl"),
        "output": str(output),
        "method": method,
        "sampling.max_new_tokens": 6,
        "progress": False,
    }
    if method in GUIDANCE_METHODS and GUIDANCE_METHODS[method].needs == "vocabulary":
        settings["reward_model"] = str(models / "policy")
    if method in SEARCHES and "implicit model" in SEARCHES[method].needs:
        settings["implicit.model"] = str(models / "dpo")
    return generate_config(**settings | SMALL_SEARCHES.get(method, {}) | changes)


def written(
    models: Path, output: Path, method: str, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The responses of a method, and its metrics."""
    rows = read_jsonl(generate(method_config(models, output, method, **changes)))
    return rows, json.loads((output / "metrics.json").read_text())
