"""From credit methods to a score on every word of marked texts.

Methods pay tokens and people mark words: what the tokens of a word are paid is summed, token by
token and character by character. A token that stands for no character of the text, an end of
sequence say, belongs to no word, and its score is left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.batch import TokenScorer
from tokencredit.errors import NumericError, ShapeError
from tokencredit.kept_tokens import ScoresOfKept
from tokencredit.preference.marked_texts import MarkedText, words_of
from tokencredit.text.alignment import Span, project_token_scores, spans_of_words
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_reading import Reading

WordScores = list[list[float]]
"""Scores of the words of some texts, in nats: one list for every text."""


@dataclass(frozen=True)
class EncodedWords:
    """Some marked texts in the tokens of a model, with the words that the tokens make.

    Attributes:
        texts: the marked texts.
        encoded: their prompts and responses.
        words: of each text, the character spans of its words.
    """

    texts: list[MarkedText]
    encoded: EncodedResponses
    words: list[list[Span]]

    @property
    def word_mask(self) -> Bool[Tensor, "batch words"]:
        """True on the words that each text has."""
        lengths = torch.tensor([len(words) for words in self.words])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    @property
    def token_words(self) -> Int[Tensor, "batch time"]:
        """The first word that each response token holds a character of.

        As many as `word_mask` has columns for a token of no word, -1 outside the response mask.
        """
        mask = self.encoded.batch.response_mask.cpu()
        nowhere = max(map(len, self.words))
        ids = torch.full(mask.shape, nowhere)
        for row, (text, words) in enumerate(zip(self.texts, self.words, strict=True)):
            spans = spans_of_words(self.encoded.response_spans[row], text.response)
            for column, (start, end) in enumerate(spans):
                holding = (at for at, (a, b) in enumerate(words) if a < end and start < b)
                ids[row, column] = next(holding, nowhere)
        return ids.masked_fill(~mask, -1)


Scorer = Callable[[EncodedWords], Mapping[str, Float[Tensor, "batch time"]]]
"""Names of methods to their token scores: what one pass over some texts can tell."""


def encoded_words(
    reading: Reading,
    texts: Sequence[MarkedText],
    *,
    batch_size: int,
    max_length: int | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[list[int], EncodedWords]]:
    """The texts in batches, those of like length together, with their rows in `texts`.

    Args:
        reading: of the model that is to score them.
        texts: a prompt or none each; those without one are read as they are.
        batch_size: texts per batch.
        max_length: of a row, in tokens.
        device: to put the tensors on.

    Raises:
        DataError: a text is longer than `max_length`, or as `Reading.encoded`.
        ModelError: as `Reading.encoded`.
    """
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row].response))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        some = [texts[row] for row in rows]
        encoded = reading.encoded(
            [text.prompt for text in some],
            [text.response for text in some],
            max_length=max_length,
            device=device,
        )
        yield rows, EncodedWords(some, encoded, [words_of(text.response) for text in some])


def scores_of_words(
    token_scores: Float[Tensor, "batch time"], batch: EncodedWords, *, name: str
) -> WordScores:
    """What the tokens of each word are paid together.

    Args:
        token_scores: of the response tokens, in nats.
        batch: the texts that they were made from.
        name: of the method, for messages.

    Returns:
        Scores that sum to the token scores of the row, but for those of tokens that stand for no
        character.

    Raises:
        ShapeError: there is not one score per response token.
        NumericError: a score inside the response mask is NaN or infinite.
    """
    mask = batch.encoded.batch.response_mask
    if token_scores.shape != mask.shape:
        raise ShapeError(
            f"{name!r} gives token scores of shape {tuple(token_scores.shape)} for a response_mask "
            f"of shape {tuple(mask.shape)}; expected one score per response token"
        )
    if not bool(token_scores[mask].isfinite().all()):
        raise NumericError(f"{name!r} gives NaN or infinite token scores; expected finite ones")
    rows = []
    for scores, spans, text, words in zip(
        token_scores.cpu(), batch.encoded.response_spans, batch.texts, batch.words, strict=True
    ):
        kept = [at for at, (start, end) in enumerate(spans) if end > start]
        visible = spans_of_words([spans[at] for at in kept], text.response)
        rows.append(project_token_scores(scores[kept], visible, words).tolist())
    return rows


def kept_words(scores_of_kept: ScoresOfKept, batch: EncodedWords) -> ScoresOfKept:
    """The scores of the texts by the words that stay, from those by the tokens that do.

    Args:
        scores_of_kept: by tokens.
        batch: the texts.

    Returns:
        A function of `(batch, subsets, words)` masks. Tokens that belong to no word always stay.
    """
    token_words = batch.token_words
    mask = batch.encoded.batch.response_mask

    def scores(keep: Bool[Tensor, "batch subsets words"]) -> Float[Tensor, "batch subsets"]:
        always = torch.nn.functional.pad(keep, (0, 1), value=True)
        columns = token_words.clamp(min=0)[:, None].expand(-1, keep.shape[1], -1)
        tokens = always.gather(-1, columns)
        return scores_of_kept(tokens.to(mask.device) & mask[:, None]).cpu()

    return scores


def as_scorer(name: str, scorer: TokenScorer) -> Scorer:
    """A token scorer of one's own, under its name."""
    return lambda batch: {name: scorer(batch.encoded.batch)}
