"""Weights between a policy before its training and after it, as one model.

    tokencredit merge-weights --base my/policy --tuned run/policy --output merged --method lines

What is learnt from a reward costs some of what the policy could do before. Between the two lie
policies that have most of the one and lose less of the other.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.errors import ConfigError, ModelError, RunFolderError
from tokencredit.models.hf_loading import load_model, load_tokenizer, quiet_transformers
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.models.merging import Weights, lines_shares, merged_weights, require_same_shapes
from tokencredit.names import named
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.merging.adaptive import fitted_shares
from tokencredit.recipes.merging.settings import AdaptiveSettings
from tokencredit.recipes.run.run_folder import flush, writing
from tokencredit.recipes.settings import LoadingSettings, group


@dataclass(frozen=True)
class MergeWeightsConfig:
    """Settings of one merge."""

    base: str
    """Hub id or folder of the policy before its training."""
    tuned: str
    """Hub id or folder of the trained policy; an adapter is added to its own base first."""
    output: str
    """Folder of the merged policy; a new one."""
    method: str = "average"
    """`average` gives every weight the same `share`, `lines` gives deeper blocks more, `ama` fits
    the shares of groups of blocks on texts."""
    share: float = 0.5
    """For `average`: share of the trained policy, from 0 to 1."""
    alpha: float = 0.0
    """For `lines`: share of the first block and of weights outside blocks."""
    beta: float = 1.0
    """For `lines`: how much more the last block has."""
    ama: AdaptiveSettings = group(AdaptiveSettings)
    """For `ama`: on which texts shares are fitted, and how."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models and tokenizers are loaded."""

    def __post_init__(self) -> None:
        named("method", self.method, MERGES)
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share}; expected a number from 0 to 1")
        if (self.method == "ama") != (self.ama.data is not None):
            raise ConfigError(
                f"method is {self.method!r} and ama.data {self.ama.data!r}; expected texts for "
                "'ama', on which its shares are fitted, and none for others"
            )
        require_at_least(self.ama, 1, "groups", "batch_size", room="ama.")
        require_at_least(self.ama, 2, "max_length", room="ama.")
        require_positive(self.ama, "epochs", "learning_rate", room="ama.")


@dataclass(frozen=True)
class Merge:
    """One way to find the share of each weight.

    Attributes:
        shares: from the settings, the trained model with its tokenizer, the weights of both and
            the names of those that are trained to shares by name.
        text: what it is, with its source, in a line.
    """

    shares: Callable[
        [MergeWeightsConfig, PreTrainedModel, PreTrainedTokenizerBase, Weights, Weights],
        dict[str, float],
    ]
    text: str


MERGES: dict[str, Merge] = {
    "average": Merge(
        lambda config, _model, _tokenizer, base, _tuned: dict.fromkeys(base, config.share),
        "one share for every weight",
    ),
    "lines": Merge(
        lambda config, _model, _tokenizer, base, _tuned: lines_shares(
            base, alpha=config.alpha, beta=config.beta
        ),
        "shares that rise with the depth of a block (LiNeS, arXiv 2410.17146)",
    ),
    "ama": Merge(
        lambda config, model, tokenizer, base, tuned: fitted_shares(
            config.ama, model, tokenizer, base, tuned
        ),
        "shares of groups of blocks, fitted on the best of several responses (AMA, arXiv "
        "2309.06256)",
    ),
}
"""Rows by the names that `method` takes."""


@quiet_transformers()
def merge_weights(config: MergeWeightsConfig) -> Path:
    """Merge two policies; the folder appears whole or not at all.

    Args:
        config: the settings.

    Returns:
        The folder of the merged policy with its tokenizer, and `merge.json` with the settings and
        the share of each weight.

    Raises:
        ModelError: a model is not there, or they differ in architecture, vocabulary or tied
            weights.
        DataError: the texts of `ama` are not there, or none has anything to predict.
        RunFolderError: the folder is there already, or cannot be written.
        NumericError: a share is NaN or infinite.
    """
    folder = Path(config.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} is there already; expected a new folder for `output`")
    base, base_tokenizer = _loaded(config, config.base)
    tuned, tokenizer = _loaded(config, config.tuned)
    if not shares_vocabulary(base_tokenizer, tokenizer):
        raise ModelError(
            f"{config.base} and {config.tuned} have different vocabularies; expected one: weights "
            "of embeddings would be averages of different tokens"
        )
    before, after = _weights(base), _weights(tuned)
    require_same_shapes(before, after)
    shares = MERGES[config.method].shares(config, tuned, tokenizer, before, after)
    merged = merged_weights(before, after, shares)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight.copy_(merged[name])
    _write(config, tuned, tokenizer, shares, folder)
    print(f"merged policy: {folder}")
    return folder


def _loaded(
    config: MergeWeightsConfig, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    loading = config.loading
    model = load_model(AutoModelForCausalLM, name, **loading.of_frozen)
    tokenizer = load_tokenizer(
        name, pad_token=loading.pad_token, trust_remote_code=loading.trust_remote_code
    )
    return model, tokenizer


def _weights(model: PreTrainedModel) -> Weights:
    """The weights of a model, each that is tied once."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _write(
    config: MergeWeightsConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shares: dict[str, float],
    folder: Path,
) -> None:
    beside = folder.with_name(f".{folder.name}.writing")
    told: dict[str, Any] = {"settings": asdict(config), "shares": shares}
    try:
        with writing(folder):
            shutil.rmtree(beside, ignore_errors=True)
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            (beside / "merge.json").write_text(json.dumps(told, indent=1) + "\n")
            for file in beside.iterdir():
                flush(file)
            if folder.exists():
                folder.rmdir()
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
