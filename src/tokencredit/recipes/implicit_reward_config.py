"""The settings of `tokencredit train-implicit-reward`, and which of them contradict each other."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.recipes.encoded_texts import Truncation
from tokencredit.recipes.supervised import require_fitting

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
