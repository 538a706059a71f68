"""Whether two models mean the same tokens by the same ids."""

import hashlib
import json
import warnings
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokencredit.errors import ModelError, TokenCreditWarning


def require_same_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    *,
    argument: str = "reference",
) -> None:
    """Refuse a model that reads other ids than the one whose responses it shall score.

    Log-probabilities of two models are about the same tokens only if each id means the same to
    both. Tokens that the other alone knows do no harm; nor does padding of the output layer, which
    tokenizers do not see.

    Args:
        tokenizer: of the model that wrote the responses.
        other: of the model that shall score them.
        argument: what the caller names the other, for the message.

    Raises:
        ModelError: a token has another id there, or none.
    """
    theirs = other.get_vocab()
    differing = [token for token, id_ in tokenizer.get_vocab().items() if theirs.get(token) != id_]
    if differing:
        shown = ", ".join(map(repr, sorted(differing)[:3]))
        raise ModelError(
            f"{argument} has another vocabulary: {len(differing)} of {len(tokenizer)} tokens have "
            f"another id there, or none, such as {shown}; expected a model that reads the same "
            "ids. If the tokens were added to one tokenizer alone, add them to the other"
        )


@lru_cache(maxsize=8)
def shares_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether every token has the same id in both."""
    return first is second or first.get_vocab() == second.get_vocab()


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that share their vocabulary, and for no others."""
    tokens = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that cut and render texts alike; padding and truncation are not read."""
    known: dict[str, Any] = {
        "vocabulary": vocabulary_fingerprint(tokenizer),
        "chat_template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        known["rules"] = {
            name: rule for name, rule in rules.items() if name not in ("padding", "truncation")
        }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def shared_vocabulary(
    tokenizer: PreTrainedTokenizerBase, reward_tokenizer: PreTrainedTokenizerBase
) -> int:
    """How many ids mean the same token to a language model and to a reward model.

    Args:
        tokenizer: of the language model.
        reward_tokenizer: of the reward model.

    Returns:
        The size of the smaller vocabulary: ids below it agree.

    Raises:
        ModelError: an id below it stands for different tokens.
    """
    size = min(len(tokenizer), len(reward_tokenizer))
    ids = list(range(size))
    pairs = zip(
        tokenizer.convert_ids_to_tokens(ids),
        reward_tokenizer.convert_ids_to_tokens(ids),
        strict=True,
    )
    differing = [(id_, *pair) for id_, pair in zip(ids, pairs, strict=True) if pair[0] != pair[1]]
    if differing:
        id_, ours, theirs = differing[0]
        raise ModelError(
            f"{len(differing)} of {size} ids mean different tokens to the two models; id {id_} is "
            f"{ours!r} to the language model and {theirs!r} to the reward model; expected one "
            "vocabulary: score texts with `TreeScorer`, which takes both tokenizers"
        )
    return size


def warn_of_tokens_without_rows(tokenizer: PreTrainedTokenizerBase, width: int) -> None:
    """Say which tokens a tokenizer knows and its model does not: a text that holds one is refused.

    Args:
        tokenizer: of the model.
        width: how many ids the model knows. A pad token beyond them does no harm.
    """
    pad = tokenizer.pad_token
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= width and token != pad]
    if beyond:
        warnings.warn(
            f"the tokenizer {tokenizer.name_or_path!r} has {len(beyond)} tokens that its model has "
            f"no embedding for, such as {', '.join(map(repr, sorted(beyond)[:3]))}; a text that "
            "holds one is refused: expected embeddings resized to the tokenizer",
            TokenCreditWarning,
            stacklevel=3,
        )


def token_ids_without_text(tokenizer: PreTrainedTokenizerBase, width: int) -> list[int]:
    """Ids that a model has rows for and its tokenizer has no token for, in order.

    Embeddings are often padded to a round number of rows. Nothing was ever trained on the rows
    after the last token, and no text holds them: a policy must never draw one.

    Args:
        tokenizer: of the model.
        width: how many ids the model knows: rows of its embeddings, or columns of its logits.
    """
    known = set(tokenizer.get_vocab().values())
    return [id_ for id_ in range(width) if id_ not in known]
