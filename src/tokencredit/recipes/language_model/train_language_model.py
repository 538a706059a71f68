"""Train a language model on texts, or fine-tune one on the answers to prompts.

    tokencredit train-language-model --data texts.jsonl --output lm

Without `model` the network starts from random weights, and without `tokenizer` a byte-level BPE is
learnt from the texts first. Texts are joined, each between `<bos>` and `<eos>`, and cut into blocks
without padding; attention is not stopped at the border of two texts in a block. With
`objective: completions` each prompt and answer is a row of its own, and only the answer counts.

The Trainer of transformers does the training, at the speed of a bare loop. The default network has
4.2M parameters. `mixed_precision: bf16` pays on CPUs with matrix instructions too.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_model, load_tokenizer, quiet_transformers
from tokencredit.preference.hf_datasets import load_prompted_responses, load_texts
from tokencredit.preference.pairs import PromptedResponse
from tokencredit.recipes.language_model.corpus import (
    IGNORED,
    byte_level_tokenizer,
    causal_batch,
    causal_example,
    token_blocks,
)
from tokencredit.recipes.run_folder import write_atomically
from tokencredit.recipes.supervised import (
    SupervisedTrainer,
    autocast,
    finished_run,
    held_out_rows,
    require_context,
    require_fitting,
    supervised_run,
    training_arguments,
    write_model,
)
from tokencredit.text.hf_token_rows import Truncation, encoded_texts

SMALL_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class TrainLanguageModelConfig:
    """Settings of one language model.

    Attributes:
        data: JSON-lines file, dataset folder or dataset id.
        output: run folder; holds the model in Hugging Face layout when it is done.
        objective: `texts` learns every token of texts, `completions` the answers to prompts.
        split: of a dataset folder or id.
        text_column: column of the texts.
        prompt_column: column of the prompts, texts or lists of chat messages.
        completion_column: column of the answers.
        limit: use only the first rows; None uses all.
        eval_data: held-out data of the same form; None holds rows of `data` out.
        eval_split: split of `eval_data`; None for `split`.
        held_out: share of the different texts or prompts held out where there is no `eval_data`;
            0 holds none out.
        model: Hub id or folder of a causal language model to start from; None starts from random
            weights.
        architecture: of a model from random weights: `model_type` and settings of its
            configuration.
        tokenizer: Hub id or folder; None takes that of `model`, or learns one.
        vocab_size: of a learnt tokenizer, in tokens.
        max_length: of a block or row, in tokens.
        truncation: what a longer row loses first with `completions`: `response-end`, or
            `prompt-start` and then the end of the answer.
        epochs: passes over the data.
        batch_size: blocks or rows per process and backward pass.
        gradient_accumulation: backward passes per optimiser step.
        learning_rate: highest of AdamW's, reached after the warm-up; a cosine takes it to 0. None
            takes 1e-3 from random weights and 2e-5 for a given model.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        mixed_precision: `bf16` trains under autocast; weights stay float32.
        trust_remote_code: run code that comes with a model; off unless you trust its author.
        seed: of everything random.
        device: `cpu` keeps to the CPU; None takes what Accelerate finds.
        progress: show a progress bar.
    """

    data: str
    output: str
    objective: Literal["texts", "completions"] = "texts"
    split: str = "train"
    text_column: str = "text"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    limit: int | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    held_out: float = 0.05
    model: str | None = None
    architecture: dict[str, Any] = field(default_factory=lambda: dict(SMALL_LLAMA))
    tokenizer: str | None = None
    vocab_size: int = 4096
    max_length: int = 256
    truncation: Truncation = "response-end"
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    trust_remote_code: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        require_fitting(self)
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}; expected at least 2 tokens")
        if self.model is None and self.tokenizer is None and self.vocab_size < 259:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}; expected at least 259: 256 bytes and 3 special "
                "tokens"
            )
        if self.model is None and "model_type" not in self.architecture:
            raise ConfigError(
                f"architecture is {self.architecture}; expected a model_type in it, such as llama"
            )


def train_language_model(config: TrainLanguageModelConfig) -> Path:
    """Train one language model; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: model and tokenizer, `metrics.json`, `metrics.jsonl`, `config.yaml`.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: a model or tokenizer is not there or lacks what is needed.
        ConfigError: the architecture is not known, has no such setting, or is too short.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    texts, eval_texts = _texts(config)
    set_seed(config.seed)
    tokenizer = _tokenizer(config, texts)
    model = _model(config, tokenizer)
    require_context(model, tokenizer, config.max_length)
    rows = _rows(config, tokenizer, texts)
    eval_rows = _rows(config, tokenizer, eval_texts) if eval_texts else []
    with supervised_run(config) as folder:
        metrics = _trained(config, model, rows, folder)
        if eval_rows:
            metrics |= _perplexity(config, model, eval_rows)
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_model(model, tokenizer, folder)
    print("  ".join(f"{name} {value:,.6g}" for name, value in metrics.items()))
    print(f"language model: {folder}")
    return folder


