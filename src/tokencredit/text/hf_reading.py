"""How a model reads a prompt and its response: the one place that decides it.

A reading says how texts are rendered (joined, by a chat template, as a pair), with what they are
closed where the response ended and where it was cut off, and which tokens end a turn. Training
writes it into the configuration of the model; for other models it is found out, or set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Message, Prompt
from tokencredit.errors import DataError
from tokencredit.text.hf_cut_texts import (
    CutText,
    cut_pairs,
    cut_rendered,
    cut_texts,
    with_end,
)
from tokencredit.text.hf_encoding import EncodedResponses, padded_texts, require_texts
from tokencredit.text.hf_rendering import (
    RenderedText,
    TurnMarks,
    rendered_answer,
    rendered_chat,
    rendered_prompt,
    turn_marks,
)
from tokencredit.text.hf_token_rows import (
    CHUNK,
    EncodedText,
    Truncation,
    sequence_start,
    shortened_text,
    unpadded_texts,
)


@dataclass(frozen=True)
class Reading:
    """How one model reads prompts and responses.

    A prompt is a text or a conversation. A text in the chat template's own marks, up to where the
    answer begins, is taken as rendered already. A response to an empty prompt stands alone and is
    read as plain text by every model.

    Attributes:
        tokenizer: of the model, a fast one.
        template: how prompt and response are rendered.
        append_eos: whether plain responses that ended are closed by the end of sequence.
        turn_ends: ids that end a response.
        origin: who decided, for people.

    >>> from tokencredit.toy.hf_tokenizer import toy_tokenizer
    >>> reading = Reading(toy_tokenizer(), append_eos=True)
    >>> encoded = reading.encoded(["the"], [" plot", ], ended=False)
    >>> encoded.batch.response_mask.sum().item()
    1
    >>> reading.encoded(["the"], [" plot"]).batch.response_mask.sum().item()
    2
    """

    tokenizer: PreTrainedTokenizerBase
    template: Literal["plain", "chat", "pair"] = "plain"
    append_eos: bool = False
    turn_ends: tuple[int, ...] = ()
    origin: str = "as set"

    @cached_property
    def marks(self) -> TurnMarks:
        """What the chat template writes around turns."""
        return turn_marks(self.tokenizer)

    @property
    def two_segments(self) -> bool:
        """Whether the model is told which tokens are the response's."""
        return self.template == "pair" and "token_type_ids" in self.tokenizer.model_input_names

    def encoded(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        ended: bool | Sequence[bool] = True,
        max_length: int | None = None,
        empty: Literal["error", "keep"] = "error",
        device: torch.device | str | None = None,
    ) -> EncodedResponses:
        """Prompts and responses as the model reads them.

        Args:
            prompts: texts or conversations, one per response.
            responses: what is answered.
            ended: whether the responses ended, or which of them; the others were cut off and are
                read as they stand, without what closes a response.
            max_length: of a row, in tokens.
            empty: whether a response without characters is an error, or a row without response
                tokens but for the end of sequence of `append_eos`.
            device: to put the tensors on.

        Raises:
            DataError: prompts and responses differ in number; a response is empty; nothing
                precedes a response; a text is longer than `max_length`; a conversation where plain
                texts are to be joined, or one that the template refuses.
            ModelError: the tokenizer gives no offsets, or lacks a token or template that it needs.
        """
        require_texts(self.tokenizer, prompts, responses, empty=empty)
        rows = self.cut(prompts, responses, _each(ended, len(responses)))
        return padded_texts(self.tokenizer, rows, max_length=max_length, empty=empty, device=device)

    def rows(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        ended: bool | Sequence[bool] = True,
        max_length: int | None = None,
        truncation: Truncation = "response-end",
    ) -> list[EncodedText]:
        """Every prompt and response as one row of token ids, cut to `max_length`.

        Args:
            prompts: as in `encoded`.
            responses: as in `encoded`.
            ended: as in `encoded`.
            max_length: in tokens; None cuts nothing.
            truncation: what goes first: the end of the response, or the start of the prompt (and
                then, with one token of it left, the end of the response). A token that begins the
                sequence stays.

        Raises:
            DataError: nothing of a response is left, or as in `encoded`.
            ModelError: as in `encoded`.
        """
        whole: list[EncodedText] = []
        is_ended = _each(ended, len(responses))
        for at in range(0, len(responses), CHUNK):
            part = slice(at, at + CHUNK)
            encoded = self.encoded(prompts[part], responses[part], ended=is_ended[part])
            whole += unpadded_texts(encoded, two_segments=self.two_segments)
        if max_length is None:
            return whole
        return [
            shortened_text(row, number, max_length, truncation, stays=self._beginnings)
            for number, row in enumerate(whole)
        ]

    def pairs(
        self,
        prompts: Sequence[Prompt],
        chosen: Sequence[str],
        rejected: Sequence[str],
        *,
        ended: Sequence[tuple[bool, bool]] | None = None,
        max_length: int,
        truncation: Truncation,
    ) -> list[tuple[EncodedText, EncodedText]]:
        """Every prompt with each of its two answers as token ids, both cut to the same prompt.

        Args:
            prompts: as in `encoded`.
            chosen: one answer per prompt.
            rejected: the other.
            ended: whether they ended, as in `encoded`; None for all.
            max_length: in tokens.
            truncation: as in `rows`; of the start of the prompt both sides lose what the longer
                one has too much, so that they differ in their answers alone.

        Raises:
            DataError, ModelError: as in `rows`.
        """
        pairs = self.groups(
            [(prompt, prompt) for prompt in prompts],
            list(zip(chosen, rejected, strict=True)),
            ended=ended,
            max_length=max_length,
            truncation=truncation,
        )
        return [(better, worse) for better, worse in pairs]

    def groups(
        self,
        prompts: Sequence[Sequence[Prompt]],
        responses: Sequence[Sequence[str]],
        *,
        ended: Sequence[Sequence[bool]] | None = None,
        max_length: int,
        truncation: Truncation,
    ) -> list[tuple[EncodedText, ...]]:
        """Groups of answers as token ids, all of a group cut to the same prompt.

        Args:
            prompts: of each answer of each group.
            responses: the answers of each group.
            ended: of each answer, as in `encoded`; None for all.
            max_length: in tokens.
            truncation: as in `rows`; of the start of the prompt all answers of a group lose what
                the longest one has too much.

        Raises:
            DataError, ModelError: as in `rows`.
        """
        rows = iter(
            self.rows(
                [prompt for group in prompts for prompt in group],
                [response for group in responses for response in group],
                ended=True if ended is None else [end for group in ended for end in group],
            )
        )
        groups = []
        for number, group in enumerate(responses):
            whole = [next(rows) for _ in group]
            longest = max(map(len, whole))
            cut = (
                shortened_text(
                    row, number, max_length, truncation, stays=self._beginnings, longest=longest
                )
                for row in whole
            )
            groups.append(tuple(cut))
        return groups

    @property
    def _beginnings(self) -> set[int | None]:
        """Ids that stay where one of them begins a row that is cut."""
        return {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id} - {None}

    def ids_of(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[list[int]]:
        """Token ids of whole texts, from the beginning of the prompt to what closes the response.

        Args:
            prompts: as in `encoded`.
            responses: as in `encoded`; empty ones leave the prompt alone.
            ended: as in `encoded`.

        Raises:
            DataError, ModelError: as `encoded`.
        """
        require_texts(self.tokenizer, prompts, responses, empty="keep")
        rows = self.cut(prompts, responses, ended)
        return [[*row.prompt, *row.response, *row.tail] for row in rows]

    def prompt_rows(self, prompts: Sequence[Prompt], *, where: str) -> list[list[int]]:
        """Prompts as the token ids that a model goes on from.

        Args:
            prompts: texts or conversations; a conversation that ends with a turn of the assistant
                is gone on with.
            where: the prompts come from, for messages.

        Raises:
            DataError: a prompt has no tokens, or the chat template refuses it.
        """
        try:
            rows = [self._prompt_row(prompt) for prompt in prompts]
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        eos = self.tokenizer.eos_token_id
        if eos is not None and all(row and row[-1] == eos for row in rows):
            rows = [row[:-1] for row in rows]  # what some tokenizers close every text with
        if any(not row for row in rows):
            raise DataError(
                f"a prompt of {where} has no tokens; expected text, or a tokenizer that begins "
                "with a BOS token"
            )
        return rows

    def text(self, prompt: Prompt, response: str) -> str:
        """Prompt and response as one text, for files that show them."""
        if self._in_chat(prompt):
            return self._rendered(prompt, response, ended=True).text
        return prompt_text(prompt) + response

    def split(self, text: str) -> tuple[str, str] | None:
        """A whole text in the marks of the chat template, as its prompt and its last answer.

        None where it has no such marks. What closes the answer in the text is cut off: `encoded`
        closes it.

        Args:
            text: with the special tokens written out.
        """
        return self.marks.split(text) if self.template == "chat" else None

    def cut(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[CutText]:
        """The ids of each text cut in three: before the response, the response, after it.

        Args:
            prompts: as in `encoded`.
            responses: as in `encoded`; empty ones are kept.
            ended: as in `encoded`.

        Raises:
            DataError, ModelError: as `encoded`.
        """
        self.require_renderable(prompts)
        rows: list[CutText | None] = [None] * len(prompts)
        in_chat = [row for row, prompt in enumerate(prompts) if self._in_chat(prompt)]
        in_pair = [row for row in range(len(prompts)) if self.template == "pair" and prompts[row]]
        others = sorted({*range(len(prompts))} - {*in_chat, *in_pair})
        if in_chat:
            texts = [self._rendered(prompts[i], responses[i], ended[i]) for i in in_chat]
            for i, row in zip(in_chat, cut_rendered(self.tokenizer, texts), strict=True):
                rows[i] = row
        if in_pair:
            asked = [prompt_text(prompts[i]) for i in in_pair]
            cut = cut_pairs(self.tokenizer, asked, [responses[i] for i in in_pair])
            for i, row in zip(in_pair, cut, strict=True):
                rows[i] = row
        if others:
            heads = [str(prompts[i]) or sequence_start(self.tokenizer) for i in others]
            both = [head + responses[i] for head, i in zip(heads, others, strict=True)]
            borders = [(len(h), len(b)) for h, b in zip(heads, both, strict=True)]
            for i, row in zip(
                others, cut_texts(self.tokenizer, both, borders, special=True), strict=True
            ):
                rows[i] = row
        closes = {*others, *in_pair} if self.append_eos else set()
        return [
            with_end(self.tokenizer, row, len(responses[i])) if i in closes and ended[i] else row
            for i, row in enumerate(rows)
            if row is not None
        ]

    def _in_chat(self, prompt: Prompt) -> bool:
        """Whether a prompt stands in the marks of the chat template, or is to be put there."""
        return self.template == "chat" and prompt != ""

    def _rendered(self, prompt: Prompt, response: str, ended: bool) -> RenderedText:
        if isinstance(prompt, str) and self.marks.open_answer(prompt):
            return rendered_answer(self.tokenizer, self.marks, prompt, response, ended=ended)
        conversation = _conversation(prompt)
        return rendered_chat(self.tokenizer, conversation, response, ended=ended)

    def _prompt_row(self, prompt: Prompt) -> list[int]:
        if not self._in_chat(prompt):
            self.require_renderable([prompt])
            ids: list[int] = self.tokenizer(prompt_text(prompt), add_special_tokens=True)[
                "input_ids"
            ]
            return ids
        if isinstance(prompt, str) and self.marks.open_answer(prompt):
            frame = self.cut([prompt], [""], [False])[0]
            return frame.prompt
        text = rendered_prompt(self.tokenizer, _conversation(prompt))
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def require_renderable(self, prompts: Sequence[Prompt]) -> None:
        """Raise DataError for conversations where texts are joined.

        Args:
            prompts: that will be read.
        """
        if self.template != "plain":
            return
        conversations = sum(not isinstance(prompt, str) for prompt in prompts)
        if conversations:
            there = "no" if self.tokenizer.chat_template is None else "a"
            raise DataError(
                f"{conversations} prompts are conversations, and the model reads texts as 'plain' "
                f"({self.origin}; the tokenizer {self.tokenizer.name_or_path!r} has {there} chat "
                "template); expected texts, or reading.template 'chat' and a tokenizer with a chat "
                "template: reading.chat_template names one"
            )


def _conversation(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: the contents of a conversation, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)


def _each(ended: bool | Sequence[bool], number: int) -> list[bool]:
    return [ended] * number if isinstance(ended, bool) else list(ended)
