import math

import pytest
import torch
from tiny_models import tiny_model
from tiny_reward_training import config, loss_of
from tiny_tokenizers import byte_level

from tokencredit.errors import DataError, ModelError
from tokencredit.recipes.reward_model.examples import (
    JudgedRow,
    beginning_row,
    example_columns,
    filler_id,
)
from tokencredit.text.hf_token_rows import EncodedText, read_every_token, read_last_token

EOS = 1


def text(prompt: list[int], response: list[int], tail: list[int] = ()) -> EncodedText:
    mask = [False] * len(prompt) + [True] * len(response) + [False] * len(tail)
    return EncodedText([*prompt, *response, *tail], mask)


def pair(chosen: list[int], rejected: list[int]) -> JudgedRow:
    return JudgedRow((text([2, 3], chosen), text([2, 3], rejected)), 0.0)


@pytest.fixture
def settings(tmp_path):
    return config(tmp_path, tmp_path / "rm", positions="pairs")


@pytest.fixture
def model():
    return tiny_model("llama").eval()


def as_examples(one: JudgedRow, settings, filler: int | None) -> list[JudgedRow]:
    options = {"filler": filler, "causal": True}
    columns = example_columns([one], settings, **options)
    return [
        beginning_row(one, prefix, max_length=settings.max_length, **options)
        for prefix in columns["prefix"]
    ]


def pairs_loss(model, examples: list[JudgedRow]) -> torch.Tensor:
    return loss_of(
        model, examples, byte_level(), read_last_token, objective="bradley-terry", positions="pairs"
    )


def every_loss(model, one: JudgedRow) -> torch.Tensor:
    return loss_of(model, [one], byte_level(), read_every_token, objective="bradley-terry")


@pytest.mark.parametrize(
    "one", [pair([5, 6, 7], [8, 9, 4]), pair([5, 6, 7, 4], [8, 9]), pair([5], [8, 9, 4, 4])]
)
def test_where_answers_stay_as_they_are_the_examples_cost_what_one_pass_costs(model, settings, one):
    examples = as_examples(one, settings, None)
    assert len(examples) == max(len(row) - 2 for row in one.responses)
    torch.testing.assert_close(pairs_loss(model, examples), every_loss(model, one))


def test_equal_beginnings_are_no_examples_and_cost_log_2_elsewhere(model, settings):
    one = pair([5, 6, 7, 4], [5, 6, 8])
    examples = as_examples(one, settings, None)
    assert len(examples) == 2
    expected = (2 * pairs_loss(model, examples) + 2 * math.log(2)) / 4
    torch.testing.assert_close(every_loss(model, one), expected)


def test_filled_up_as_published_the_examples_cost_what_filled_rows_cost(model, settings):
    """The fillers are read as tokens: a model scores how an ended answer goes on doing nothing."""
    one = pair([5, 6, 7, 4], [8, 9])
    examples = as_examples(one, settings, EOS)
    assert [row.input_ids for row in examples[-1].responses] == [
        [2, 3, 5, 6, 7, 4], [2, 3, 8, 9, EOS, EOS]
    ]  # fmt: skip
    loss = pairs_loss(model, examples)
    torch.testing.assert_close(loss, every_loss(model, pair([5, 6, 7, 4], [8, 9, EOS, EOS])))
    assert abs(loss - every_loss(model, one)) > 1e-3


def test_a_long_pair_weighs_as_many_times_as_it_has_examples(model, settings):
    long, short = pair([5, 6, 7, 4], [8, 9, 4, 4]), pair([6], [7])
    examples = as_examples(long, settings, EOS) + as_examples(short, settings, EOS)
    expected = (4 * every_loss(model, long) + every_loss(model, short)) / 5
    torch.testing.assert_close(pairs_loss(model, examples), expected)


def test_columns_say_how_long_examples_are(tmp_path):
    settings = config(tmp_path, tmp_path / "rm", positions="pairs", prefix_start=2, prefix_step=2)
    judged = [pair([5, 6, 7, 4, 4], [8]), pair([4], [4]), pair([6, 6], [6, 7])]
    columns = example_columns(judged, settings, filler=None, causal=True)
    assert columns == {
        "row": [0, 0, 0, 2],
        "prefix": [2, 4, 5, 2],
        "length": [4, 6, 7, 4],
        "tokens": [4 + 3, 6 + 3, 7 + 3, 8],
    }
    for row, prefix, tokens in zip(*(columns[name] for name in ("row", "prefix", "tokens")),
                                   strict=True):  # fmt: skip
        shown = beginning_row(judged[row], prefix, filler=None, max_length=64, causal=True)
        assert sum(map(len, shown.responses)) == tokens


def test_without_pairs_a_row_is_one_example(tmp_path):
    judged = [pair([5, 6], [7]), JudgedRow((text([2], [5]),), 1.0)]
    settings = config(tmp_path, tmp_path / "rm")
    columns = example_columns(judged, settings, filler=None, causal=True)
    assert columns == {"row": [0, 1], "prefix": [0, 0], "length": [4, 2], "tokens": [7, 2]}
    assert beginning_row(judged[0], 0, filler=None, max_length=2, causal=True) is judged[0]


def test_a_filled_answer_that_is_too_long_loses_the_start_of_its_prompt():
    one = JudgedRow((text([2, 3, 4, 5], [6]), text([5], [7, 7, 7, 7])), 0.5, 2.0)
    shown = beginning_row(one, 4, filler=EOS, max_length=5, causal=True)
    assert shown.responses[0] == text([5], [6, EOS, EOS, EOS])
    assert shown.responses[1] == one.responses[1]
    assert (shown.target, shown.strength) == (0.5, 2.0)


def test_the_end_of_a_turn_is_a_last_token_or_stands_behind_every_beginning():
    one = JudgedRow((text([2], [5, 6], [9]), text([2], [7], [9])), 0.0)
    causal = beginning_row(one, 2, filler=None, max_length=9, causal=True)
    assert [row.input_ids for row in causal.responses] == [[2, 5, 6], [2, 7, 9]]
    encoder = beginning_row(one, 1, filler=None, max_length=9, causal=False)
    assert [row.input_ids for row in encoder.responses] == [[2, 5, 9], [2, 7, 9]]


def test_the_filler_is_the_end_of_sequence(tmp_path):
    tokenizer = byte_level()
    settings = config(tmp_path, tmp_path / "rm", positions="pairs")
    assert filler_id(settings, tokenizer) == tokenizer.eos_token_id
    held = config(tmp_path, tmp_path / "rm", positions="pairs", prefix_padding="held")
    assert filler_id(held, tokenizer) is None
    assert filler_id(config(tmp_path, tmp_path / "rm"), tokenizer) is None
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"or beginnings.padding='held'"):
        filler_id(settings, tokenizer)


def test_answers_that_begin_alike_to_the_end_are_no_data(settings):
    with pytest.raises(DataError, match="no two answers begin differently"):
        example_columns([pair([5], [5, EOS])], settings, filler=EOS, causal=True)
