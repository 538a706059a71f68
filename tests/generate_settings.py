"""Settings of `generate` by `group.setting`, as the command line names them."""

from typing import Any, get_type_hints

from tokencredit.recipes.decoding.settings import GenerateConfig


def generate_config(**settings: Any) -> GenerateConfig:
    kinds = get_type_hints(GenerateConfig)
    alone = {name: value for name, value in settings.items() if "." not in name}
    groups: dict[str, dict[str, Any]] = {}
    for name in settings.keys() - alone.keys():
        group, _, inside = name.partition(".")
        groups.setdefault(group, {})[inside] = settings[name]
    return GenerateConfig(**alone, **{name: kinds[name](**given) for name, given in groups.items()})
