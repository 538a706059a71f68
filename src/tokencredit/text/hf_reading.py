"""How a model reads a prompt and its response: the one place that decides it.

A reading says how texts are rendered (joined, by a chat template, as a pair), with what they are
closed where the response ended and where it was cut off, and which tokens end a turn. Training
writes it into the configuration of the model; for other models it is found out, or set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Message, Prompt, ResponseBatch
from tokencredit.errors import DataError
from tokencredit.masking import last_true_index
from tokencredit.models.hf_loading import pad_token_id
from tokencredit.text.hf_encoding import (
    CutText,
    EncodedResponses,
    cut_pairs,
    cut_rendered,
    cut_texts,
    padded_texts,
    require_texts,
    with_end,
)
from tokencredit.text.hf_rendering import (
    RenderedText,
    TurnMarks,
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
class WrittenRows:
    """Responses with the token ids of their writer, as another model of this vocabulary reads them.

    Attributes:
        batch: response columns are those of the writer, and more where closing tokens follow.
        attention_mask: True on every token that is read.
    """

    batch: ResponseBatch
    attention_mask: Bool[Tensor, "batch sequence"]


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
        rows = self._cut(prompts, responses, _each(ended, len(responses)))
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
        rows = self._cut(prompts, responses, ended)
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

    def written_rows(
        self,
        batch: ResponseBatch,
        prompts: Sequence[Prompt] | None,
        ended: Bool[Tensor, "batch"],
        end_tokens: Bool[Tensor, "batch"] | None = None,
    ) -> WrittenRows:
        """Responses with the ids that were drawn, in the prompt and closing of this reading.

        Args:
            batch: in the tokens of this very vocabulary.
            prompts: what was asked; None takes the ids of the prompts, as text or as they are.
            ended: True for responses that have ended: they get this reading's own closing.
            end_tokens: True for those whose last token ended them: the closing takes the place of
                that token, which counts as before, read or not. None for all that ended.
        """
        ends = ended.tolist()
        replaced = ends if end_tokens is None else end_tokens.tolist()
        asked = self.prompts_of(batch, self.tokenizer) if prompts is None else list(prompts)
        kept = [
            prompts is None and isinstance(prompt, str) and not self._wraps(prompt)
            for prompt in asked
        ]
        frames = [
            self._frame(prompt, end, as_it_is=keep)
            for prompt, end, keep in zip(asked, ends, kept, strict=True)
        ]
        reads = batch.attention_mask[:, batch.prompt_ids.shape[1] :].bool()
        lengths = (last_true_index(reads) + 1).tolist()
        heads, texts, masks, read = [], [], [], []
        for row, (frame, length, keep) in enumerate(zip(frames, lengths, kept, strict=True)):
            own = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
            heads.append(own if keep else frame.prompt)
            written = length - replaced[row]
            closing = [*frame.response, *frame.tail]
            unread = replaced[row] and not closing
            ids = batch.response_ids[row, :written].tolist()
            counts = batch.response_mask[row, :written].tolist()
            filler = [pad_token_id(self.tokenizer)] if unread else []
            texts.append([*ids, *closing, *filler])
            after = [replaced[row], *[False] * len(closing)][: len(closing) + len(filler)]
            masks.append([*counts, *after])
            read.append(
                [*reads[row, :written].tolist(), *[True] * len(closing), *[False] * len(filler)]
            )
        return _written(self.tokenizer, heads, texts, masks, read, batch)

    def prompts_of(self, batch: ResponseBatch, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
        """The texts of prompts that are there as token ids alone.

        Special tokens are left out, but for prompts in the marks of this reading's chat template.

        Args:
            batch: whose prompts.
            tokenizer: of their ids.
        """
        found: list[Prompt] = []
        for ids, real in zip(batch.prompt_ids, batch.prompt_mask, strict=True):
            row = ids[real].tolist()
            marked = tokenizer.decode(row, clean_up_tokenization_spaces=False)
            if self.template == "chat" and self._is_rendered(marked):
                found.append(marked)
            else:
                found.append(
                    tokenizer.decode(
                        row, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                )
        return found

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
        marks = self.marks.openings if self.template == "chat" else ()
        borders = [text.rfind(mark) + len(mark) for mark in marks if mark in text]
        if not borders:
            return None
        # Spaces after the mark are the template's, not the answer's.
        answer = text[max(borders) :].lstrip("\n ")
        return text[: len(text) - len(answer)], self._opened(answer)

    @property
    def line(self) -> str:
        """One line that says how texts are read, and who decided."""
        closing = (
            f"and closed by {self.tokenizer.eos_token!r}" if self.append_eos else "and not closed"
        )
        how = {
            "plain": f"prompt and response are joined {closing}",
            "pair": f"prompt and response are a pair of sentences {closing}",
        }
        if self.template == "chat":
            try:
                mark = repr(self.marks.closing)
            except DataError:  # a template that refuses a question and its answer
                mark = "its mark"
            how["chat"] = (
                "by the chat template, a text as one message of the user; an answer that ended is "
                f"closed by {mark}, one that was cut off is left open"
            )
        return f"reads texts as {self.template!r} ({self.origin}): {how[self.template]}"

    def _cut(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[CutText]:
        """The ids of each text cut in three: before the answer, the answer, after it."""
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

    def _frame(self, prompt: Prompt, ended: bool, *, as_it_is: bool) -> CutText:
        """What stands before and after an answer, whatever it says."""
        # The ids of a prompt as it is are there already, and what closes an answer hangs on none.
        reading = replace(self, template="plain") if as_it_is and not prompt else self
        asked = "x" if as_it_is else prompt
        # What closes an answer is that of one with text: after none it may be one token with what
        # precedes.
        opened, closed = reading._cut([asked] * 2, ["", "x"], [False, ended])
        after_text = (len("x"), len("x"))
        spans = zip(closed.response, closed.spans, strict=True)
        closing = [id_ for id_, span in spans if span == after_text]
        return CutText(opened.prompt, closing, closed.tail, [])

    def _in_chat(self, prompt: Prompt) -> bool:
        """Whether a prompt stands in the marks of the chat template, or is to be put there."""
        return self.template == "chat" and prompt != ""

    def _wraps(self, prompt: str) -> bool:
        """Whether a text is put into the chat template as a message."""
        return self._in_chat(prompt) and not self._is_rendered(prompt)

    def _is_rendered(self, text: str) -> bool:
        """Whether a prompt stands in the template's marks, up to where the answer begins."""
        return text.rstrip().endswith(self.marks.openings)

    def _rendered(self, prompt: Prompt, response: str, ended: bool) -> RenderedText:
        if isinstance(prompt, str) and self._is_rendered(prompt):
            bos = self.tokenizer.bos_token
            if bos and self.marks.beginning.startswith(bos) and not prompt.startswith(bos):
                prompt = f"{bos}{prompt}"
            answer = self._opened(response)
            closing = self.marks.closing if ended or answer != response else ""
            start, stop = len(prompt), len(prompt) + len(answer)
            return RenderedText(f"{prompt}{answer}{closing}", start, stop)
        conversation = _conversation(prompt)
        return rendered_chat(self.tokenizer, conversation, response, ended=ended)

    def _opened(self, answer: str) -> str:
        """An answer without the mark that closes it, where it was written out."""
        mark = self.marks.closing.strip()
        return (
            answer.rstrip().removesuffix(mark)
            if mark and answer.rstrip().endswith(mark)
            else answer
        )

    def _prompt_row(self, prompt: Prompt) -> list[int]:
        if not self._in_chat(prompt):
            self.require_renderable([prompt])
            ids: list[int] = self.tokenizer(prompt_text(prompt), add_special_tokens=True)[
                "input_ids"
            ]
            return ids
        if isinstance(prompt, str) and self._is_rendered(prompt):
            frame = self._cut([prompt], [""], [False])[0]
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


