"""Which tokens end a turn of a model: what its tokenizer, files and template declare."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokencredit.errors import ConfigError

_ANSWER = "answer"


def turn_end_ids(
    tokenizer: PreTrainedTokenizerBase, model: Any = None, *, extra: Sequence[str] = ()
) -> tuple[int, ...]:
    """Every token id that ends a response, the tokenizer's own end of sequence first.

    A chat model often ends its turn with another token than `tokenizer.eos_token`. Declared are:
    the tokenizer's end of sequence, each `eos_token_id` of the model's generation settings and of
    its configuration, the token that the chat template writes after an assistant's turn, and
    `extra`. An id that stands in a configuration only because its class has it by default counts
    if the tokenizer has a control token there that it does not name otherwise.

    Args:
        tokenizer: of the model.
        model: a model, its `GenerationConfig` or its configuration; None to ask the tokenizer
            alone.
        extra: more tokens that end a turn, as texts.

    Returns:
        Ids that the tokenizer knows, each once; none if nothing is declared.

    Raises:
        ConfigError: one of `extra` is not a single token.

    >>> from tokencredit.toy.hf_tokenizer import toy_tokenizer
    >>> from transformers import GenerationConfig
    >>> tokenizer = toy_tokenizer()
    >>> turn_end_ids(tokenizer)
    (2,)
    >>> turn_end_ids(tokenizer, GenerationConfig(eos_token_id=[9, 2]), extra=["plot"])
    (2, 9, 128)
    """
    found = [tokenizer.eos_token_id, *_declared(tokenizer, model), template_end_id(tokenizer)]
    found += [_single_token(tokenizer, text) for text in extra]
    known = set(tokenizer.get_vocab().values())
    return tuple(dict.fromkeys(id_ for id_ in found if id_ in known))


def template_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes after an assistant's turn.

    None where there is no template, or where it writes text or nothing there.

    >>> from tokencredit.toy.hf_tokenizer import toy_tokenizer
    >>> tokenizer = toy_tokenizer()
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} <eos>{% endfor %}"
    >>> tokenizer.convert_ids_to_tokens(template_end_id(tokenizer))
    '<eos>'
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text: Any = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # Templates raise what they like; who renders a real prompt is told.
        return None
    after = text.rpartition(_ANSWER)[2].lstrip()
    controls = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    begun = [token for token in controls if token and after.startswith(token)]
    return controls[max(begun, key=len)] if begun else None


def _declared(tokenizer: PreTrainedTokenizerBase, model: Any) -> list[int]:
    """What the model's files name as ends, without mere defaults that mean nothing here."""
    settings = getattr(model, "generation_config", None)
    config = getattr(model, "config", model)
    if not hasattr(config, "get_text_config"):  # Generation settings alone.
        return _ids(config)
    configs = (config, config.get_text_config())
    copied = _ids(settings) if getattr(settings, "_from_model_config", False) else []
    stated = [] if copied else _ids(settings)
    defaults = {id_ for one in configs for id_ in _ids(type(one))}
    controls = set(tokenizer.added_tokens_decoder) - {
        getattr(tokenizer, f"{name}_token_id") for name in ("bos", "unk", "pad", "cls", "mask")
    }
    found = [*copied, *(id_ for one in configs for id_ in _ids(one))]
    return stated + [id_ for id_ in found if id_ not in defaults or id_ in controls]


def _ids(settings: Any) -> list[int]:
    """The ends that these settings name."""
    ends = getattr(settings, "eos_token_id", None)
    if isinstance(ends, Iterable):
        return [int(id_) for id_ in ends]
    return [int(ends)] if isinstance(ends, int) else []


def _single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a text that is one token."""
    id_ = tokenizer.get_vocab().get(text)
    if id_ is not None:
        return int(id_)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    raise ConfigError(
        f"{text!r} shall end a turn and is {len(ids)} tokens of {tokenizer.name_or_path!r} "
        f"({tokenizer.convert_ids_to_tokens(ids)}); expected one token of its vocabulary"
    )
