import json
from contextlib import nullcontext

import pytest
import torch
from tiny_models import tiny_model

from tokencredit.evaluation.calibration import expected_calibration_error
from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.recipes.reward_model.report import (
    held_out_metrics,
    held_out_rows_by_fraction,
    write_report,
)
from tokencredit.scorers.hf_fractions import fraction_scores
from tokencredit.text.hf_token_rows import EncodedText


def text(length: int, first: int) -> EncodedText:
    return EncodedText([2, *range(first, first + length)], [False] + [True] * length)


@pytest.fixture
def model():
    return tiny_model("llama")


def found(model, judged, kind, rating_mean=0.0):
    return held_out_rows_by_fraction(
        model,
        judged,
        kind=kind,
        rating_mean=rating_mean,
        batch_size=2,
        context=nullcontext(),
        segment_ends=None,
    )


def scores(model, judged) -> torch.Tensor:
    texts = [one.responses[0] for one in judged]
    return fraction_scores(model, texts, pad_id=0, batch_size=9, context=nullcontext())


def test_pairs_are_the_first_responses_against_the_second(model):
    pairs = [JudgedRow((text(6, 3), text(4, 9)), 0.0), JudgedRow((text(2, 5), text(7, 4)), 0.0)]
    rows = found(model, pairs, "pairs")
    swapped = found(model, [JudgedRow(one.responses[::-1], 0.0) for one in pairs], "pairs")
    for row, other in zip(rows, swapped, strict=True):
        assert row["accuracy"] == 1 - other["accuracy"]
        assert row["expected_calibration_error"] == expected_calibration_error(row["curve"])
        assert row["count"] == sum(part["count"] for part in row["curve"]) == 2


def test_labels_and_ratings_are_compared_with_scores(model, tmp_path):
    judged = [JudgedRow((text(6 - row, 3 + row),), float(row % 2)) for row in range(4)]
    labels = torch.tensor([one.target for one in judged])
    whole = scores(model, judged)[:, -1]
    rows = found(model, judged, "labels")
    assert rows[-1]["accuracy"] == ((whole > 0) == (labels > 0)).double().mean().item()
    rated = found(model, judged, "ratings", rating_mean=0.5)
    error = (whole + 0.5 - labels).square().mean().sqrt()
    assert rated[-1]["root_mean_squared_error"] == pytest.approx(error.item(), rel=1e-4)
    write_report(rated, tmp_path, kind="ratings")
    assert held_out_metrics(rated) == {
        "held_out_accuracy": rated[-1]["accuracy"],
        "expected_calibration_error": rated[-1]["expected_calibration_error"],
        "root_mean_squared_error": rated[-1]["root_mean_squared_error"],
    }


def test_what_is_written(model, tmp_path, capsys):
    rows = found(model, [JudgedRow((text(6, 3), text(4, 9)), 0.0)], "pairs")
    write_report(rows, tmp_path, kind="pairs")
    accuracy = json.loads((tmp_path / "prefix_accuracy.json").read_text())
    assert [set(row) for row in accuracy] == [{"fraction", "accuracy", "count"}] * 5
    calibration = json.loads((tmp_path / "calibration.json").read_text())
    assert [set(row) for row in calibration] == [
        {"fraction", "expected_calibration_error", "curve"}
    ] * 5
    assert {path.name for path in tmp_path.iterdir()} == {
        "prefix_accuracy.json", "prefix_accuracy.png", "calibration.json", "calibration.png"
    }  # fmt: skip
    assert "40%" in capsys.readouterr().out
