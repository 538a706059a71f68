"""What a command says of how its models read texts: one line each, and an example if asked."""

import sys
from collections.abc import Sequence

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText

_ANSWER = "(response)"


def print_reading(
    name: str,
    reading: Reading,
    *,
    example: tuple[Prompt, str] | None = None,
    ended: bool = True,
) -> None:
    """Print to the standard error how a model reads, and one text as it reads it.

    Args:
        name: what the model is, or where it comes from.
        reading: of the model.
        example: a prompt and a response to show; None shows none.
        ended: whether that response ended.
    """
    print(f"{name}: {reading_line(reading)}", file=sys.stderr)
    if example is not None:
        prompt, response = example
        try:
            (row,) = reading.rows([prompt], [response or _ANSWER], ended=ended)
        except DataError as error:  # the job says what becomes of such a row
            print(f"the example cannot be read: {error}", file=sys.stderr)
            return
        print(shown_example(reading, row), file=sys.stderr)


def reading_line(reading: Reading) -> str:
    """One line that says how texts are read, and who decided."""
    closing = f"and closed by {reading.tokenizer.eos_token!r}"
    if not reading.append_eos:
        closing = "and not closed"
    how = {
        "plain": f"prompt and response are joined {closing}",
        "pair": f"prompt and response are a pair of sentences {closing}",
    }
    if reading.template == "chat":
        try:
            mark = repr(reading.marks.closing)
        except DataError:  # a template that refuses a question and its answer
            mark = "its mark"
        how["chat"] = (
            "by the chat template, a text as one message of the user; an answer that ended is "
            f"closed by {mark}, one that was cut off is left open"
        )
    return f"reads texts as {reading.template!r} ({reading.origin}): {how[reading.template]}"


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