def ended_responses(batch: ResponseBatch, turn_ends: Sequence[int]) -> Bool[Tensor, "batch time"]:
    """True on the last token of each response that ended itself.

    Args:
        batch: responses in the tokens of their writer.
        turn_ends: ids that end one.

    >>> batch = ResponseBatch.of_rows([[5], [5]], [[6, 2], [6, 7]], pad_token_id=0)
    >>> ended_responses(batch, [2]).tolist()
    [[False, True], [False, False]]
    """
    last = last_true_index(batch.response_mask)[:, None]
    is_last = torch.arange(batch.response_ids.shape[1], device=last.device) == last
    ends = batch.response_ids.new_tensor(list(turn_ends), dtype=torch.long)
    return is_last & (last >= 0) & torch.isin(batch.response_ids, ends)


def _conversation(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: the contents of a conversation, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)


def _each(ended: bool | Sequence[bool], number: int) -> list[bool]:
    return [ended] * number if isinstance(ended, bool) else list(ended)


def _written(
    tokenizer: PreTrainedTokenizerBase,
    heads: list[list[int]],
    texts: list[list[int]],
    masks: list[list[bool]],
    read: list[list[bool]],
    batch: ResponseBatch,
) -> WrittenRows:
    """Rows as a batch that is at least as wide as the writer's."""
    width = max(batch.response_ids.shape[1], *map(len, texts))
    pad = pad_token_id(tokenizer)

    def wide(rows: list[list[Any]], fill: Any) -> list[list[Any]]:
        return [[*row, *[fill] * (width - len(row))] for row in rows]

    made = ResponseBatch.of_rows(
        heads, wide(texts, pad), masks=wide(masks, False), pad_token_id=pad
    )
    real = torch.cat([made.prompt_mask, torch.tensor(wide(read, False))], dim=-1)
    device = batch.response_ids.device
    return WrittenRows(made.to(device), real.to(device))


def shown_example(
    reading: Reading, row: EncodedText, *, counted: Sequence[bool] | None = None
) -> str:
    """One row as the model reads it, for people: its text, its tokens, and where scores are read.

    Args:
        reading: of the model.
        row: prompt, response, and what closes it.
        counted: tokens that a loss counts; None where the model is read for scores.
    """
    tokenizer = reading.tokenizer
    names = [repr(tokenizer.decode([id_])) for id_ in row.input_ids]
    bracketed = row.response_mask if counted is None else counted
    marked = [
        f"[{name}]" if counts else name for name, counts in zip(names, bracketed, strict=True)
    ]
    if counted is None:
        said = f"of the response in brackets ({sum(bracketed)}); the score of the whole is read at "
        said += f"the last one, {names[-1]}"
    else:
        said = f"that the loss counts in brackets ({sum(bracketed)})"
    return (
        f"text:   {tokenizer.decode(row.input_ids)!r}\n"
        f"tokens: {' '.join(marked)}\n"
        f"        {len(row)} tokens; those {said}"
    )
