"""Rows as TRL, OpenRLHF, Alpaca, ShareGPT and well-known data sets write them."""

import json

import pytest

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.hf_comparisons import load_comparisons
from tokencredit.preference.hf_datasets import (
    load_labelled_responses,
    load_pairs,
    load_prompted_responses,
    load_prompts,
)
from tokencredit.preference.pairs import PreferencePair


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "be kind"}
TWO_TURNS = [user("Q"), assistant("A"), user("R")]
ANSWERS = {"chosen": " good", "rejected": " bad"}


def rows(folder, *values):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return path


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"prompt": "Q"}, "Q"),
        ({"input": "Q"}, "Q"),
        ({"question": "Q"}, "Q"),
        ({"instruction": "Q"}, "Q"),
        ({"instruction": "Q", "input": ""}, "Q"),
        ({"instruction": "Translate", "input": "Q"}, "Translate\n\nQ"),
        ({"messages": [user("Q")]}, [user("Q")]),
        ({"conversations": [{"from": "human", "value": "Q"}]}, [user("Q")]),
        ({"context": [SYSTEM, user("Q")]}, [SYSTEM, user("Q")]),
        ({"system": "be kind", "question": "Q"}, [SYSTEM, user("Q")]),
        ({"system": "", "question": "Q"}, [user("Q")]),
        ({"system": "be kind", "prompt": [user("Q")]}, [SYSTEM, user("Q")]),
    ],
)
def test_prompts_by_the_names_they_have_elsewhere(tmp_path, columns, prompt):
    path = rows(tmp_path, columns | ANSWERS)
    assert load_pairs(path) == [PreferencePair(prompt, " good", " bad")]
    (one,) = load_comparisons(path)
    assert (one.prompt, one.chosen) == (prompt, (" good",))
    assert load_prompts(path) == [prompt]
    path = rows(tmp_path, columns | {"text": " good", "label": 1})
    assert load_labelled_responses(path)[0].prompt == prompt


def test_a_prompt_that_may_stand_in_two_columns_is_asked_about(tmp_path):
    path = rows(tmp_path, {"question": "Q", "context": "C"} | ANSWERS)
    with pytest.raises(ConfigError, match=r"'question', 'context' could each.*columns\.prompt"):
        load_pairs(path, left_out=[])
    assert load_pairs(path, prompt_column="question")[0].prompt == "Q"


def test_a_prompt_in_a_column_that_nobody_knows_is_asked_about(tmp_path):
    path = rows(tmp_path, {"ask": "how was it?", "id": "x7"} | ANSWERS)
    with pytest.raises(ConfigError, match=r"'ask' could be it.*columns\.prompt"):
        load_pairs(path, left_out=[])
    assert load_pairs(path, prompt_column="ask")[0].prompt == "how was it?"
    assert load_pairs(path, prompt_column="")[0].prompt == ""


def test_the_margin_is_read_where_it_is_there(tmp_path):
    path = rows(tmp_path, {"prompt": "Q", "margin": 1.5} | ANSWERS, {"prompt": "Q"} | ANSWERS)
    assert [pair.margin for pair in load_pairs(path)] == [1.5, 0.0]
    assert [pair.margin for pair in load_pairs(path, margin_column="")] == [0.0, 0.0]


HH = "\n\nHuman: how was it?\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "head"),
    [
        (HH, HH),
        ("how was it?", HH),
        ("What is it?\n", "What is it?\n"),
        ("the film is", "the film is"),
    ],
)
def test_a_prompt_that_both_answers_repeat_is_taken_off(tmp_path, prompt, head):
    row = {"prompt": prompt, "chosen": f"{head} good", "rejected": f"{head} bad"}
    assert load_pairs(rows(tmp_path, row)) == [PreferencePair(head, " good", " bad")]
    path = rows(tmp_path, {"prompt": prompt, "response": f"{head} good"})
    (one,) = load_prompted_responses(path, response_column="response")
    assert (one.prompt, one.response) == (head, " good")


def test_a_word_that_an_answer_begins_with_by_chance_stays(tmp_path):
    row = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hiya"}
    assert load_pairs(rows(tmp_path, row)) == [PreferencePair("Hi", "Hi there", "Hiya")]


@pytest.mark.parametrize(
    ("prompt", "turns", "joined"),
    [
        ("Q", [SYSTEM, user("Q")], [SYSTEM, user("Q")]),
        ("Q", [SYSTEM], [SYSTEM, user("Q")]),
        ([SYSTEM, user("Q")], [user("Q")], [SYSTEM, user("Q")]),
        ([user("Q")], [SYSTEM, user("Q")], [SYSTEM, user("Q")]),
        ([SYSTEM], [user("Q")], [SYSTEM, user("Q")]),
        (
            [user("Q"), assistant("A"), user("R")],
            [user("R")],
            [user("Q"), assistant("A"), user("R")],
        ),
        ("R", [user("Q"), assistant("A"), user("R")], [user("Q"), assistant("A"), user("R")]),
    ],
)
def test_a_prompt_beside_whole_conversations_stands_there_once(tmp_path, prompt, turns, joined):
    row = {"prompt": prompt, "chosen": [*turns, assistant("good")]}
    path = rows(tmp_path, row | {"rejected": [*turns, assistant("bad")]})
    assert load_pairs(path) == [PreferencePair(joined, "good", "bad")]


@pytest.mark.parametrize(
    ("prompt", "turns", "message"),
    [
        ("Q", [user("other")], "name the right column of prompts"),
        ([SYSTEM], [{"role": "system", "content": "be short"}], "one turn of the system"),
    ],
)
def test_a_prompt_that_belongs_to_another_conversation(tmp_path, prompt, turns, message):
    row = {"prompt": prompt, "chosen": [*turns, assistant("good")]}
    path = rows(tmp_path, row | {"rejected": [*turns, assistant("bad")]})
    with pytest.raises(DataError, match=message):
        load_pairs(path)


