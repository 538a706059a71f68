"""What the recipes share that train a language model on preference pairs."""

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.hf_loading import disable_dropout, load_model, load_tokenizer, require_pad_token
from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.encoded_texts import held_out_rows
from tokencredit.recipes.supervised import quiet_transformers, require_context


def training_pairs(config: Any) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs to train on and pairs that are held out; no prompt stands on both sides.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
    """
    pairs = _loaded(config, config.data, config.split)
    if config.eval_data is not None:
        return pairs, _loaded(config, config.eval_data, config.eval_split or config.split)
    train, held_out = held_out_rows(
        [pair.prompt for pair in pairs],
        [pair.chosen for pair in pairs],
        fraction=config.held_out,
        seed=config.seed,
    )
    return [pairs[row] for row in train], [pairs[row] for row in held_out]


def _loaded(config: Any, data: str, split: str) -> list[PreferencePair]:
    return load_pairs(
        data,
        split=split,
        prompt_column=config.prompt_column,
        chosen_column=config.chosen_column,
        rejected_column=config.rejected_column,
        unusable=config.unusable,
        limit=config.limit,
    )


def language_model_to_train(config: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that training starts from, dropout off, and its tokenizer with a pad token.

    Raises:
        ModelError: a model or tokenizer is not there, or there is no pad token.
        ConfigError: the model is too short for `max_length`.
    """
    tokenizer = load_tokenizer(
        config.model, pad_token=config.pad_token, trust_remote_code=config.trust_remote_code
    )
    require_pad_token(tokenizer)
    with quiet_transformers():
        model = load_model(
            AutoModelForCausalLM,
            config.model,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
    require_context(model, tokenizer, config.max_length)
    disable_dropout(model)
    return model, tokenizer
