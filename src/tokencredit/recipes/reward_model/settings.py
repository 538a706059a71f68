"""The settings of the recipes that train reward models, with the combinations they refuse."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.preference.labels import Overlapping
from tokencredit.recipes.supervised import require_fitting
from tokencredit.reward_model.hf_rewriter import INSTRUCTION, TEMPLATE, require_template
from tokencredit.scorers.vocabulary import VocabularyObjective
from tokencredit.text.hf_token_rows import Truncation


@dataclass(frozen=True)
class TrainRewriterConfig:
    """Settings of one rewriter.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id.
        model: Hub id or folder of the causal language model to start from.
        output: run folder; holds the model in Hugging Face layout when it is done.
        template: of prompts that are texts: `{prompt}` and `{response}` stand for what is read, and
            what is written follows.
        instruction: of prompts that are messages: what the user says after the answer.
        split: of a dataset folder or id.
        prompt_column: column of the prompts, texts or lists of chat messages; None takes `prompt`
            where it is there, or else what both texts begin with.
        chosen_column: column of the preferred responses.
        rejected_column: column of the others.
        unusable: what to do with pairs of equal or empty answers: `error` or `drop`.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different prompts held out where there is no `eval_data`; 0 holds
            none out.
        pad_token: token of the vocabulary to pad with, where the tokenizer names none.
        max_length: of prompt, answer and what is written, in tokens. What is longer loses the
            start of the prompt first, then the end of what is written.
        epochs: passes over the data.
        batch_size: rows per process and backward pass; a pair gives two.
        gradient_accumulation: backward passes per optimiser step.
        learning_rate: highest of AdamW's, reached after the warm-up; a cosine takes it to 0.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
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
    template: str = TEMPLATE
    instruction: str = INSTRUCTION
    split: str = "train"
    prompt_column: str | None = None
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    unusable: Literal["error", "drop"] = "error"
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    pad_token: str | None = None
    max_length: int = 1024
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        require_fitting(self)
        require_template(self.template)


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


