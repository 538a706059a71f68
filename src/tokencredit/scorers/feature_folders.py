"""Which folders hold a model of features."""

from pathlib import Path

from tokencredit.errors import ModelError

FEATURE_FILE = "features.json"
"""What `train-feature-model` writes: the model, and the function that says the features."""


def has_feature_model(name: str) -> bool:
    """Whether a name is that of a folder of `train-feature-model`."""
    return (Path(name) / FEATURE_FILE).is_file()


def require_tokens(name: str) -> None:
    """Raise ModelError for a folder of `train-feature-model`, where tokens are to be read.

    Args:
        name: of a reward model.
    """
    if has_feature_model(name):
        raise ModelError(
            f"{name!r} is a folder of train-feature-model, which reads numbers about a text and "
            "has no tokens; expected a sequence-classification model here. Such a folder is taken "
            "by train-policy, evaluate-reward-model, vote-on-pairs, evaluate-edits, build-pairs "
            "and iterate-preferences, and beside a reward model by score-tokens, explain and serve"
        )
