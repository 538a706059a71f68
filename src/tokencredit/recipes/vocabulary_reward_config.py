"""Settings of `tokencredit train-vocabulary-reward`, and which of them contradict each other."""

from dataclasses import dataclass
from typing import Literal

from tokencredit.errors import ConfigError
from tokencredit.recipes.encoded_texts import Truncation
from tokencredit.recipes.supervised import require_fitting
from tokencredit.recipes.vocabulary_scores import VocabularyObjective


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
