"""A reward model as the server uses it: texts to rows of token ids, rows to scores and credit.

A client that has the prefix scores or the attention of a text makes every credit from them itself.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.credit.methods import credit_method
from tokencredit.errors import DataError, ModelError, NumericError
from tokencredit.models.fingerprint import weights_fingerprint
from tokencredit.models.hf_loading import context_length, pad_token_id
from tokencredit.models.hf_objectives import joined_scores
from tokencredit.models.hf_vocabularies import tokenizer_fingerprint, vocabulary_fingerprint
from tokencredit.recipes.serving.offers import (
    known_objectives,
    offered_details,
    row_details,
    row_objectives,
)
from tokencredit.recipes.serving.served_rows import row_of_ids, rows_of_texts, verbatim_row
from tokencredit.scorers.evidence import Responses, response_scores
from tokencredit.scorers.hf_judges import JudgeReward
from tokencredit.scorers.hf_local import own_scores
from tokencredit.scorers.hf_policy_tokens import ended_scores
from tokencredit.scorers.hf_trained_reading import trained_segments
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.reading_rows import with_end_token
from tokencredit.scorers.rewards import CombinedScorer, LoadedSource, PaidObjective, Rewards
from tokencredit.scorers.text_rewards import with_segments
from tokencredit.server.messages import PromptAndResponse, PromptAndResponseIds, Served
from tokencredit.server.rows import RowScores, TokenRow
from tokencredit.text.hf_encoding import closed_batch
from tokencredit.text.hf_reading import Reading


@dataclass(frozen=True)
class ServedModel:
    """A reward model behind the server, or a judge that is asked in its place.

    Attributes:
        model: a sequence-classification model, or the language model that judges.
        reading: how it reads texts; of a judge, how texts are cut into the tokens that are paid.
        credits: the credit methods on offer, each over the same sources of reward; a reward model
            is the first of them.
        layer: whose attention is recorded.
        max_tokens: of one row, if that is less than the model can read.
    """

    model: nn.Module
    reading: Reading
    credits: Mapping[str, Rewards]
    layer: int = -1
    max_tokens: int = 16384

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""
        return self.reading.tokenizer

    @property
    def credit_methods(self) -> tuple[str, ...]:
        """Names of the methods on offer."""
        return tuple(self.credits)

    @cached_property
    def row_tokens(self) -> int:
        """Tokens that a row may have."""
        context = context_length(self.model, self.tokenizer)
        return self.max_tokens if context is None else min(context, self.max_tokens)

    @cached_property
    def vocabulary(self) -> int:
        """Ids that the model knows."""
        config: Any = self.model.config
        return config.get_text_config().vocab_size

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives of the sources that have several."""
        return known_objectives(self._sources)

    @cached_property
    def about(self) -> Served:
        """What a client needs to know about the model."""
        segments = trained_segments(self.model.config) is not None
        read: dict[str, Any] = {
            "attention_layer": self.layer,
            "template": self.reading.template,
            "renders_chats": self.reading.template == "chat",
            "reads_eos": self.reading.append_eos,
            "reads_segments": segments or None,
            "vocabulary": vocabulary_fingerprint(self.tokenizer),
        }
        return Served(
            credit=list(self.credit_methods),
            details=list(offered_details(self.credit_methods, reads_segments=segments)),
            fingerprint=self._fingerprint(read),
            max_tokens=self.row_tokens,
            objectives=list(self.objectives) or None,
            **read,
        )

    def _fingerprint(self, read: Mapping[str, Any]) -> str:
        """A fingerprint of all that scores depend on, which the settings of credit are not.

        A client makes the credit.
        """
        weights = [(one.weight, one.score, *_identity(one)) for one in self._sources]
        combine = self._rewards.combine
        rest = (tokenizer_fingerprint(self.tokenizer), sorted(read.items()), combine)
        return hashlib.sha256(repr((weights, rest)).encode()).hexdigest()

    def text_rows(
        self,
        texts: Sequence[PromptAndResponse],
        credit: tuple[str, ...],
        details: tuple[str, ...] = (),
    ) -> list[TokenRow]:
        """Texts as the reward model reads them.

        Raises:
            DataError: a text is too long, has no prompt where one is needed, or its messages are
                refused by the chat template.
            ModelError: messages, and there is no chat template; or it rewrites the response.
        """
        return rows_of_texts(self.reading, texts, credit, details, most_tokens=self.row_tokens)

    def id_rows(
        self,
        texts: Sequence[PromptAndResponseIds],
        credit: tuple[str, ...],
        details: tuple[str, ...] = (),
    ) -> list[TokenRow]:
        """Token ids of the reward model's own vocabulary.

        Raises:
            DataError: an id is not in the vocabulary, the prompt has none, or a row is too long.
        """
        rows = []
        for number, text in enumerate(texts):
            ids = [*(text.prompt_ids or ()), *text.response_ids]
            outside = [id_ for id_ in ids if not 0 <= id_ < self.vocabulary]
            if outside:
                raise DataError(
                    f"text {number} has the id {outside[0]}; expected ids from 0 to "
                    f"{self.vocabulary - 1}, those of the reward model's own tokenizer"
                )
            if text.prompt_ids == []:
                raise DataError(
                    f"text {number} has no prompt_ids; expected at least one, such as the token "
                    "that begins a sequence: the score of the prompt alone is read there"
                )
            row = row_of_ids(self.reading, text, credit, details)
            self._require_length(number, row.length)
            rows.append(row)
        return rows

    def verbatim_rows(self, texts: Sequence[str]) -> list[TokenRow]:
        """Whole texts, special tokens written out in them, without any credit.

        Nothing is added but what closes a response, where the model learnt with it and it is
        missing.

        Raises:
            DataError: a text is empty or too long.
            ModelError: the model is read at the ends of segments of a response, or a source is
                asked about prompt and response apart, and the text has no marks of a chat.
        """
        if trained_segments(self.model.config) is not None:
            raise ModelError(
                "the reward model is read at the ends of the segments of a response, and a whole "
                "text does not say where its response begins; expected prompts and responses: "
                "ask /score"
            )
        apart = any(isinstance(one.scorer, FunctionScorer) for one in self._sources)
        rows = [
            verbatim_row(self.reading, self.model, text, number=number, apart=apart)
            for number, text in enumerate(texts)
        ]
        for number, row in enumerate(rows):
            self._require_length(number, row.length)
        return rows

    def scores(self, rows: Sequence[TokenRow]) -> list[RowScores]:
        """Scores of all rows in one forward pass.

        Raises:
            NumericError: a score is NaN or infinite.
            VerdictError: a judge's verdict on a row cannot be read.
            ModelError: the model lacks what a credit method needs.
        """
        batch, attention_mask = self._padded(rows)
        asked = {name for row in rows for name in row.credit}
        attends = any("attention" in row.details for row in rows)
        attends = attends or any("attention" in credit_method(name).needs for name in asked)
        found = self._source_scores(rows, batch, attention_mask, attends)
        scores = found[0] if len(found) == 1 else self._combined(found)
        all_paid = {name: self._paid(name, rows, found, batch, attention_mask) for name in asked}
        paid = {name: token_scores for name, (token_scores, _) in all_paid.items()}
        by_objective = {name: parts for name, (_, parts) in all_paid.items()}
        objectives = self._rewards.by_objective(Responses(batch), found, paid=False)
        for name, token_scores in paid.items():
            if not bool(token_scores.isfinite().all()):
                raise NumericError(
                    f"{name} pays a token NaN or an infinite score; expected finite ones: look for "
                    "NaN weights, or serve it in float32 or bfloat16 rather than float16"
                )
        numbers = {name: token_scores.tolist() for name, token_scores in paid.items()}
        return [
            RowScores(
                score,
                {name: numbers[name][i][: len(row.response_ids)] for name in row.credit},
                objectives=row_objectives(row, i, objectives, by_objective),
                **details,
            )
            for i, (row, score, details) in enumerate(
                zip(rows, scores.sequence_scores.tolist(), row_details(rows, scores), strict=True)
            )
        ]

    def _source_scores(
        self,
        rows: Sequence[TokenRow],
        batch: ResponseBatch,
        attention_mask: Bool[Tensor, "batch sequence"],
        attends: bool,
    ) -> list[ResponseScores]:
        """What the model says, and after it the other sources, in the model's tokens."""
        own, others = [], self._sources
        if not self._judges:
            scores = self._own_scores(batch, attention_mask, attends)
            if len(others) == 1:
                return [scores]
            own, others = (
                [scores.each(lambda one: ended_scores(one, batch.response_mask))],
                others[1:],
            )
        asked = Responses(batch, self._prompts(rows), ended=self._ended(rows, batch))
        return [*own, *(response_scores(one.scorer, asked) for one in others)]

    def _own_scores(
        self, batch: ResponseBatch, attention_mask: Bool[Tensor, "batch sequence"], attends: bool
    ) -> ResponseScores:
        return own_scores(
            self.model,
            self.reading,
            batch,
            attention_mask=attention_mask,
            attention_layer=self.layer if attends else None,
        )

    def tried(self) -> None:
        """Score one text, so that what is wrong with the sources shows now and with no request.

        A judge need only answer: whether one verdict can be read says nothing of the others.

        Raises:
            ConfigError, DataError, ModelError, NumericError, ServerError: as the sources.
        """
        judges = [reward for one in self._sources if (reward := _judge_of(one)) is not None]
        rows = self.text_rows([PromptAndResponse(prompt="a", response=" a")], self.credit_methods)
        if not judges:
            self.scores(rows)
        elif not self._judges:
            self._own_scores(*self._padded(rows), False)
        for reward in judges:
            reward.tried()

    @property
    def _judges(self) -> bool:
        """Whether the model is one that a source asks about texts, and no reward model."""
        return isinstance(self._sources[0].scorer, FunctionScorer)

    @property
    def _rewards(self) -> Rewards:
        return next(iter(self.credits.values()))

    @property
    def _sources(self) -> tuple[LoadedSource, ...]:
        return self._rewards.sources

    def _combined(self, scores: Sequence[ResponseScores]) -> ResponseScores:
        combine = self._rewards.combine
        return CombinedScorer(self._sources, combine).combined(scores)

    def _prompts(self, rows: Sequence[TokenRow]) -> list[Prompt]:
        """What was asked, as it came; the text of its ids where ids came."""
        return [
            row.prompt
            if row.prompt is not None
            else self.tokenizer.decode(row.prompt_ids, skip_special_tokens=True)
            for row in rows
        ]

    def _paid(
        self,
        name: str,
        rows: Sequence[TokenRow],
        scores: Sequence[ResponseScores],
        batch: ResponseBatch,
        attention_mask: Bool[Tensor, "batch sequence"],
    ) -> tuple[Float[Tensor, "batch time"], dict[str, PaidObjective]]:
        rewards = self.credits[name]
        prompts = self._prompts(rows) if self._judges or len(scores) > 1 else None
        ended = self._ended(rows, batch)
        asked = with_segments(rewards, Responses(batch, prompts, attention_mask, ended=ended))
        mask = batch.response_mask
        found = [one.each(lambda some: ended_scores(some, mask)) for one in scores]
        token_scores = rewards.paid(asked, scores=found).token_scores
        return token_scores, rewards.by_objective(asked, found)

    def _ended(self, rows: Sequence[TokenRow], batch: ResponseBatch) -> Bool[Tensor, "batch"]:
        """Which responses have ended, as they came or as their last token says."""
        by_token = with_end_token(self.reading, batch).tolist()
        said = [
            last if row.ended is None else row.ended
            for row, last in zip(rows, by_token, strict=True)
        ]
        return torch.tensor(said, device=batch.response_ids.device)

    def _require_length(self, number: int, length: int) -> None:
        if length > self.row_tokens:
            raise DataError(
                f"text {number} has {length} tokens; expected at most {self.row_tokens}, what the "
                "model reads and a batch holds: shorten or drop it"
            )

    def _padded(
        self, rows: Sequence[TokenRow]
    ) -> tuple[ResponseBatch, Bool[Tensor, "batch sequence"]]:
        """Rows as tensors, and which of their tokens are real."""
        pad, device = pad_token_id(self.tokenizer), next(self.model.parameters()).device
        batch, real = closed_batch(
            [(row.prompt_ids, row.response_ids, row.closing_ids) for row in rows], pad_token_id=pad
        )
        return batch.to(device), real.bool().to(device)


def _identity(source: LoadedSource) -> list[str]:
    """What the scores of a source depend on."""
    model, judge = getattr(source.scorer, "model", None), _judge_of(source)
    found = [weights_fingerprint(model)] if isinstance(model, nn.Module) else []
    if judge is not None:
        return [*found, judge.fingerprint]
    if not isinstance(model, nn.Module):
        return [source.name]
    config: Any = model.config
    asked = [config.id2label[0]] if joined_scores(model) is not None else []
    return [*found, *asked]  # of a model of several objectives what stands after its name


def _judge_of(source: LoadedSource) -> JudgeReward | None:
    """The judge that a source asks; None where it asks none."""
    function = getattr(source.scorer, "function", None)
    return function if isinstance(function, JudgeReward) else None
