"""The settings of `tokencredit train-reward-model`, and which of them contradict each other."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.recipes.encoded_texts import Truncation
from tokencredit.recipes.supervised import require_fitting

Objective = Literal["bradley-terry", "classification", "regression"]
Positions = Literal["last", "every", "pairs", "segments", "bootstrapped"]
POSITIONS: dict[Objective, tuple[Positions, ...]] = {
    "bradley-terry": ("last", "every", "pairs", "segments"),
    "classification": ("last", "every", "bootstrapped"),
    "regression": ("last", "every", "bootstrapped"),
}


@dataclass(frozen=True)
class TrainRewardModelConfig:
    """Settings of one reward model.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id.
        model: Hub id or folder of the language model or reward model to start from.
        output: run folder; holds the model in Hugging Face layout when it is done.
        objective: `bradley-terry` learns from pairs, `classification` from labels 0 and 1,
            `regression` from ratings.
        positions: what is scored in training. `last`: whole responses. `every`: each prefix too.
            `pairs`: beginnings of equal length of both answers, each pair of them an example.
            `segments`: the ends of segments, a response scoring their mean. `bootstrapped`: each
            prefix, against the score of the next one. All but `last` and `pairs` need a causal
            model.
        split: of a dataset folder or id.
        prompt_column: column of the prompts, texts or lists of chat messages. Pairs may lack it;
            then the prompt is what both texts begin with. With labels None stands for texts
            without a prompt.
        chosen_column: column of the preferred responses.
        rejected_column: column of the others.
        margin_column: column of margins in nats; None for none.
        strength_column: column of the strengths of preferences, such as 1, 2 and 3, by which their
            losses are multiplied; None for 1.
        unusable: what to do with pairs of equal or empty answers: `error` or `drop`.
        text_column: column of the labelled or rated texts.
        label_column: column of the labels.
        rating_column: column of the ratings, in any unit, more for better ones. The scores of the
            model are ratings above the mean of the training data.
        prefix_start: with `pairs`, tokens of the shortest beginnings.
        prefix_step: with `pairs`, tokens from one length to the next; whole answers are always
            among them.
        prefix_padding: with `pairs`, what stands behind the end of the shorter answer: `eos`, ends
            of sequence up to the length of the longer one, as published; `held`, nothing.
        segments: with `segments`, where they end: `ngram`, `sentence` or `clause`.
        segment_length: tokens of an `ngram`.
        bootstrap_lambda: with `bootstrapped`, from 0, only the next score counts (CD-Q as
            published), to 1, only the label or rating, which is `every`.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different prompts or texts held out where there is no `eval_data`;
            0 holds none out.
        pad_token: padding of a tokenizer that has none, added where it is no token yet.
        append_eos: end each response with the end of sequence. Leave it on if the policy ends its
            responses, off if it is kept from ending them. A chat template ends them itself.
        max_length: of prompt and response, in tokens.
        truncation: what a longer row loses first: `response-end`, or `prompt-start` and then the
            end of the response. None loses the start of the prompt for pairs and the end of the
            response for labels.
        epochs: passes over the data.
        batch_size: pairs or labelled responses per process and backward pass.
        gradient_accumulation: backward passes per optimiser step.
        learning_rate: highest of AdamW's, reached after the warm-up; a cosine takes it to 0.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        center_rewards_coefficient: price of the squared sum of a pair's scores, per squared nat,
            which keeps scores around 0.
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
    objective: Objective = "bradley-terry"
    positions: Positions = "every"
    split: str = "train"
    prompt_column: str | None = None
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    margin_column: str | None = None
    strength_column: str | None = None
    unusable: Literal["error", "drop"] = "error"
    text_column: str = "text"
    label_column: str = "label"
    rating_column: str = "rating"
    prefix_start: int = 1
    prefix_step: int = 1
    prefix_padding: Literal["eos", "held"] = "eos"
    segments: Literal["ngram", "sentence", "clause"] = "ngram"
    segment_length: int = 5
    bootstrap_lambda: float = 0.95
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    pad_token: str | None = None
    append_eos: bool = True
    max_length: int = 512
    truncation: Truncation | None = None
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    center_rewards_coefficient: float = 0.0
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
        if self.positions not in POSITIONS[self.objective]:
            raise ConfigError(
                f"positions is {self.positions!r} with objective {self.objective!r}; expected one "
                f"of {', '.join(POSITIONS[self.objective])}"
            )
        for name in ("prefix_start", "prefix_step", "segment_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1 token")
        if not 0 <= self.bootstrap_lambda <= 1:
            raise ConfigError(
                f"bootstrap_lambda is {self.bootstrap_lambda}; expected a number from 0 to 1"
            )
        if self.objective != "bradley-terry" and self.center_rewards_coefficient:
            kind = "labels" if self.objective == "classification" else "ratings"
            raise ConfigError(
                f"center_rewards_coefficient is {self.center_rewards_coefficient} with {kind}; "
                f"expected 0: {kind} already say where 0 is"
            )
