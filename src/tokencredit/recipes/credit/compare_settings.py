"""The settings of `tokencredit compare-credit`, and which of them contradict each other."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.scorers.evidence import TEXT_CREDITS, TextCredit, require_text_credit
from tokencredit.text.hf_rendering import Template

MarkDirection = Literal["label", "high", "low", "magnitude"]


@dataclass(frozen=True)
class CompareCreditConfig:
    """Settings of one comparison.

    Attributes:
        reward_model: Hub id or folder of a sequence-classification model with one or two outputs.
        marked: marked texts: dataset id, dataset folder, or JSON-lines file.
        output: run folder; holds the table, the report and the scores of every method.
        split: of a dataset id or folder.
        limit: use only this many first rows; None uses all.
        direction: what credit a marked word should have: `label` high in texts of label 1 and low
            in those of label 0, `high`, `low` (spans of errors) or `magnitude` (far from zero).
        methods: credit methods of the reward model to compare.
        attention_layers: layers that `attention` reads, one forward pass and one row each; -1 is
            the last. With several of them their mean has a row too.
        smoothing_decay: share of the potential that `smoothed-prefix-difference` keeps per token.
        gradient_steps: gradients per text of `integrated-gradients`.
        window_width: most words that `window` reads at once.
        shapley_samples: orders of the words of a text that `shapley` and the correlation with it
            try out; even.
        implicit_reward: folder or id of a language model trained by DPO, whose log-ratio to its
            reference is one more method; None for none.
        implicit_reference: the reference; None takes what the model's configuration says.
        token_classifier: folder or id of a classifier of tokens, one more method; None for none.
        baseline_texts: texts with labels, or pairs, to count words in for the naive-Bayes
            baseline; None leaves it out.
        lexicons: files of a word, a tab and a weight per line, one baseline each.
        faithfulness_documents: number of texts for the columns that ask the reward model again
            and again; 0 leaves them out.
        resamples: of the documents, for the intervals.
        heatmaps: number of texts shown word by word in the report.
        template: how prompts and responses are joined, as in `score-tokens`; texts without a
            prompt are read as they are.
        batch_size: texts per forward pass.
        dtype: of the weights.
        attn_implementation: of transformers; None for its default.
        device: to compute on; None for the CPU.
        pad_token: token to pad with, where the tokenizer names none.
        trust_remote_code: run code that comes with a model; off unless you trust its author.
        seed: of the random baseline, the sampled orders and the intervals.
        progress: show a progress bar.
    """

    reward_model: str
    marked: str
    output: str
    split: str = "train"
    limit: int | None = None
    direction: MarkDirection = "label"
    methods: tuple[TextCredit, ...] = TEXT_CREDITS[:-2]
    attention_layers: tuple[int, ...] = (-1,)
    smoothing_decay: float = 0.5
    gradient_steps: int = 16
    window_width: int = 3
    shapley_samples: int = 20
    implicit_reward: str | None = None
    implicit_reference: str | None = None
    token_classifier: str | None = None
    baseline_texts: str | None = None
    lexicons: tuple[str, ...] = ()
    faithfulness_documents: int = 20
    resamples: int = 1000
    heatmaps: int = 4
    template: Template = "auto"
    batch_size: int = 16
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None
    device: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for method in self.methods:
            require_text_credit(method, setting="one of methods")
        if len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"methods are {self.methods}; expected each of them once")
        if "attention" in self.methods and not self.attention_layers:
            raise ConfigError("attention_layers is empty; expected at least one for 'attention'")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.shapley_samples % 2:
            raise ConfigError(f"shapley_samples is {self.shapley_samples}; expected an even number")
        if not 0 <= self.smoothing_decay <= 1:
            raise ConfigError(f"smoothing_decay is {self.smoothing_decay}; expected 0 to 1")
        if self.implicit_reference is not None and self.implicit_reward is None:
            raise ConfigError(
                "implicit_reference without implicit_reward; expected both or neither"
            )


_LEAST = {
    "gradient_steps": 1,
    "window_width": 1,
    "shapley_samples": 2,
    "faithfulness_documents": 0,
    "resamples": 1,
    "heatmaps": 0,
    "batch_size": 1,
}
