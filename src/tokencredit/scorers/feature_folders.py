"""Which folders hold a model of features."""

from pathlib import Path

FEATURE_FILE = "features.json"
"""What `train-feature-model` writes: the model, and the function that says the features."""


def has_feature_model(name: str) -> bool:
    """Whether a name is that of a folder of `train-feature-model`."""
    return (Path(name) / FEATURE_FILE).is_file()
