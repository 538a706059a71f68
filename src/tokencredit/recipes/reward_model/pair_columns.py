"""Where the parts of a pair stand in its row."""

from dataclasses import dataclass
from typing import Any

from tokencredit.recipes.settings import setting


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns of pairs."""

    prompt: str | None = setting(None, was="prompt_column")
    """Prompts, texts or lists of chat messages. None takes `prompt` or another usual name; without
    one, the prompt is what both texts begin with. An empty name is for answers without a prompt."""
    chosen: str = setting("chosen", was="chosen_column")
    """The preferred responses."""
    rejected: str = setting("rejected", was="rejected_column")
    """The others."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The names of all columns, as keyword arguments of `load_pairs`.

        >>> PairColumns(chosen="better").arguments["chosen_column"]
        'better'
        """
        return {f"{part}_column": name for part, name in vars(self).items()}
