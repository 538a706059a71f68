"""What a command says of how its models read texts: one line each, and an example if asked."""

import sys

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.text.hf_reading import Reading, shown_example

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
    print(f"{name}: {reading.line}", file=sys.stderr)
    if example is not None:
        prompt, response = example
        try:
            (row,) = reading.rows([prompt], [response or _ANSWER], ended=ended)
        except DataError as error:  # the job says what becomes of such a row
            print(f"the example cannot be read: {error}", file=sys.stderr)
            return
        print(shown_example(reading, row), file=sys.stderr)
