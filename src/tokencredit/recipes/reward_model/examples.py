"""What a reward model is shown in training: judged rows, and where their scores are read.

With prefixes a row is many examples, one pair of beginnings for each length. Ratings are learnt in
standard deviations above their mean; afterwards the head is scaled, so that a score is a rating
above the mean. The mean, for which a head without bias has no place, stands in the configuration.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.errors import DataError, ModelError
from tokencredit.masking import left_packed
from tokencredit.models.hf_loaded_weights import head_modules
from tokencredit.preference.hf_answers import JudgedAnswers
from tokencredit.preference.pairs import (
    JudgedResponse,
    LabelledResponse,
    MultiRatedResponse,
    PreferencePair,
    RatedResponse,
    beginning,
    prefix_lengths,
)
from tokencredit.recipes.reward_model.settings import TrainRewardModelConfig
from tokencredit.reward_model.objectives import Judgements, Reading
from tokencredit.scorers.hf_segment_ends import SegmentEnds, reading_at_ends
from tokencredit.text.hf_token_rows import (
    EncodedText,
    ReadAt,
    read_every_token,
    read_last_token,
    scored_rows,
    token_types,
)

Judgement = PreferencePair | JudgedResponse | JudgedAnswers


@dataclass(frozen=True)
class JudgedRow:
    """What one row of the data says.

    Attributes:
        responses: the chosen and the rejected one, those that are ranked, or the one with a label
            or rating.
        target: the margin in nats, the label, or the rating.
        strength: the weight of a preference.
        preferred: the probability that a preference is right.
        targets: the ratings by several objectives, NaN where one is missing, or the ranks of the
            responses, 1 for the best; empty where there is one target.
        user: who prefers; None where nobody is named.
    """

    responses: tuple[EncodedText, ...]
    target: float
    strength: float = 1.0
    targets: tuple[float, ...] = ()
    preferred: float = 1.0
    user: str | None = None

    def __len__(self) -> int:
        return max(map(len, self.responses))


def judged_rows(
    data: Sequence[Judgement],
    encode: Callable[[list[JudgedResponse]], list[EncodedText]],
    encode_pairs: Callable[[list[PreferencePair]], list[tuple[EncodedText, EncodedText]]],
    encode_lists: Callable[[list[JudgedAnswers]], list[tuple[EncodedText, ...]]] | None = None,
) -> list[JudgedRow]:
    """Rows as token ids, with their margins, labels or ratings.

    Args:
        data: all pairs or all ranked answers, or none of either.
        encode: from responses that stand alone to token ids.
        encode_pairs: from pairs to the token ids of both sides.
        encode_lists: from ranked answers to token ids; None where there are none.

    Raises:
        DataError: all answers of a list have the same score.
    """
    lists = [row for row in data if isinstance(row, JudgedAnswers)]
    if lists and encode_lists is not None:
        ranks = [_ranks(row) for row in lists]
        return [
            JudgedRow(texts, math.nan, targets=of_texts)
            for texts, of_texts in zip(encode_lists(lists), ranks, strict=True)
        ]
    pairs = [row for row in data if isinstance(row, PreferencePair)]
    if pairs:
        return [
            JudgedRow(both, pair.margin, pair.strength, preferred=pair.preferred, user=pair.user)
            for both, pair in zip(encode_pairs(pairs), pairs, strict=True)
        ]
    alone = [row for row in data if not isinstance(row, PreferencePair | JudgedAnswers)]
    return [
        JudgedRow((row,), math.nan, targets=one.ratings)
        if isinstance(one, MultiRatedResponse)
        else JudgedRow((row,), _target(one))
        for row, one in zip(encode(alone), alone, strict=True)
    ]


def judgement_text(row: Judgement) -> str:
    """What tells two rows of the same prompt apart."""
    if isinstance(row, JudgedAnswers):
        return row.responses[0]
    return row.chosen if isinstance(row, PreferencePair) else row.response


def _ranks(row: JudgedAnswers) -> tuple[float, ...]:
    """The rank of each answer by its score, 1 for the best; answers of one score share theirs."""
    scores = row.scores or ()
    if len(set(scores)) < 2:
        raise DataError(
            f"{len(row.responses)} answers with the scores {list(scores)}; expected different "
            "ones, so that some are better: drop the row"
        )
    return tuple(1.0 + sum(other > score for other in scores) for score in scores)


def ranked_pairs(judged: Sequence[JudgedRow]) -> list[JudgedRow]:
    """Every pair of differently ranked responses, the better one first."""
    return [
        JudgedRow((one, other), 0.0)
        for row in judged
        for one, rank in zip(row.responses, row.targets, strict=True)
        for other, behind in zip(row.responses, row.targets, strict=True)
        if rank < behind
    ]


def _target(one: LabelledResponse | RatedResponse) -> float:
    return one.rating if isinstance(one, RatedResponse) else float(one.label)


def score_reading(reading: Reading, rows: Sequence[JudgedRow], ends: SegmentEnds | None) -> ReadAt:
    """Where scores are read in training.

    Args:
        reading: of the objective.
        rows: all that will be read.
        ends: finds the ends of segments, where these are read; else None.
    """
    if ends is not None:
        return reading_at_ends([text for one in rows for text in one.responses], ends)
    return {"last": read_last_token, "every": read_every_token}[reading]


def reward_batch(judged: Sequence[JudgedRow], *, pad_id: int, read_at: ReadAt) -> dict[str, Tensor]:
    """Rows of several judgements padded on the right: all first responses, then all second ones.

    Of rankings, whose rows have ranks of several responses, all responses of one row after another.

    Returns:
        `input_ids`, `attention_mask`, `targets`, `strengths`, `preferred`, and `counted`: True
        where scores are read. Also `token_types`, for models that read pairs.
    """
    texts = [one.responses for one in judged]
    ranked = any(len(one.targets) == len(one.responses) > 1 for one in judged)
    rows = list(chain.from_iterable(texts if ranked else zip(*texts, strict=True)))
    ids, attention_mask, counted = scored_rows(rows, pad_id=pad_id, read_at=read_at)
    types = token_types(rows, width=ids.shape[1])
    return {
        **({} if types is None else {"token_types": types}),
        "input_ids": ids,
        "attention_mask": attention_mask,
        "counted": counted,
        **judgement_batch(judged),
    }


SAID = ("targets", "strengths", "preferred")
"""Columns of a batch that are not for the model."""


def judgement_batch(judged: Sequence[JudgedRow]) -> dict[str, Tensor]:
    """What was said of the rows: `targets`, `strengths` and `preferred`."""
    return {
        "targets": torch.tensor(_targets(judged)),
        "strengths": torch.tensor([one.strength for one in judged]),
        "preferred": torch.tensor([one.preferred for one in judged]),
    }


def _targets(judged: Sequence[JudgedRow]) -> list[float] | list[tuple[float, ...]]:
    """The target of each row, or its targets, filled up with NaN where another row has more."""
    most = max(len(one.targets) for one in judged)
    if not most:
        return [one.target for one in judged]
    return [(*one.targets, *[math.nan] * (most - len(one.targets))) for one in judged]


def judgements_of(
    scores: Float[Tensor, "batch time *numbers"], inputs: dict[str, Tensor]
) -> Judgements:
    """Scores of a batch of rows with what was said of them."""
    mask, _ = left_packed(inputs["counted"], inputs["counted"])
    return Judgements(scores, mask, inputs["targets"], inputs["strengths"], inputs["preferred"])


def example_columns(
    judged: Sequence[JudgedRow],
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
        causal: as in `beginning_row`.

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
    one: JudgedRow, config: TrainRewardModelConfig, *, filler: int | None, causal: bool
) -> list[int]:
    """Tokens to be seen of the responses, once for each example; 0 for all of them."""
    if not config.row.beginnings:
        return [0]
    chosen, rejected = (_parts(text, causal=causal)[1] for text in one.responses)
    return prefix_lengths(
        chosen, rejected, filler=filler, start=config.beginnings.start, step=config.beginnings.step
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


def beginning_row(
    one: JudgedRow, prefix: int, *, filler: int | None, max_length: int, causal: bool
) -> JudgedRow:
    """A judgement about the first tokens of both responses alone.

    Args:
        one: of whole responses.
        prefix: tokens to keep of each; 0 keeps the row as it is.
        filler: as in `prefix_pairs`.
        max_length: of a text, in tokens; if one is longer, both lose as much of the start of their
            prompts.
        causal: whether the model reads prefixes as they are. If so, what stands after a response
            (the end of a chat turn) is read as its last tokens; if not, after every beginning.
    """
    if not prefix:
        return one
    parts = []
    for text in one.responses:
        prompt, response, tail = _parts(text, causal=causal)
        parts.append((prompt, beginning(response, prefix, filler=filler), tail))
    longest = max(len(prompt) + len(seen) + len(tail) for prompt, seen, tail in parts)
    texts = []
    for text, (prompt, seen, tail) in zip(one.responses, parts, strict=True):
        kept = prompt[max(0, min(longest - max_length, len(prompt) - 1)) :]
        ids = [*kept, *seen, *tail]
        mask = [False] * len(kept) + [True] * len(seen) + [False] * len(tail)
        texts.append(replace(text, input_ids=ids, response_mask=mask))
    return replace(one, responses=tuple(texts))


def filler_id(config: TrainRewardModelConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token after answers that have ended, or None where they stay as they are.

    Raises:
        ModelError: it is asked for and the tokenizer has no end of sequence.
    """
    if not config.row.beginnings or config.beginnings.padding == "held":
        return None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token to fill up "
            "answers with; expected one, or beginnings.padding='held'"
        )
    return int(tokenizer.eos_token_id)


