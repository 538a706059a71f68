"""The settings of `tokencredit compare-credit`, with the combinations that it refuses."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.settings import LoadingSettings, group, setting
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

MarkDirection = Literal["label", "high", "low", "magnitude"]


@dataclass(frozen=True)
class BaselineSettings:
    """Baselines that use no reward model."""

    texts: str | None = setting(None, was="baseline_texts")
    """Texts with labels, or pairs, to count words in for the naive-Bayes baseline; None leaves it
    out."""
    lexicons: tuple[str, ...] = ()
    """Files of a word, a tab and a weight per line, one baseline each."""


@dataclass(frozen=True)
class CompareCreditConfig:
    """Settings of one comparison."""

    reward_model: str
    """Hub id or folder of a sequence-classification model with one or two outputs."""
    marked: str
    """Marked texts: dataset id, dataset folder, or JSON-lines file."""
    output: str = setting(free=True)
    """Run folder; holds the table, the report and the scores of every method."""
    split: str = "train"
    """Split of a dataset id or folder."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    direction: MarkDirection = setting("label", free=True)
    """What credit a marked word should have: `label` high in texts of label 1 and low in those of
    label 0, `high`, `low` (spans of errors) or `magnitude` (far from zero)."""
    methods: tuple[str, ...] = setting(
        (
            "terminal",
            "uniform",
            "attention",
            "prefix-difference",
            "smoothed-prefix-difference",
            "gradient-times-input",
            "integrated-gradients",
            "leave-one-out",
        ),
        free=True,
    )
    """Credit methods to compare that need the reward model alone."""
    others: tuple[CreditSettings, ...] = setting(
        (), was="implicit_reward implicit_reference token_classifier", free=True
    )
    """Credit methods with a model of their own, in whose tokens they are scored: each with its
    `method`, `model` and options, and a row under the name of the method."""
    attention_layers: tuple[int, ...] = (-1,)
    """Layers that `attention` reads, one forward pass and one row each; -1 is the last. With
    several of them their mean has a row too."""
    credit: CreditSettings = group(CreditSettings)
    """Options of the methods; `credit.method`, `credit.layer` and `credit.model` are not read."""
    segments: SegmentSettings = group(SegmentSettings)
    """How texts are cut, for methods that need segments."""
    baselines: BaselineSettings = group(BaselineSettings, free=True)
    """Baselines that methods have to beat."""
    faithfulness_documents: int = setting(20, free=True)
    """Number of texts for the columns that ask the reward model again and again; 0 leaves them
    out."""
    resamples: int = setting(1000, free=True)
    """Resamples of the documents, for the intervals."""
    heatmaps: int = setting(4, free=True)
    """Number of texts shown word by word in the report."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    batch_size: int = setting(16, free=True)
    """Texts per forward pass."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    show_example: bool = setting(False, free=True)
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = setting(None, free=True)
    """Device to compute on, such as `cuda`; None for the CPU."""
    seed: int = 0
    """Seed of the random baseline, the sampled orders and the intervals."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit")
        for name in self.methods:
            if credit_method(name).model_kind:
                raise ConfigError(
                    f"methods name {name!r}, which needs a model of its own; expected it among "
                    '`others`, with its model: [{"method": "' + name + '", "model": "..."}]'
                )
        named = [*self.methods, *(other.method for other in self.others)]
        if len(set(named)) < len(named):
            raise ConfigError(f"methods and others are {named}; expected each of them once")
        if "attention" in self.methods and not self.attention_layers:
            raise ConfigError("attention_layers is empty; expected at least one for 'attention'")
        require_at_least(self, 0, "faithfulness_documents", "heatmaps")
        require_at_least(self, 1, "resamples", "batch_size")