@dataclass(frozen=True)
class TrainVocabularyRewardConfig:
    """Settings of one reward model that scores the whole vocabulary.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id: pairs, or with `rating_column` texts
            with a number each.
        model: Hub id or folder of the causal language model to start from. It needs the vocabulary
            of the model that is to be guided.
        output: run folder; holds the model in Hugging Face layout when it is done.
        objective: what its logits become. `farma`: the value of the text with each token behind it,
            from pairs. `genarm`: a language model whose log-probabilities are rewards, from pairs.
            `cd-fudge`: the mean outcome of texts that go on with each token, from ratings, or from
            pairs, of which the chosen side counts 1 and the other 0.
        rounds: of `farma`: times that pairs are compared; between two of them stands a turn of the
            maximum constraint. Every turn has a learning rate of its own.
        first_token: of `farma`: number of the token with which the first prefixes end that the
            constraint binds.
        target_gradient: of `farma`: whether the constraint moves the best continuation too
            (`flows`, as published) or the prefix alone (`stopped`).
        reward_beta: of `genarm`: nats of reward per nat of log-probability.
        over_tokens: of `genarm`: `mean` divides the log-probability of a response by its length.
        margin: of pairs: by how much the better response should win, in nats.
        split: of a dataset folder or id.
        prompt_column: column of the prompts, texts or lists of chat messages; None takes `prompt`
            of pairs where it is there, or else what both texts begin with, and no prompt of rated
            texts.
        chosen_column: column of the preferred responses.
        rejected_column: column of the others.
        unusable: what to do with pairs of equal or empty answers: `error` or `drop`.
        rating_column: with `cd-fudge`, column of numbers, more for better texts, labels 0 and 1
            too. Values are then standard deviations of it above its mean. None reads pairs.
        text_column: column of the rated texts.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different prompts held out where there is no `eval_data`; 0 holds
            none out.
        pad_token: token of the vocabulary to pad with, where the tokenizer names none.
        append_eos: end each response with the end of sequence. Leave it on if the policy ends its
            responses, off if it is kept from ending them. A chat template ends them itself.
        max_length: of prompt and response, in tokens.
        truncation: what a longer row loses first: `prompt-start` and then the end of the response,
            or `response-end`.
        epochs: passes over the data, of `farma` in every turn.
        batch_size: pairs, or with `cd-fudge` texts, per process and backward pass.
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
    objective: VocabularyObjective = "farma"
    rounds: int = 2
    first_token: int = 11
    target_gradient: Literal["flows", "stopped"] = "flows"
    reward_beta: float = 0.05
    over_tokens: Literal["sum", "mean"] = "sum"
    margin: float = 0.0
    split: str = "train"
    prompt_column: str | None = None
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    unusable: Literal["error", "drop"] = "error"
    rating_column: str | None = None
    text_column: str = "text"
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    pad_token: str | None = None
    append_eos: bool = True
    max_length: int = 512
    truncation: Truncation = "prompt-start"
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 5e-6
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
        for name in ("rounds", "first_token"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.reward_beta <= 0:
            raise ConfigError(
                f"reward_beta is {self.reward_beta}; expected a positive number, such as 0.05"
            )
        if self.rating_column is not None and self.objective != "cd-fudge":
            raise ConfigError(
                f"rating_column is {self.rating_column!r} with objective {self.objective!r}, which "
                "learns from pairs; expected none, or objective 'cd-fudge'"
            )
        if self.margin and self.objective == "cd-fudge":
            raise ConfigError(
                f"margin is {self.margin} with objective 'cd-fudge', which compares nothing; "
                "expected 0, or objective 'farma' or 'genarm'"
            )


Direction = Literal["chosen", "reversed"]


@dataclass(frozen=True)
class TrainImplicitRewardConfig:
    """Settings of one implicit reward.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id.
        model: Hub id or folder of the causal language model to start from.
        output: run folder; holds the model in Hugging Face layout when it is done.
        direction: `chosen` learns to prefer the chosen responses, `reversed` the rejected ones.
        dpo_beta: price of the log-ratio to the reference: the larger, the nearer the model stays.
        reference: Hub id or folder of the frozen model; None for `model`.
        split: of a dataset folder or id.
        prompt_column: column of the prompts, texts or lists of chat messages; None takes `prompt`
            where it is there, or else what both texts begin with.
        chosen_column: column of the preferred responses.
        rejected_column: column of the others.
        unusable: what to do with pairs of equal or empty answers: `error` or `drop`.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different prompts held out where there is no `eval_data`; 0 holds
            none out.
        pad_token: token of the vocabulary to pad with, where the tokenizer names none.
        append_eos: end each response with the end of sequence. A chat template ends them itself.
        max_length: of prompt and response, in tokens.
        truncation: what a longer row loses first: `prompt-start` and then the end of the response,
            or `response-end`.
        epochs: passes over the data.
        batch_size: pairs per process and backward pass.
        gradient_accumulation: backward passes per optimiser step.
        learning_rate: highest of AdamW's, reached after the warm-up; a cosine takes it to 0.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        lora_rank: train a LoRA adapter of this rank and merge it; 0 trains all weights. It needs
            no second copy of the model in memory, and ten times the learning rate.
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
    direction: Direction = "chosen"
    dpo_beta: float = 0.1
    reference: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    unusable: Literal["error", "drop"] = "error"
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    pad_token: str | None = None
    append_eos: bool = True
    max_length: int = 512
    truncation: Truncation = "prompt-start"
    epochs: float = 1.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 1e-6
    warmup: float = 0.1
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
        if self.dpo_beta <= 0:
            raise ConfigError(
                f"dpo_beta is {self.dpo_beta}; expected a positive number, such as 0.1"
            )
        if self.lora_rank and self.reference is not None:
            raise ConfigError(
                f"reference is {self.reference!r} with lora_rank {self.lora_rank}; expected none: "
                "the model without its adapter is the reference"
            )