def _parts(text: EncodedText, *, causal: bool) -> tuple[list[int], list[int], list[int]]:
    """Prompt, response, and what stands after it, unless that is read as part of it."""
    end = len(text) if causal else len(text) - text.response_mask[::-1].index(True)
    ids = text.input_ids
    return ids[: text.start], ids[text.start : end], ids[end:]


def standardised_rows(model: PreTrainedModel, judged: Sequence[JudgedRow]) -> list[JudgedRow]:
    """Ratings as they are learnt; the model's configuration keeps what undoes it.

    Raises:
        DataError: all ratings are the same.
    """
    ratings = torch.tensor([one.target for one in judged], dtype=torch.float64)
    mean, spread = float(ratings.mean()), float(ratings.std(correction=0))
    if spread == 0:
        raise DataError(
            f"all {len(judged)} ratings are {mean:g}; expected different ones: name another "
            "columns.rating"
        )
    model.config.rating_mean, model.config.rating_standard_deviation = mean, spread
    return [replace(one, target=(one.target - mean) / spread) for one in judged]


def require_an_order(judged: Sequence[JudgedRow]) -> None:
    """Held-out ratings, if there are any, differ.

    Raises:
        DataError: they do not.
    """
    if judged and len({one.target for one in judged}) == 1:
        raise DataError(
            f"{len(judged)} held-out responses, all of them rated alike; expected at least two "
            "ratings: hold more of them out, or none (evaluation.share=0)"
        )


def scale_scores(model: PreTrainedModel, factor: float | Sequence[float]) -> None:
    """Multiply every score of a model by a factor, in the last layer of its head.

    Args:
        model: with a head of linear layers.
        factor: the standard deviation of ratings, to turn what was learnt into their unit; several
            for as many outputs.
    """
    heads = head_modules(model).values()
    *_, last = (layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for weight in last.parameters():  # rows, or rows by width
            factors = torch.tensor(factor, device=weight.device).reshape(-1)
            weight.mul_(factors if weight.dim() == 1 else factors[:, None])
