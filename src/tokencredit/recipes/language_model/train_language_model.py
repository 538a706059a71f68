"""Train a language model on texts, or fine-tune one on the answers to prompts.

    tokencredit train-language-model --data texts.jsonl --output lm

Without `model` the network starts from random weights, and without `tokenizer` a byte-level BPE is
learnt from the texts first. Texts are joined, each between `<bos>` and `<eos>`, and cut into blocks
without padding; attention is not stopped at the border of two texts in a block. With
`objective: completions` each prompt and answer is a row of its own, and only the answer counts.

The Trainer of transformers does the training, at the speed of a bare loop. The default network has
4.2M parameters. `mixed_precision: bf16` pays on CPUs with matrix instructions too.
"""

import math
from dataclasses import dataclass, field
from functools import partial
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

from tokencredit.batch import rows_of_like_length
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.preference.hf_datasets import load_prompted_responses, load_texts
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.preference.pairs import PromptedResponse
from tokencredit.ranges import require_positive
from tokencredit.recipes.language_model.corpus import (
    IGNORED,
    byte_level_tokenizer,
    causal_batch,
    causal_example,
    token_blocks,
)
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.settings import (
    HeldOutSettings,
    LoadingSettings,
    TrainingSettings,
    group,
    require_float32,
    setting,
    settle_learning_rate,
)
from tokencredit.recipes.training.arguments import training_arguments
from tokencredit.recipes.training.models import reading_to_train, require_context
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.supervised import (
    Source,
    autocast,
    encoded_sides,
    finished_run,
    supervised_run,
    train_and_held_out,
    write_results,
)
from tokencredit.recipes.training.trainer import SupervisedTrainer, train
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings

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
class TextColumns:
    """Names of the columns of texts, or of prompts and answers."""

    text: str = setting("text", was="text_column")
    """Texts."""
    prompt: str = setting("prompt", was="prompt_column")
    """Prompts, texts or lists of chat messages."""
    completion: str = setting("completion", was="completion_column")
    """Answers."""


