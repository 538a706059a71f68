"""Requests as the rows of token ids that a served model reads: texts, ids, whole texts."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tokencredit.batch import Prompt, ResponseBatch
from tokencredit.errors import DataError, ModelError
from tokencredit.models.hf_loading import pad_token_id
from tokencredit.models.hf_objectives import joined_scores
from tokencredit.server.messages import Message, PromptAndResponse, PromptAndResponseIds
from tokencredit.server.rows import TokenRow
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import token_texts
from tokencredit.text.hf_written_rows import written_rows


def rows_of_texts(
    reading: Reading,
    texts: Sequence[PromptAndResponse],
    credit: tuple[str, ...],
    details: tuple[str, ...],
    *,
    most_tokens: int,
    numbers: Sequence[int] | None = None,
) -> list[TokenRow]:
    """Rows of texts; one by one where that fails, to name the text that is to blame.

    Args:
        reading: how the model reads texts.
        texts: prompts and responses.
        credit: asked for.
        details: likewise.
        most_tokens: of one row.
        numbers: of the texts in their request; None counts them from zero.

    Raises:
        DataError: a text is too long, has no prompt where one is needed, or its messages are
            refused by the chat template.
        ModelError: messages, and there is no chat template; or it rewrites the response.
    """
    numbers = range(len(texts)) if numbers is None else numbers
    responses = [text.response for text in texts]
    try:
        encoded = reading.encoded(
            [_prompt(text.prompt) for text in texts],
            responses,
            ended=[text.ended for text in texts],
            max_length=most_tokens,
            empty="keep",
        )
    except DataError as error:
        if len(texts) == 1:
            raise DataError(f"text {numbers[0]}: {error}") from error
        for text, number in zip(texts, numbers, strict=True):
            rows_of_texts(
                reading, [text], credit, details, most_tokens=most_tokens, numbers=[number]
            )
        raise
    names = token_texts(reading.tokenizer, encoded, responses)
    found = _token_rows(encoded, names, credit, details)
    return [
        replace(row, prompt=_prompt(text.prompt), ended=text.ended)
        for row, text in zip(found, texts, strict=True)
    ]


def row_of_ids(
    reading: Reading,
    text: PromptAndResponseIds,
    credit: tuple[str, ...],
    details: tuple[str, ...],
) -> TokenRow:
    """The row of token ids, closed in the prompt of the model's reading where that is asked for.

    Args:
        reading: how the model reads texts.
        text: ids of its own vocabulary.
        credit: asked for.
        details: likewise.
    """
    tokenizer = reading.tokenizer
    row = TokenRow(text.prompt_ids or [], text.response_ids, [], [], [], (), details)
    if text.ended is not None:
        row = _closed(reading, text, row)
    if not credit:
        return row
    decoded = decoded_response(tokenizer, row.prompt_ids, row.response_ids)
    names = tokenizer.convert_ids_to_tokens(row.response_ids)
    tokens = [
        decoded.response[a:b] if b > a else str(name)
        for (a, b), name in zip(decoded.spans, names, strict=True)
    ]
    return replace(row, tokens=tokens, spans=decoded.spans, credit=credit)


def verbatim_row(
    reading: Reading, model: nn.Module, text: str, *, number: int, apart: bool = False
) -> TokenRow:
    """A whole text with its special tokens written out, closed as the model learnt.

    Args:
        reading: how the model reads texts.
        model: that reads them.
        text: of prompt and response.
        number: of the text in its request.
        apart: whether something else is asked about prompt and response apart, such as a judge.

    Raises:
        DataError: the text is empty.
        ModelError: the model weighs its objectives by the prompt, which is not known, or something
            is asked about both apart.
    """
    parts = reading.split(text)
    if parts is not None:
        prompt, answer = parts
        encoded = reading.encoded([prompt], [answer], empty="keep")
        return replace(_token_rows(encoded, [[]], (), ())[0], prompt=prompt)
    if apart:
        raise ModelError(
            "a judge or a function is asked about prompt and response apart, and a whole text does "
            "not say where its response begins; expected prompts and responses: ask /score"
        )
    joined = joined_scores(model)
    if joined is not None and joined.gate is not None:
        raise ModelError(
            "the reward model weighs its objectives by what it reads in the prompt, and a "
            "whole text does not say where its response begins; expected prompts and "
            "responses: ask /score"
        )
    ids = reading.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise DataError(f"text {number} is empty; expected a prompt and its response")
    if reading.append_eos and ids[-1] != reading.tokenizer.eos_token_id:
        ids = [*ids, reading.tokenizer.eos_token_id]
    return TokenRow(ids[:1], ids[1:], [], [], [], ())


def _token_rows(
    encoded: EncodedResponses,
    names: list[list[str]],
    credit: tuple[str, ...],
    details: tuple[str, ...],
) -> list[TokenRow]:
    """The rows of a padded batch without its padding; tokens where something asks for them.

    Args:
        encoded: prompts and responses.
        names: of the tokens of each response.
        credit: asked for.
        details: likewise.
    """
    batch = encoded.batch
    closing = encoded.attention_mask[:, batch.prompt_ids.shape[1] :].bool() & ~batch.response_mask
    return [
        TokenRow(
            batch.prompt_ids[i][batch.prompt_mask[i]].tolist(),
            batch.response_ids[i][batch.response_mask[i]].tolist(),
            batch.response_ids[i][closing[i]].tolist(),
            names[i] if credit or details else [],
            spans if credit or details else [],
            credit,
            details,
        )
        for i, spans in enumerate(encoded.response_spans)
    ]


def _closed(reading: Reading, text: PromptAndResponseIds, row: TokenRow) -> TokenRow:
    """The row in the prompt of the model's reading, closed where the response ended."""
    end = [pad_token_id(reading.tokenizer)] if text.ended else []  # its closing takes this place
    batch = ResponseBatch.of_rows([row.prompt_ids], [[*row.response_ids, *end]], pad_token_id=0)
    prompts = None if text.prompt is None else [_prompt(text.prompt)]
    found = written_rows(reading, batch, prompts, torch.tensor([bool(text.ended)]))
    start = found.batch.prompt_ids.shape[1]
    real = found.attention_mask[0, start:]
    counts = found.batch.response_mask[0] & real
    ids = found.batch.response_ids[0]
    return replace(
        row,
        prompt_ids=found.batch.prompt_ids[0].tolist(),
        response_ids=ids[counts].tolist(),
        closing_ids=ids[real & ~counts].tolist(),
        # The prompt as it came: that of the reading may stand in the marks of a chat.
        prompt=reading.tokenizer.decode(row.prompt_ids, skip_special_tokens=True)
        if prompts is None
        else prompts[0],
        ended=text.ended,
    )


def _prompt(prompt: str | list[Message]) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return [message.model_dump() for message in prompt]
