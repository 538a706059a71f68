"""The settings of `tokencredit train-token-classifier`, and which of them contradict each other."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.preference.spans import Overlapping
from tokencredit.recipes.supervised import require_fitting

LabelSource = Literal["edits", "spans", "steps"]


@dataclass(frozen=True)
class TrainTokenClassifierConfig:
    """Settings of one token classifier.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id.
        model: Hub id or folder of the language model or classifier to start from.
        output: run folder; holds the model in Hugging Face layout when it is done.
        labels: where labels come from. `edits`: tokens that an edit took out are negative, those
            that it put in positive. `spans`: pieces of a text with a label each. `steps`: good and
            bad steps, judged at their last token.
        split: of a dataset folder or id.
        prompt_column: column of the prompts, texts or lists of chat messages. None takes `prompt`
            where it is there; else the texts have no prompt.
        rejected_column: column of the responses before the edit.
        edited_column: column of the responses after it.
        text_column: column of the texts that spans are about.
        spans_column: column of lists of spans: objects with `start`, `end` and `label`.
        severities: the labels of spans, from the mildest to the worst; needed for spans.
        overlapping: where spans overlap, the `worst` label wins, or it is an `error`.
        completions_column: column of lists of steps.
        labels_column: column of lists of 0 and 1, one per step.
        step_separator: text behind every step.
        class_weights: weight of each class in the loss, in the order of the classes; empty for 1.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different prompts or texts held out where there is no `eval_data`;
            0 holds none out.
        pad_token: padding of a tokenizer that has none, added where it is no token yet.
        append_eos: end each response with the end of sequence, which gets a label too. Leave it on
            if the policy ends its responses. A chat template ends them itself.
        max_length: of prompt and response, in tokens. A longer row loses the start of its prompt
            first, and then the end of its response.
        epochs: passes over the data.
        batch_size: responses per process and backward pass; an edit is two.
        gradient_accumulation: backward passes per optimiser step.
        learning_rate: highest of AdamW's, reached after the warm-up; a cosine takes it to 0.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        lora_rank: train a LoRA adapter of this rank and merge it; 0 trains all weights.
        lora_alpha: scale of the adapter.
        mixed_precision: `bf16` trains under autocast; weights stay float32.
        attn_implementation: of transformers; None for its default.
        trust_remote_code: run code that comes with a model; off unless you trust its author.
        seed: of everything random.
        device: `cpu` keeps to the CPU; None takes what Accelerate finds.
        progress: show a progress bar.
    """

    data: str
    model: str
    output: str
    labels: LabelSource
    split: str = "train"
    prompt_column: str | None = None
    rejected_column: str = "rejected"
    edited_column: str = "edited"
    text_column: str = "text"
    spans_column: str = "spans"
    severities: tuple[str, ...] = ()
    overlapping: Overlapping = "worst"
    completions_column: str = "completions"
    labels_column: str = "labels"
    step_separator: str = "\n"
    class_weights: tuple[float, ...] = ()
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    pad_token: str | None = None
    append_eos: bool = True
    max_length: int = 512
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 0
    lora_alpha: int = 32
    mixed_precision: Literal["no", "bf16"] = "no"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        require_fitting(self)
        if self.max_length < 2:
            raise ConfigError(
                f"max_length is {self.max_length}; expected at least 2, a token of the prompt and "
                "one of the response"
            )
        if (self.labels == "spans") != bool(self.severities):
            raise ConfigError(
                f"labels is {self.labels!r} and severities {list(self.severities)}; expected the "
                "labels of the spans, from the mildest to the worst, for spans alone"
            )
        if len(set(self.severities)) < len(self.severities):
            raise ConfigError(f"severities is {list(self.severities)}; expected each label once")
        if self.class_weights and len(self.class_weights) != len(self.classes):
            raise ConfigError(
                f"class_weights is {list(self.class_weights)}; expected one weight for each of "
                f"{list(self.classes)}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        if self.labels == "spans":
            return ("correct", *self.severities)
        return ("negative", "positive") if self.labels == "edits" else ("bad", "good")