@dataclass(frozen=True)
class TrainLanguageModelConfig:
    """One language model."""

    data: str
    """JSON-lines file, dataset folder or dataset id."""
    output: str = setting(free=True)
    """Run folder; holds the model in Hugging Face layout when it is done."""
    objective: Literal["texts", "completions"] = "texts"
    """`texts` learns every token of texts, `completions` the answers to prompts."""
    model: str | None = None
    """Hub id or folder of a causal language model to start from; None starts from random
    weights."""
    architecture: dict[str, Any] = field(default_factory=lambda: dict(SMALL_LLAMA))
    """Architecture of a model from random weights: `model_type` and settings of its
    configuration."""
    tokenizer: str | None = None
    """Hub id or folder; None takes that of `model`, or learns one."""
    vocab_size: int = 4096
    """Size of a learnt tokenizer, in tokens."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    max_length: int = 256
    """Most tokens of a block or row."""
    truncation: Truncation = "response-end"
    """What a longer row loses first with `completions`: `response-end`, or `prompt-start` and then
    the end of the answer."""
    columns: TextColumns = group(TextColumns)
    evaluation: HeldOutSettings = group(HeldOutSettings)
    training: TrainingSettings = group(TrainingSettings, weight_decay=0.01)
    """How it is trained. The learning rate is 2e-5, or 1e-3 from random weights, unless it is
    given."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts; written into its configuration."""
    loading: LoadingSettings = group(LoadingSettings)
    seed: int = 0
    """Seed of everything random."""
    device: str | None = setting(None, free=True)
    """`cpu` keeps to the CPU; None takes what Accelerate finds."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit")
        require_float32(self.loading, frozen=None)
        settle_learning_rate(self, of_all=1e-3 if self.model is None else 2e-5)
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
    texts, eval_texts, left_out = train_and_held_out(
        config, partial(_load, config), text=lambda row: row.response
    )
    set_seed(config.seed)
    tokenizer = _tokenizer(config, texts)
    model = _model(config, tokenizer)
    require_context(model, tokenizer, config.max_length)
    reading = reading_to_train(model, tokenizer, config.reading)
    encode = partial(_causal_examples, config, reading)
    rows, eval_rows = encoded_sides(config, encode, texts, eval_texts, left_out)
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")
        metrics = _train(config, model, rows, eval_rows, folder)
        if eval_rows:
            metrics |= _perplexity(config, model, eval_rows)
        write_results(model, tokenizer, metrics, folder, name="language model")
    return folder


Texts = list[PromptedResponse]


def _load(config: TrainLanguageModelConfig, source: Source) -> Texts:
    """The rows of a data set; plain texts are answers without a prompt."""
    columns = config.columns
    if config.objective == "texts":
        texts = load_texts(**vars(source), column=columns.text, limit=config.limit)
        return [PromptedResponse("", text) for text in texts]
    return load_prompted_responses(
        **vars(source),
        prompt_column=columns.prompt,
        response_column=columns.completion,
        limit=config.limit,
    )


def _tokenizer(config: TrainLanguageModelConfig, texts: Texts) -> PreTrainedTokenizerBase:
    name = config.tokenizer or config.model
    if name is not None:
        return load_tokenizer(
            name,
            pad_token=config.loading.pad_token,
            trust_remote_code=config.loading.trust_remote_code,
        )
    parts = (part for text in texts for part in (text.prompt, text.response))
    return byte_level_tokenizer(
        (part for part in parts if isinstance(part, str)), vocab_size=config.vocab_size
    )


def _model(config: TrainLanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    loading = config.loading
    if config.model is not None:
        return load_model(
            AutoModelForCausalLM,
            config.model,
            attn_implementation=loading.attn_implementation,
            trust_remote_code=loading.trust_remote_code,
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
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **settings),
        attn_implementation=loading.attn_implementation,
    )


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


def _causal_examples(
    config: TrainLanguageModelConfig, reading: Reading, texts: Texts
) -> list[dict[str, Tensor]]:
    responses = [text.response for text in texts]
    if config.objective == "texts":
        blocks = token_blocks(reading.tokenizer, responses, length=config.max_length)
        return [causal_example(block) for block in blocks]
    rows = reading.rows(
        [text.prompt for text in texts],
        responses,
        max_length=config.max_length,
        truncation=config.truncation,
    )
    return [causal_example(torch.tensor(row.input_ids), start=row.start) for row in rows]


def _train(
    config: TrainLanguageModelConfig,
    model: PreTrainedModel,
    rows: list[dict[str, Tensor]],
    eval_rows: list[dict[str, Tensor]],
    folder: Path,
) -> dict[str, float]:
    """Train the model in place; what it took."""
    evaluate = partial(_perplexity, config, model, eval_rows) if eval_rows else None
    trainer = SupervisedTrainer(
        model=model,
        args=training_arguments(config, folder, examples=len(rows), sampling="random"),
        train_dataset=rows,
        data_collator=causal_batch,
        run=TrainingRun.of(config, folder, evaluate),
    )
    return train(trainer, tokens=sum(len(row["input_ids"]) for row in rows))


def _perplexity(
    config: TrainLanguageModelConfig, model: PreTrainedModel, rows: list[dict[str, Tensor]]
) -> dict[str, float]:
    """Perplexity of held-out tokens: exp of the mean negative log-probability, over all tokens."""
    model.eval()
    nats, count = 0.0, 0
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    for some in rows_of_like_length(lengths, config.training.batch_size):
        batch = causal_batch([rows[row] for row in some.tolist()])
        tokens = int((batch["labels"] != IGNORED).sum())
        batch = {name: values.to(model.device) for name, values in batch.items()}
        with torch.no_grad(), autocast(config.training, model.device):
            nats += float(model(**batch, use_cache=False).loss) * tokens
        count += tokens
    return {"held_out_perplexity": math.exp(nats / count), "held_out_tokens": count}
