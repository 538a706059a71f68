"""What passes between the server and a reward model: token ids there, scores back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tokencredit.batch import Prompt
from tokencredit.server.messages import PromptAndResponse, PromptAndResponseIds, Served
from tokencredit.text.alignment import Span


@dataclass(frozen=True)
class TokenRow:
    """One prompt and response as the reward model reads them.

    Attributes:
        prompt_ids: token ids up to the response, at least one.
        response_ids: of the response; may be empty.
        closing_ids: what is read after it (the end of a chat turn) and is no part of it.
        tokens: text of each response token; the name of a special token.
        spans: character span of each response token in the response's text.
        credit: the credit methods that are asked for.
        details: likewise what they are made from, such as "prefix-scores".
        prompt: what was asked, as it came, for sources of reward that read other tokens; None
            where ids came.
        ended: whether the response ended; None where its last token says so.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    closing_ids: list[int]
    tokens: list[str]
    spans: list[Span]
    credit: tuple[str, ...]
    details: tuple[str, ...] = ()
    prompt: Prompt | None = None
    ended: bool | None = None

    @property
    def length(self) -> int:
        """Tokens that the reward model reads."""
        return len(self.prompt_ids) + len(self.response_ids) + len(self.closing_ids)


@dataclass(frozen=True)
class ObjectiveOfRow:
    """What one objective of a reward model with several says about one row.

    Attributes:
        sequence_score: by this objective alone, without its weight.
        weight: of the objective in the score; None where the score is no weighted sum.
        token_scores: without the weight, by the credit methods for which weighted ones add up to
            the token scores of the row.
    """

    sequence_score: float
    weight: float | None
    token_scores: dict[str, list[float]]


@dataclass(frozen=True)
class RowScores:
    """What the reward model says about one row, in nats.

    Attributes:
        sequence_score: of the prompt with its response; NaN where a judge's verdict on it cannot be
            read.
        token_scores: name of a credit method to one score per response token.
        prefix_scores: of the prompt alone and after each response token, if asked for.
        position_scores: the number at the prompt's end and at each response token, if asked for.
        attention: that each response token receives where the score is read, if asked for.
        objectives: of a reward model with several, what each says, by its name.
        unreadable: why there is no score; None where there is one.
    """

    sequence_score: float
    token_scores: dict[str, list[float]]
    prefix_scores: list[float] | None = None
    position_scores: list[float] | None = None
    attention: list[float] | None = None
    objectives: dict[str, ObjectiveOfRow] | None = None
    unreadable: str | None = None


@runtime_checkable
class RowScorer(Protocol):
    """A reward model behind the server. One thread encodes, another one scores."""

    @property
    def credit_methods(self) -> tuple[str, ...]:
        """Names of the credit methods on offer."""
        ...

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what the reward model scores apart; none where it has one score."""
        ...

    @property
    def vocabulary(self) -> int:
        """Ids that the model knows."""
        ...

    @property
    def about(self) -> Served:
        """What a client needs to know about the model."""
        ...

    def text_rows(
        self,
        texts: Sequence[PromptAndResponse],
        credit: tuple[str, ...],
        details: tuple[str, ...] = (),
    ) -> list[TokenRow]:
        """Texts as the reward model reads them.

        Raises:
            DataError: a text cannot be scored.
            ModelError: the tokenizer lacks what it takes.
        """
        ...

    def id_rows(
        self,
        texts: Sequence[PromptAndResponseIds],
        credit: tuple[str, ...],
        details: tuple[str, ...] = (),
    ) -> list[TokenRow]:
        """Token ids of the reward model's own vocabulary, as they are.

        Raises:
            DataError: an id is not in the vocabulary, or a row is too long.
        """
        ...

    def verbatim_rows(self, texts: Sequence[str]) -> list[TokenRow]:
        """Whole texts, special tokens written out in them, without any credit.

        Raises:
            DataError: a text is empty or too long.
        """
        ...

    def scores(self, rows: Sequence[TokenRow]) -> list[RowScores]:
        """Scores of all rows in one forward pass; no row's scores depend on the others.

        Raises:
            NumericError: a score is NaN or infinite.
            VerdictError: a judge's verdict on a row cannot be read.
        """
        ...
