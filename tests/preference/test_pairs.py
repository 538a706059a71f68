from itertools import product

import pytest

from tokencredit.errors import DataError
from tokencredit.preference.pairs import conversation_and_answer, without_common_prompt

PROMPT = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Sing\n\nAssistant:"
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


def test_the_prompt_ends_at_the_last_shared_turn():
    found = without_common_prompt(PROMPT + " La la", PROMPT + " Li li")
    assert found == (PROMPT, " La la", " Li li")


def test_answers_that_begin_alike_keep_their_beginning():
    """Both answers start with the same line and words; none of it is prompt."""
    chosen, rejected = PROMPT + " Sure:\none two", PROMPT + " Sure:\none three"
    assert without_common_prompt(chosen, rejected)[1:] == (" Sure:\none two", " Sure:\none three")


def test_an_answer_that_begins_another_keeps_its_text():
    assert without_common_prompt(PROMPT + " La", PROMPT + " La la") == (PROMPT, " La", " La la")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Question one?\nyes", "Question one?\nyes, but", "Question one?\n"),
        ("a review: good film", "a review: good plot", "a review: good "),
        ("good", "bad", ""),
        ("goodly", "goodness", ""),
    ],
)
def test_without_a_marker_lines_and_then_words_are_borders(chosen, rejected, prompt):
    assert without_common_prompt(chosen, rejected)[0] == prompt


def test_nothing_is_lost():
    texts = ["".join(letters) for size in range(3) for letters in product("a \n", repeat=size)]
    for prompt, chosen, rejected in product(texts, repeat=3):
        found, first, second = without_common_prompt(prompt + chosen, prompt + rejected)
        assert found + first == prompt + chosen
        assert found + second == prompt + rejected


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [("Hi", [ANSWER]), ("Hi", [USER, ANSWER]), ("", [USER, ANSWER]), ([USER], [ANSWER]),
     ([USER], [USER, ANSWER]), ([], [USER, ANSWER])],
)  # fmt: skip
def test_a_conversation_is_the_same_however_it_is_split(prompt, messages):
    assert conversation_and_answer(prompt, messages) == ([USER], "Ho")


def test_a_system_message_in_front_stays():
    system = {"role": "system", "content": "Be brief."}
    assert conversation_and_answer([system], [USER, ANSWER]) == ([system, USER], "Ho")


@pytest.mark.parametrize("messages", [[], [USER], [ANSWER, USER]])
def test_the_last_message_must_be_an_answer(messages):
    with pytest.raises(DataError, match="expected the last one to be the assistant's"):
        conversation_and_answer("", messages)
