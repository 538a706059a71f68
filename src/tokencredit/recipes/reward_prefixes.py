"""Judged rows as many examples: one pair of beginnings for each length."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from tokencredit.errors import DataError, ModelError
from tokencredit.preference.prefix_pairs import beginning, prefix_lengths
from tokencredit.recipes.encoded_texts import EncodedText
from tokencredit.recipes.reward_examples import Judged
from tokencredit.recipes.reward_model_config import TrainRewardModelConfig


def example_columns(
    judged: Sequence[Judged],
    config: TrainRewardModelConfig,
    *,
    filler: int | None,
    causal: bool,
) -> dict[str, list[int]]:
    """What the Trainer shuffles, in numbers: nothing is copied before its batch is made.

    Args:
        judged: rows of the data.
        config: the settings.
        filler: as in `prefix_pairs`.
        causal: as in `judged_beginning`.

    Returns:
        Columns: `row`; `prefix`, the tokens seen of its responses, 0 for all of them; `length`, of
        the longest text; `tokens`, of all of its texts.

    Raises:
        DataError: no two answers have different beginnings.
    """
    columns: dict[str, list[int]] = {name: [] for name in ("row", "prefix", "length", "tokens")}
    for row, one in enumerate(judged):
        for prefix in _prefixes(one, config, filler=filler, causal=causal):
            lengths = [
                _length(text, prefix, config, filler=filler, causal=causal)
                for text in one.responses
            ]
            for column, number in zip(
                columns.values(), (row, prefix, max(lengths), sum(lengths)), strict=True
            ):
                column.append(number)
    if not columns["row"]:
        raise DataError("no two answers begin differently; expected pairs of different answers")
    return columns


def _prefixes(
    one: Judged, config: TrainRewardModelConfig, *, filler: int | None, causal: bool
) -> list[int]:
    """Tokens to be seen of the responses, once for each example; 0 for all of them."""
    if config.positions != "pairs":
        return [0]
    chosen, rejected = (_parts(text, causal=causal)[1] for text in one.responses)
    return prefix_lengths(
        chosen, rejected, filler=filler, start=config.prefix_start, step=config.prefix_step
    )


def _length(
    text: EncodedText,
    prefix: int,
    config: TrainRewardModelConfig,
    *,
    filler: int | None,
    causal: bool,
) -> int:
    """Tokens of a text of which so much of the response is seen."""
    if not prefix:
        return len(text)
    prompt, response, tail = _parts(text, causal=causal)
    seen = min(prefix, len(response)) if filler is None else prefix
    return min(len(prompt) + seen + len(tail), config.max_length)


def judged_beginning(
    one: Judged, prefix: int, *, filler: int | None, max_length: int, causal: bool
) -> Judged:
    """The same judgement of the first tokens of both responses.

    Args:
        one: of whole responses.
        prefix: tokens to keep of each; 0 keeps the row as it is.
        filler: as in `prefix_pairs`.
        max_length: of a text, in tokens; a longer one loses the start of its prompt.
        causal: whether the model reads prefixes as they are. If so, what stands behind a response
            (the end of a chat turn) is read as its last tokens; if not, behind every beginning.
    """
    if not prefix:
        return one
    texts = []
    for text in one.responses:
        prompt, response, tail = _parts(text, causal=causal)
        seen = beginning(response, prefix, filler=filler)
        room = max(1, max_length - len(seen) - len(tail))
        ids = [*prompt[-room:], *seen, *tail]
        mask = [False] * len(prompt[-room:]) + [True] * len(seen) + [False] * len(tail)
        texts.append(EncodedText(ids, mask))
    return replace(one, responses=tuple(texts))


def filler_id(config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token behind answers that have ended, or None where they stay as they are.

    Raises:
        ModelError: it is asked for and the tokenizer has no end of sequence.
    """
    if config.positions != "pairs" or config.prefix_padding == "held":
        return None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token to fill up "
            "answers with; expected one, or prefix_padding='held'"
        )
    return int(tokenizer.eos_token_id)


def _parts(text: EncodedText, *, causal: bool) -> tuple[list[int], list[int], list[int]]:
    """Prompt, response, and what stands behind it, unless that is read as part of it."""
    end = len(text) if causal else len(text) - text.response_mask[::-1].index(True)
    ids = text.input_ids
    return ids[: text.start], ids[text.start : end], ids[end:]