def test_sharegpt(tmp_path):
    turns = [("system", "be kind"), ("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B")]
    whole = [{"from": speaker, "value": said} for speaker, said in turns]
    (one,) = load_prompted_responses(rows(tmp_path, {"conversations": whole}))
    assert one.prompt == [SYSTEM, user("Q"), assistant("A"), user("R")]
    assert one.response == "B"
    assert load_prompts(rows(tmp_path, {"conversations": whole})) == [one.prompt]
    ends = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    path = rows(tmp_path, {"conversations": whole[1:2]} | ends)
    assert load_pairs(path) == [PreferencePair([user("Q")], "chosen", "rejected")]
    with pytest.raises(DataError, match="a turn from 'function_call'"):
        load_prompts(rows(tmp_path, {"prompt": [{"from": "function_call", "value": "{}"}]}))


def test_content_in_parts(tmp_path):
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "was it?"}]
    assert load_prompts(rows(tmp_path, {"prompt": [user(parts)]})) == [[user("how was it?")]]
    picture = [*parts, {"type": "image_url", "image_url": {"url": "a.png"}}]
    with pytest.raises(DataError, match="of the type 'image_url'; expected text alone"):
        load_prompts(rows(tmp_path, {"prompt": [user(picture)]}))


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
TOOL = {"role": "tool", "content": "sun", "name": "f", "weight": 0}


def test_calls_of_tools_stay_in_the_messages(tmp_path):
    row = {"prompt": [user("Q"), CALL, TOOL], "response": "A"}
    (one,) = load_prompted_responses(rows(tmp_path, row), response_column="response")
    assert one.prompt == [
        user("Q"),
        CALL | {"content": ""},
        {"role": "tool", "content": "sun", "name": "f"},
    ]


def test_what_cannot_be_rendered_of_tools_is_refused(tmp_path):
    with pytest.raises(DataError, match="the last answer has 'tool_calls'"):
        load_prompted_responses(rows(tmp_path, {"messages": [user("Q"), CALL]}))
    row = {"prompt": [user("Q")], "response": "A", "tools": [{"type": "function"}]}
    with pytest.raises(DataError, match="column 'tools'"):
        load_prompted_responses(rows(tmp_path, row), response_column="response")
    (one,) = load_prompted_responses(
        rows(tmp_path, row | {"tools": []}), response_column="response"
    )
    assert one.response == "A"


SIDES = {"prompt": "Q", "response_0": "zero", "response_1": "one"}
HELPSTEER_2 = {"prompt": "Q", "response_1": "A", "response_2": "B"}
HELPSTEER_3 = {"context": [user("Q")], "response1": "A", "response2": "B"}


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        (SIDES | {"better_response_id": 1, "safer_response_id": 0}, "one", "zero"),
        (SIDES | {"better_response_id": 0, "safer_response_id": 1}, "zero", "one"),
        (
            {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": -2},
            "A",
            "B",
        ),
        (
            {"context": [user("Q")], "response1": "A", "response2": "B", "overall_preference": 1},
            "B",
            "A",
        ),
        ({"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 1}, "A", "B"),
        ({"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 0}, "B", "A"),
    ],
)
def test_pairs_of_known_data_sets(tmp_path, row, chosen, rejected):
    (pair,) = load_pairs(rows(tmp_path, row))
    assert (pair.chosen, pair.rejected) == (chosen, rejected)
    assert pair.prompt in ("Q", [user("Q")])
    (one,) = load_comparisons(rows(tmp_path, row))
    assert (one.chosen, one.rejected) == ((chosen,), (rejected,))


def test_ties_of_known_data_sets_are_bad_rows(tmp_path):
    row = HELPSTEER_2 | {"preference_strength": 0}
    with pytest.raises(DataError, match="a tie"):
        load_pairs(rows(tmp_path, row))


def test_a_label_of_a_known_name_needs_no_words(tmp_path):
    path = rows(tmp_path, SIDES | {"safer_response_id": 1})
    (one,) = load_comparisons(
        path,
        chosen_column="response_0",
        rejected_column="response_1",
        label_column="safer_response_id",
    )
    assert one.chosen == ("one",)


def test_kto_rows(tmp_path):
    path = rows(tmp_path, {"prompt": [user("Q")], "completion": [assistant("A")], "label": True})
    (one,) = load_labelled_responses(path)
    assert (one.prompt, one.response, one.label) == ([user("Q")], "A", 1)


def test_alpaca_and_openrlhf_answers(tmp_path):
    path = rows(tmp_path, {"instruction": "Add", "input": "1 and 2", "output": "3"})
    (one,) = load_prompted_responses(path)
    assert (one.prompt, one.response) == ("Add\n\n1 and 2", "3")
    (one,) = load_prompted_responses(rows(tmp_path, {"input": "Q", "output": "A"}))
    assert (one.prompt, one.response) == ("Q", "A")


def test_texts_and_conversations_in_one_file_of_prompts(tmp_path):
    path = rows(tmp_path, {"prompt": "Q"}, {"prompt": [user("Q")]})
    with pytest.raises(DataError, match="row 2 is a conversation, as 1 of 2 prompts are"):
        load_prompts(path, left_out=[])  # which of both is the bad one, nobody can say
    path = rows(tmp_path, {"prompt": [user("Q")]}, {"prompt": "Q"}, {"prompt": "R"})
    left_out = []
    assert load_prompts(path, left_out=left_out) == ["Q", "R"]
    assert [one.row for one in left_out] == [1]
    with pytest.raises(DataError, match="row 1 is a conversation, as 1 of 3 prompts are"):
        load_prompts(path)
