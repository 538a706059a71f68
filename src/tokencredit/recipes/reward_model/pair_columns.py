"""Where the parts of a pair stand in its row."""

from dataclasses import dataclass

from tokencredit.recipes.settings import setting


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns of pairs."""

    prompt: str | None = setting(None, was="prompt_column")
    """Prompts, texts or lists of chat messages; None takes `prompt` or another usual name where one
    is there, or else what both texts begin with; an empty name for answers that stand alone."""
    chosen: str = setting("chosen", was="chosen_column")
    """The preferred responses."""
    rejected: str = setting("rejected", was="rejected_column")
    """The others."""
