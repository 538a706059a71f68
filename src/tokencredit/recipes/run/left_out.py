"""Rows that could not be used: said at once, and written beside what the others became."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from torch import nn

from tokencredit.batch import Prompt
from tokencredit.errors import DataError
from tokencredit.models.hf_architecture import require_room
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.recipes.run.run_folder import write_atomically, writing
from tokencredit.text.hf_reading import Reading

Row = TypeVar("Row")
Made = TypeVar("Made")


def tell_left_out(left_out: Sequence[LeftOut] | None, path: Path | None) -> None:
    """Print how many rows were left out and why the first was; write all reasons to a file.

    Args:
        left_out: rows and reasons; None where a bad row would have ended the job.
        path: JSON-lines file of a `row` and a `reason` each; one from an earlier call goes where
            nothing was left out. None writes none, and prints every reason.

    Raises:
        RunFolderError: the file cannot be written.
    """
    rows = list(left_out or ())
    with nullcontext() if path is None else writing(path):
        if path is not None and rows:
            write_atomically(path, "".join(json.dumps(asdict(one)) + "\n" for one in rows))
        elif path is not None:
            path.unlink(missing_ok=True)
    if rows:
        shown = rows if path is None else rows[:1]
        reasons = "".join(f"\n  {one.reason:.500}" for one in shown)
        where = "" if path is None else f"\n  all reasons: {path}"
        print(f"left out {len(rows)} rows that cannot be used:{reasons}{where}", file=sys.stderr)


def beside(output: Path) -> Path:
    """Where the rows are listed that an output file lacks.

    >>> beside(Path("scores.jsonl")).name
    'scores.skipped.jsonl'
    """
    return output.with_name(f"{output.stem}.skipped.jsonl")


def usable(
    make: Callable[[list[Row]], list[Made]], rows: list[Row], left_out: list[LeftOut] | None
) -> list[Made]:
    """What rows become, without those of which nothing can be made.

    Args:
        make: from rows to as many of something; raises `DataError` where one of them is bad.
        rows: of the data.
        left_out: takes the bad ones; None makes one an error.

    Raises:
        DataError: as `make`, where `left_out` is None.
    """
    try:
        return make(rows) if rows else []
    except DataError:
        if left_out is None:
            raise
    found: list[Made] = []
    waiting = [rows]
    while waiting:  # halves, so that one bad row among many costs little
        some = waiting.pop()
        try:
            found += make(some)
        except DataError as error:
            middle = len(some) // 2
            if middle:
                waiting += [some[middle:], some[:middle]]
            else:
                left_out.append(LeftOut(None, f"{error} (the row: {some[0]!r:.200})"))
    return found


def encodable(
    encode: Callable[[list[Row]], list[Made]], rows: list[Row], left_out: list[LeftOut] | None
) -> list[Made]:
    """What rows become, as in `usable`: a template may refuse a single one, and none is an error.

    Args:
        encode: as `make` of `usable`.
        rows: of the data.
        left_out: as there.

    Raises:
        DataError: as in `usable`, or no row is good.
    """
    faults: list[LeftOut] | None = None if left_out is None else []
    found = usable(encode, rows, faults)
    require_some(found, faults)
    if left_out is not None and faults is not None:
        left_out += faults
    return found


def require_some(found: Sequence[object], left_out: Sequence[LeftOut] | None) -> None:
    """Raise DataError if all rows were left out.

    Args:
        found: what the others became.
        left_out: rows and reasons.
    """
    if not found and left_out:
        raise DataError(f"no row can be used; the first: {left_out[0].reason}")


def encodable_prompts(
    prompts: list[Prompt],
    reading: Reading,
    left_out: list[LeftOut] | None,
    *,
    where: str,
    kept: int | None,
    new_tokens: int,
    readers: Sequence[nn.Module],
) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids as the policy reads them, without those it cannot answer.

    Args:
        prompts: of the data.
        reading: how the policy reads.
        left_out: takes the bad ones; None makes one an error.
        where: what the data is called, for messages.
        kept: how many tokens of a prompt are used at most, the first ones; None uses all.
        new_tokens: of the longest answer.
        readers: the models that read a prompt with its answer in the policy's tokens.

    Raises:
        DataError: a prompt cannot be encoded, or leaves no room for an answer, where `left_out` is
            None or no prompt is good.
    """

    def with_ids(some: list[Prompt]) -> list[tuple[Prompt, list[int]]]:
        rows = reading.prompt_rows(some, where=where)
        for model in readers:
            require_room(model, max(len(row[:kept]) for row in rows) + new_tokens)
        return list(zip(some, rows, strict=True))

    return encodable(with_ids, prompts, left_out)