Texts = list[PromptedResponse]


def _texts(config: TrainLanguageModelConfig) -> tuple[Texts, Texts]:
    """What to train on and what is held out; plain texts are answers without a prompt."""

    def loaded(data: str, split: str) -> Texts:
        if config.objective == "texts":
            texts = load_texts(data, split=split, column=config.text_column, limit=config.limit)
            return [PromptedResponse("", text) for text in texts]
        return load_prompted_responses(
            data,
            split=split,
            prompt_column=config.prompt_column,
            response_column=config.completion_column,
            limit=config.limit,
        )

    texts = loaded(config.data, config.split)
    if config.eval_data is not None:
        return texts, loaded(config.eval_data, config.eval_split or config.split)
    train, held_out = held_out_rows(
        [text.prompt for text in texts],
        [text.response for text in texts],
        fraction=config.held_out,
        seed=config.seed,
    )
    return [texts[row] for row in train], [texts[row] for row in held_out]


def _tokenizer(config: TrainLanguageModelConfig, texts: Texts) -> PreTrainedTokenizerBase:
    name = config.tokenizer or config.model
    if name is not None:
        return load_tokenizer(name, trust_remote_code=config.trust_remote_code)
    parts = (part for text in texts for part in (text.prompt, text.response))
    return byte_level_tokenizer(
        (part for part in parts if isinstance(part, str)), vocab_size=config.vocab_size
    )


def _model(config: TrainLanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if config.model is not None:
        with quiet_transformers():
            return load_model(
                AutoModelForCausalLM, config.model, trust_remote_code=config.trust_remote_code
            )
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    settings = dict(config.architecture)
    model_type = settings.pop("model_type")
    _require_known_settings(model_type, settings)
    settings = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | settings
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))


def _require_known_settings(model_type: str, settings: dict[str, Any]) -> None:
    """Configurations of transformers take any name and ignore those that they do not know."""
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ConfigError(
            f"architecture has model_type {model_type!r}; expected one that transformers knows, "
            "such as llama, gpt2 or qwen2"
        ) from error
    unknown = [name for name in settings if not hasattr(known, name)]
    if unknown:
        raise ConfigError(
            f"architecture has the settings {unknown}; expected settings of {model_type}: "
            f"{', '.join(sorted(known.to_dict()))}"
        )


def _rows(
    config: TrainLanguageModelConfig, tokenizer: PreTrainedTokenizerBase, texts: Texts
) -> list[dict[str, Tensor]]:
    responses = [text.response for text in texts]
    if config.objective == "texts":
        blocks = token_blocks(tokenizer, responses, length=config.max_length)
        return [causal_example(block) for block in blocks]
    rows = encoded_texts(
        tokenizer,
        [text.prompt for text in texts],
        responses,
        append_eos=True,
        max_length=config.max_length,
        truncation=config.truncation,
    )
    return [causal_example(torch.tensor(row.input_ids), start=row.start) for row in rows]


def _trained(
    config: TrainLanguageModelConfig,
    model: PreTrainedModel,
    rows: list[dict[str, Tensor]],
    folder: Path,
) -> dict[str, float]:
    """Train the model in place; what it took."""
    rate = config.learning_rate or (1e-3 if config.model is None else 2e-5)
    trainer = SupervisedTrainer(
        model=model,
        args=training_arguments(config, folder, examples=len(rows), learning_rate=rate),
        train_dataset=rows,
        data_collator=causal_batch,
        log_file=folder / "metrics.jsonl",
    )
    start = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - start
    tokens = config.epochs * sum(len(row["input_ids"]) for row in rows)
    return {
        "train_loss": loss,
        "train_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def _perplexity(
    config: TrainLanguageModelConfig, model: PreTrainedModel, rows: list[dict[str, Tensor]]
) -> dict[str, float]:
    """Perplexity of held-out tokens: exp of the mean negative log-probability, over all tokens."""
    model.eval()
    nats, count = 0.0, 0
    for at in range(0, len(rows), config.batch_size):
        batch = causal_batch(rows[at : at + config.batch_size])
        tokens = int((batch["labels"] != IGNORED).sum())
        batch = {name: values.to(model.device) for name, values in batch.items()}
        with torch.no_grad(), autocast(config, model.device):
            nats += float(model(**batch, use_cache=False).loss) * tokens
        count += tokens
    return {"held_out_perplexity": math.exp(nats / count), "held_out_tokens": count}
