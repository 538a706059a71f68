"""Which reading a model has: as set, as it was trained, or as models of its kind usually read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from tokencredit.errors import ConfigError
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_ends import turn_end_ids
from tokencredit.models.hf_loading import model_description
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings

_KNOWN = ("plain", "chat", "pair")


def reading_of(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    settings: ReadingSettings | None = None,
    *,
    training: bool = False,
) -> Reading:
    """How a model reads texts: as set, as it was trained, or as its kind usually does.

    Args:
        model: of transformers, also in a wrapper that hands its configuration through.
        tokenizer: its own; a chat template of the settings is put into it.
        settings: what is set; None leaves all to the model.
        training: whether the model is about to be trained.

    Raises:
        ConfigError: a tokenizer without chat template or pairs for a template that needs it, or a
            turn end that is no token.

    >>> from types import SimpleNamespace
    >>> from tokencredit.toy.hf_tokenizer import toy_tokenizer
    >>> model = SimpleNamespace(config=SimpleNamespace(reading={"template": "plain"}))
    >>> reading_of(model, toy_tokenizer()).origin
    'as trained'
    """
    asked = settings or ReadingSettings()
    if asked.chat_template is not None:
        tokenizer.chat_template = _chat_template(asked.chat_template)
    stored = stored_reading(model.config)
    template: str = asked.template
    origin = "as set"
    if template == "auto":
        if "template" in stored:
            template, origin = stored["template"], "as trained"
        else:
            template, origin = _usual_template(model, tokenizer)
    elif stored.get("template", template) != template and not training:
        origin = f"as set; trained as {stored['template']!r}"
    _require_template(template, tokenizer, origin)
    append_eos = asked.append_eos
    if append_eos is None:
        append_eos = stored.get("append_eos")
    if append_eos is None:
        append_eos = training and tokenizer.eos_token_id is not None and _reads_forward(model)
    extra = [*stored.get("turn_ends", ()), *asked.turn_ends]
    return Reading(
        tokenizer,
        template,  # type: ignore[arg-type]
        bool(append_eos),
        turn_end_ids(tokenizer, model, extra=extra),
        origin,
    )


def written_by(
    tokenizer: PreTrainedTokenizerBase, policy: Any = None, *, extra: Sequence[str] = ()
) -> Reading:
    """The reading of a model that only writes: its tokenizer, and what ends its turns.

    Args:
        tokenizer: of the ids that it writes.
        policy: what writes, whose files name ends too: a model, its folder or Hub id; None asks the
            tokenizer alone.
        extra: tokens that end a turn, besides those that both declare.

    Raises:
        ConfigError: one of `extra` is no token.
        ModelError: the policy is not there.
    """
    template: Literal["plain", "chat"] = "plain" if tokenizer.chat_template is None else "chat"
    model = model_description(policy) if isinstance(policy, str | Path) else policy
    return Reading(tokenizer, template, turn_ends=turn_end_ids(tokenizer, model, extra=extra))


def remember_reading(
    reading: Reading, config: Any, settings: ReadingSettings | None = None
) -> None:
    """Write into the configuration of a model how it was trained to read.

    Args:
        reading: of the training.
        config: of the model.
        settings: whose turn ends are kept.
    """
    vars(config).pop("eos_appended", None)
    config.reading = {"template": reading.template, "append_eos": reading.append_eos}
    if settings is not None and settings.turn_ends:
        config.reading["turn_ends"] = list(settings.turn_ends)


def stored_reading(config: Any) -> dict[str, Any]:
    """What training left in the configuration of a model; empty for models of others.

    >>> from types import SimpleNamespace
    >>> stored_reading(SimpleNamespace(eos_appended=True))  # as version 0.1.0 wrote it
    {'append_eos': True}
    """
    found = getattr(config, "reading", None)
    if isinstance(found, dict):
        return found
    before = getattr(config, "eos_appended", None)
    return {} if before is None else {"append_eos": before}


def _usual_template(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """How models of this kind usually read, and why."""
    if tokenizer.chat_template is not None:
        return "chat", "the tokenizer has a chat template"
    if (
        _separates_pairs(tokenizer)
        and getattr(model.config, "num_labels", 0) == 1
        and not _reads_forward(model)
    ):
        return "pair", "an encoder with one output"
    return "plain", "the tokenizer has no chat template"


def _separates_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer writes something between the two sentences of a pair."""
    if tokenizer.sep_token_id is None:
        return False
    return tokenizer.sep_token_id in tokenizer("a", "a")["input_ids"][1:-1]


def _reads_forward(model: Any) -> bool:
    """Whether the model is a decoder, which is usually trained on texts with their end."""
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    if not isinstance(model, torch.nn.Module):
        return True
    return is_causal(model) or hasattr(model, "lm_head")


def _require_template(template: str, tokenizer: PreTrainedTokenizerBase, origin: str) -> None:
    if template not in _KNOWN:
        raise ConfigError(
            f"the reading template is {template!r} ({origin}); expected one of "
            f"{', '.join(map(repr, _KNOWN))}"
        )
    if template == "chat" and tokenizer.chat_template is None:
        raise ConfigError(
            f"reading.template is 'chat' ({origin}) and the tokenizer {tokenizer.name_or_path!r} "
            "has no chat template; expected one: name it by the setting reading.chat_template, or "
            "read texts as 'plain'"
        )
    if template == "pair" and tokenizer.sep_token_id is None:
        raise ConfigError(
            f"reading.template is 'pair' ({origin}) and the tokenizer {tokenizer.name_or_path!r} "
            "has no token between sentences; expected an encoder, or 'plain' or 'chat'"
        )


def _chat_template(text_or_file: str) -> str:
    """A chat template as text, read from a file where there is one."""
    if "{" in text_or_file:
        return text_or_file
    try:
        return Path(text_or_file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"reading.chat_template is {text_or_file!r} and cannot be read ({error}); expected a "
            "file with a chat template, or the template itself"
        ) from error
