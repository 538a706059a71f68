"""Settings of a merge that fits its shares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptiveSettings:
    """On which texts the shares of groups of blocks are fitted, and how."""

    data: str | None = None
    """Prompts with responses of the trained policy, the best of several each, as `generate --method
    best-of-n` writes them; dataset id, dataset folder or file."""
    prompt: str = "prompt"
    """Column of the prompts."""
    response: str = "response"
    """Column of the responses."""
    split: str = "train"
    """Split of a dataset folder or id, or a slice of one."""
    groups: int = 3
    """Groups of neighbouring blocks, each with a share of its own."""
    base_share: float = 0.2
    """Share of the policy before its training, on average over the groups."""
    floor: float = 0.2
    """Leaves every group some of the policy before its training: the smaller, the further the
    groups may differ."""
    learning_rate: float = 0.02
    """Learning rate of Adam, for the logits of the shares."""
    epochs: int = 1
    """Passes over the texts."""
    batch_size: int = 8
    """Texts per step."""
    max_length: int = 512
    """Most tokens of a prompt with its response; longer ones lose the end of the response."""
    seed: int = 0
    """Seed of the order of the texts."""
