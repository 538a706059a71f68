"""Reference responses by the prompt that they answer, from a file that settings name."""

import json
from pathlib import Path

from tokencredit.batch import Prompt
from tokencredit.errors import DataError


def prompt_key(prompt: Prompt) -> str:
    """A prompt as a text that tells it apart; one turn of a user is its content.

    >>> prompt_key("Why?") == prompt_key([{"role": "user", "content": "Why?"}])
    True
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return str(prompt[0].get("content"))
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)


def read_references(path: str, *, setting: str) -> dict[str, str]:
    """References by the key of their prompt.

    Args:
        path: JSON-lines file with `prompt` and `response`.
        setting: that names it, for messages.

    Raises:
        DataError: it cannot be read, a row is none, or a prompt has two references.
    """
    found: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{setting} is {path!r} and cannot be read ({error}); expected a JSON-lines "
            "file with prompt and response"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key, response = prompt_key(row["prompt"]), row["response"]
        except (ValueError, TypeError, KeyError, AttributeError):
            key, response = "", None
        if not isinstance(response, str) or found.get(key, response) != response:
            raise DataError(
                f"{path}, line {number}: no prompt with one response; expected an object with "
                "prompt, a text or conversation, and response, a text, and each prompt once"
            )
        found[key] = response
    return found
