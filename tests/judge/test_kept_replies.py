"""Replies kept in a file: by other processes, after a kill, in files that are something else."""

import math
import multiprocessing
import os
import signal
import sqlite3

import pytest

from tokencredit.errors import DataError, ServerError
from tokencredit.judge.kept_replies import kept_replies
from tokencredit.judge.questions import Question
from tokencredit.judge.scores import judged_scores
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.judge.verdicts import Reply

REPLY = Reply("text \ud800 ü", {"yes": -0.5, "no": -math.inf}, False, -2.0, "a problem")


def question(text, answers=(), draw=0):
    return Question(({"role": "user", "content": text},), tuple(answers), draw)


class Counting:
    """A judge that answers with what it is asked, and counts."""

    def __init__(self):
        self.asked = []

    def __call__(self, questions):
        self.asked += questions
        return [
            Reply(f"{one.messages[0]['content']} {one.answers} {one.draw}") for one in questions
        ]


def test_a_second_run_asks_nothing(tmp_path):
    inner, path = Counting(), tmp_path / "new" / "replies.db"
    asked = [question(f"text {n}") for n in range(150)] + [question("text 3")]
    first = kept_replies(inner, path, identity="a")(asked)
    assert len(inner.asked) == 150  # equal ones once
    assert kept_replies(inner, path, identity="a")(asked[::-1]) == first[::-1]
    assert len(inner.asked) == 150
    assert kept_replies(inner, path, identity="a")([]) == []


def test_a_reply_is_that_of_this_very_question(tmp_path):
    inner = Counting()
    different = [question("a"), question("b"), question("a", ["yes"]), question("a", draw=1)]
    for identity in ("one", "other"):
        found = kept_replies(inner, tmp_path / "r.db", identity=identity)(different)
        assert [reply.text for reply in found] == ["a () 0", "b () 0", "a ('yes',) 0", "a () 1"]
    assert len(inner.asked) == 8


def test_a_reply_comes_back_as_it_was(tmp_path):
    for _ in range(2):
        found = kept_replies(lambda some: [REPLY] * len(some), tmp_path / "r", identity="")
        assert found([question("x")]) == [REPLY]


def test_what_was_answered_before_an_error_is_kept(tmp_path):
    inner = Counting()

    def failing(questions):
        if len(inner.asked) >= 64:
            raise ServerError("down")
        return inner(questions)

    asked = [question(str(n)) for n in range(100)]
    with pytest.raises(ServerError):
        kept_replies(failing, tmp_path / "r", identity="")(asked)
    kept_replies(inner, tmp_path / "r", identity="")(asked)
    assert len(inner.asked) == 100


def _ask(path, number, killed):
    def judge(questions):
        if killed and "70" in {one.messages[0]["content"] for one in questions}:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Reply(f"{number}") for _ in questions]

    kept_replies(judge, path, identity="")([question(str(n)) for n in range(100)])


def _run(*calls):
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=_ask, args=call) for call in calls]
    for one in started:
        one.start()
    for one in started:
        one.join(60)
    return [one.exitcode for one in started]


def test_several_processes_share_a_file_and_agree(tmp_path):
    path = tmp_path / "r"
    assert _run(*((path, number, False) for number in range(4))) == [0] * 4
    inner = Counting()
    asked = [question(str(n)) for n in range(100)]
    found = kept_replies(inner, path, identity="")(asked)
    assert inner.asked == []
    assert {reply.text for reply in found} <= {"0", "1", "2", "3"}


def test_the_reply_that_was_stored_first_counts(tmp_path):
    path = tmp_path / "r"

    def slow(questions):
        kept_replies(lambda some: [Reply("first")] * len(some), path, identity="")(questions)
        return [Reply("second")] * len(questions)

    assert kept_replies(slow, path, identity="")([question("x")]) == [Reply("first")]


def test_a_process_that_is_killed_leaves_what_was_stored(tmp_path):
    path = tmp_path / "r"
    assert _run((path, 0, True)) == [-signal.SIGKILL]
    inner = Counting()
    kept_replies(inner, path, identity="")([question(str(n)) for n in range(100)])
    assert len(inner.asked) == 36


def damaged(path):
    """A file of which the middle is overwritten."""
    kept_replies(Counting(), path, identity="")([question(f"{n}" * 200) for n in range(300)])
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    path.write_bytes(raw)


def no_database(path):
    path.write_text("a text that is no database " * 50)


def another(path):
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT)")  # of somebody else
    file.close()


def cut_short(path):
    kept_replies(Counting(), path, identity="")([question(f"{n}" * 200) for n in range(300)])
    path.write_bytes(path.read_bytes()[:6000])


def a_folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [damaged, no_database, another, cut_short, a_folder])
def test_a_file_that_cannot_be_used_is_an_error(tmp_path, make):
    make(tmp_path / "r")
    with pytest.raises(DataError, match=r"the cache .*r' .*expected a file that keeps replies"):
        kept_replies(Counting(), tmp_path / "r", identity="")(
            [question(f"{n}" * 200) for n in range(300)]
        )


@pytest.mark.parametrize("said", ["{", "[]", '{"text": 1}', '{"bound": NaN}', '{"other": 1}'])
def test_a_row_that_is_no_reply_is_an_error(tmp_path, said):
    kept = kept_replies(Counting(), tmp_path / "r", identity="")
    kept([question("x")])
    with sqlite3.connect(tmp_path / "r") as file:
        file.execute("UPDATE replies SET reply = ?", (said,))
    file.close()
    with pytest.raises(DataError, match="in the place of a reply"):
        kept([question("x")])


def test_as_many_replies_as_questions(tmp_path):
    with pytest.raises(DataError, match="0 replies to 1 questions"):
        kept_replies(lambda _: [], tmp_path / "r", identity="")([question("x")])


def test_scores_of_a_kept_judge_are_those_of_the_judge(tmp_path):
    setup = JUDGE_SETUPS["rm-r1"]

    def judge(questions):
        return [Reply("[[A]]") for _ in questions]

    given = (setup, ["p", "q"], [["x", "y"], ["z"]])
    expected = judged_scores(judge, *given, references=["r", "s"])
    for inner in (judge, lambda _: []):
        kept = kept_replies(inner, tmp_path / "r", identity="")
        found = judged_scores(kept, *given, references=["r", "s"])
        assert [one.tolist() for one in found.scores] == [one.tolist() for one in expected.scores]
