import pytest
import torch
from readings import encoded_texts, training_reading
from tiny_reward_training import config
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.errors import DataError
from tokencredit.preference.hf_answers import JudgedAnswers
from tokencredit.preference.pairs import LabelledResponse, PreferencePair, RatedResponse
from tokencredit.recipes.reward_model.examples import (
    JudgedRow,
    judgements_of,
    ranked_pairs,
    reward_batch,
    score_reading,
)
from tokencredit.recipes.reward_model.train_reward_model import _judged_rows
from tokencredit.scorers.hf_segment_ends import SegmentEndSettings, segment_end_finder
from tokencredit.text.hf_token_rows import EncodedText, read_every_token, read_last_token

ROW = EncodedText([4, 5, 6, 7, 8, 9], [False, True, True, True, True, False])


@pytest.fixture
def settings(tmp_path):
    return lambda **chosen: config(tmp_path, tmp_path / "rm", **chosen)


def test_where_scores_are_read():
    assert read_last_token(ROW) == [False] * 5 + [True]
    assert read_every_token(ROW) == [False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("length", "ends"), [(1, [1, 2, 3, 5]), (2, [2, 5]), (3, [3, 5]), (9, [5])]
)
def test_the_last_segment_ends_where_the_row_does(settings, length, ends):
    """What the template puts behind the response belongs to its last segment."""
    chosen = settings(positions="segments", segment_length=length)
    read = segment_end_finder(chosen.segments, byte_level())([ROW])[0]
    assert [at for at, is_read in enumerate(read) if is_read] == ends


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sentence", ["A dull start."]), ("clause", ["A dull start.", " Yet,"])],
)
def test_sentences_and_clauses_end_where_the_text_says(settings, kind, expected):
    tokenizer = byte_level(bos=True)
    (row,) = encoded_texts(tokenizer, ["So?"], ["A dull start. Yet, it is good."], append_eos=True)
    read = segment_end_finder(SegmentEndSettings(kind), tokenizer)([row])[0]
    ends = [at for at, is_read in enumerate(read) if is_read]
    assert ends[-1] == len(row) - 1
    starts = [row.start, *(end + 1 for end in ends)]
    pieces = [
        tokenizer.decode(row.input_ids[a : b + 1]) for a, b in zip(starts, ends, strict=False)
    ]
    assert [piece.strip() for piece in pieces[:-1]] == [piece.strip() for piece in expected]


def test_the_objective_says_where_scores_are_read(settings):
    for positions, read_at in (
        ("last", read_last_token),
        ("pairs", read_last_token),
        ("every", read_every_token),
    ):
        assert score_reading(settings(positions=positions).row.reading, [], None) is read_at
    bootstrapped = settings(objective="classification", positions="bootstrapped")
    assert score_reading(bootstrapped.row.reading, [], None) is read_every_token
    segments = settings(positions="segments")
    ends = segment_end_finder(segments.segments, byte_level())
    read = score_reading(segments.row.reading, [JudgedRow((ROW,), 0.0)], ends)
    assert read(ROW) == [False] * 5 + [True]


def test_rows_keep_what_was_said_of_them(settings):
    tokenizer = byte_level(bos=True)
    pairs = [PreferencePair("a", " good", " bad", 0.5, 3.0, 0.75), PreferencePair("a", " b", " c")]
    judged = _judged_rows(settings(), training_reading(settings(), tokenizer), pairs)
    assert [(one.target, one.strength) for one in judged] == [(0.5, 3.0), (0.0, 1.0)]
    batch = reward_batch(judged, pad_id=0, read_at=read_last_token)
    assert batch["strengths"].tolist() == [3.0, 1.0]
    assert batch["targets"].tolist() == [0.5, 0.0]
    assert batch["preferred"].tolist() == [0.75, 1.0]
    read = judgements_of(torch.zeros(4, 1), batch)
    assert torch.equal(read.preferred, batch["preferred"])
    assert batch["counted"].sum(-1).tolist() == [1] * 4
    (rated,) = _judged_rows(
        settings(objective="regression"),
        training_reading(settings(), tokenizer),
        [RatedResponse("", "good", 7.5)],
    )
    assert (rated.target, len(rated.responses)) == (7.5, 1)
    (labelled,) = _judged_rows(
        settings(objective="classification"),
        training_reading(settings(), tokenizer),
        [LabelledResponse("", "good", 1)],
    )
    assert labelled.target == 1.0
    assert torch.equal(torch.tensor(labelled.responses[0].input_ids),
                       torch.tensor(rated.responses[0].input_ids))  # fmt: skip


def test_answers_that_were_cut_off_are_left_open(settings):
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)

    def closed(data, **chosen):
        rows = _judged_rows(settings(**chosen), training_reading(settings(), tokenizer), data)
        return [[not text.response_mask[-1] for text in row.responses] for row in rows]

    both = (True, False)
    pairs = [PreferencePair("a", " b", " c", ended=(one, two)) for one in both for two in both]
    assert closed(pairs) == [[True, True], [True, False], [False, True], [False, False]]
    rated = [RatedResponse("a", " b", 1.0, ended) for ended in both]
    assert closed(rated, objective="regression") == [[True], [False]]
    labelled = [LabelledResponse("a", " b", 1, ended) for ended in both]
    assert closed(labelled, objective="classification") == [[True], [False]]


def test_ranked_answers_stand_one_list_after_another(settings):
    chosen = settings(objective="plackett-luce", positions="last")
    tokenizer = byte_level(bos=True)
    lists = [
        JudgedAnswers(("a",) * count, (" b", " cc", " ddd")[:count], (True,) * count, scores)
        for count, scores in ((2, (0.5, 1.0)), (3, (3.0, 1.0, 1.0)))
    ]
    judged = _judged_rows(chosen, training_reading(chosen, tokenizer), lists)
    assert [one.targets for one in judged] == [(2.0, 1.0), (1.0, 2.0, 2.0)]
    batch = reward_batch(judged, pad_id=0, read_at=read_last_token)
    assert len(batch["input_ids"]) == 5
    assert batch["attention_mask"].sum(-1).tolist() == [len(t) for o in judged for t in o.responses]
    assert batch["targets"][1].tolist() == [1.0, 2.0, 2.0]
    assert batch["targets"][0, :2].tolist() == [2.0, 1.0]
    assert batch["targets"][0, 2].isnan()
    pairs = ranked_pairs(judged)
    texts = [
        tuple(tokenizer.decode(t.input_ids[t.start :])[:2] for t in p.responses) for p in pairs
    ]
    assert texts == [(" c", " b"), (" b", " c"), (" b", " d")]
    alike = JudgedAnswers(("a",) * 2, (" b", " c"), (True,) * 2, (1.0, 1.0))
    with pytest.raises(DataError, match=r"2 answers with the scores \[1.0, 1.0\]"):
        _judged_rows(chosen, training_reading(chosen, tokenizer), [alike])
