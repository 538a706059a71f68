import pytest

from tokencredit.errors import DataError
from tokencredit.preference.labels import StepLabels, step_segment_ids

STEPS = ("2 + 2 is 4", "4 + 1 is 6", "so 6")


def test_the_response_closes_every_step():
    labels = StepLabels("add", STEPS, (True, False, False))
    assert labels.response(step_separator="\n") == "2 + 2 is 4\n4 + 1 is 6\nso 6\n"
    assert labels.response(step_separator="") == "".join(STEPS)


@pytest.mark.parametrize("given", [(True,), (True, False), (True, False, True, True), ()])
def test_labels_and_steps_are_as_many(given):
    with pytest.raises(DataError, match=f"labels holds {len(given)} and completions 3 steps"):
        StepLabels("add", STEPS, given)


@pytest.mark.parametrize("steps", [(), ("one", "")])
def test_steps_hold_text(steps):
    with pytest.raises(DataError, match=r"completions is .*expected at least one step, and text"):
        StepLabels("add", steps, (True,) * len(steps))


def test_a_separator_belongs_to_the_step_before_it():
    tokens = [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
    assert step_segment_ids(["ab", "cd", "e"], tokens, step_separator="\n") == [0, 0, 1, 1, 2]


def test_a_token_of_two_steps_belongs_to_the_later_one():
    tokens = [(0, 2), (2, 4), (4, 6)]
    assert step_segment_ids(["ab", "cd"], tokens, step_separator="\n") == [0, 1, 1]
    # The space that a tokenizer joins to the next word, where it is the separator too.
    spaced = [(0, 1), (1, 3), (3, 5)]
    assert step_segment_ids(["a b", "c"], spaced, step_separator=" ") == [0, 0, 1]


def test_bytes_of_a_character_and_closing_tokens():
    tokens = [(0, 1), (0, 1), (1, 2), (2, 3), (4, 4)]
    assert step_segment_ids(["é", "a"], tokens, step_separator="\n") == [0, 0, 0, 1, 1]


def test_a_response_may_be_cut():
    assert step_segment_ids(["ab", "cd"], [(0, 2)], step_separator="\n") == [0]
    assert step_segment_ids(["ab", "cd"], [], step_separator="\n") == []


def test_tokens_of_another_text_are_an_error():
    with pytest.raises(DataError, match=r"ends at character 7 and the 2 steps at 6"):
        step_segment_ids(["ab", "cd"], [(0, 7)], step_separator="\n")


def test_a_step_without_a_token_is_an_error():
    with pytest.raises(DataError, match="no token ends in step 1 of completions"):
        step_segment_ids(["ab", "c", "de"], [(0, 2), (2, 5)], step_separator="")
    with pytest.raises(DataError, match="no token ends in step 0 of completions"):
        step_segment_ids(["a", "bc"], [(0, 2), (2, 3)], step_separator="")
