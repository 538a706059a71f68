import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokencredit.credit.redistribution import terminal_credit, uniform_credit
from tokencredit.errors import DataError
from tokencredit.evaluation.plots import (
    plot_calibration,
    plot_credit_by_position,
    plot_learning_curves,
    plot_prefix_accuracy,
    write_figure,
)

PNG = b"\x89PNG\r\n\x1a\n"
MASK = torch.tensor([[True] * 8, [True] * 4 + [False] * 4])


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple[list[float], list[float]]]:
    """What was plotted: the name of every line to its points."""
    lines, pending = {}, []
    plot, annotate = Axes.plot, Axes.annotate

    def recorded_plot(self, x, y, **style):
        pending.append((list(x), list(y)))
        return plot(self, x, y, **style)

    def recorded_annotate(self, name, anchor, **style):
        lines[name] = next(
            line
            for line in pending
            if (anchor in zip(*line, strict=True)) and line not in lines.values()
        )
        return annotate(self, name, anchor, **style)

    monkeypatch.setattr(Axes, "plot", recorded_plot)
    monkeypatch.setattr(Axes, "annotate", recorded_annotate)
    return lines


def test_learning_curves_are_means_over_seeds_up_to_the_shortest(tmp_path: Path, drawn):
    runs = {"terminal": [[0.0, 2.0, 9.0], [2.0, 4.0]], "uniform": [[5.0, 6.0, 7.0]]}
    path = plot_learning_curves(runs, tmp_path / "curves.png", steps_per_point=10)
    assert path.read_bytes().startswith(PNG)
    assert drawn == {
        "terminal": ([10, 20], [1.0, 3.0]),
        "uniform": ([10, 20, 30], [5.0, 6.0, 7.0]),
    }


def test_the_band_is_one_sample_standard_deviation(tmp_path: Path, monkeypatch):
    bands = []
    monkeypatch.setattr(
        Axes, "fill_between", lambda self, x, low, high, **style: bands.append((low, high))
    )
    plot_learning_curves({"a": [[0.0], [2.0]], "b": [[1.0]]}, tmp_path / "curves.png")
    root = math.sqrt(2)
    assert bands[0] == (pytest.approx([1 - root]), pytest.approx([1 + root]))
    assert bands[1] == ([1.0], [1.0])


def test_smoothing_is_a_running_mean(tmp_path: Path, drawn):
    plot_learning_curves({"a": [[3.0, 5.0, 1.0, 6.0]]}, tmp_path / "curves.png", window=3)
    assert drawn["a"][1] == pytest.approx([3.0, 4.0, 3.0, 4.0])


def test_a_curve_that_ends_in_nan_is_named_at_its_last_number(tmp_path: Path):
    plot_learning_curves({"a": [[3.0, 5.0, math.nan]]}, tmp_path / "curves.png")


def test_many_methods_do_not_share_a_line_style(tmp_path: Path, monkeypatch):
    styles = []
    plot = Axes.plot

    def recorded(self, x, y, **style):
        styles.append((style["color"], style["linestyle"]))
        return plot(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", recorded)
    plot_learning_curves({str(i): [[float(i)]] for i in range(20)}, tmp_path / "curves.png")
    assert len(set(styles)) == 20


@pytest.mark.parametrize("runs", [{}, {"a": []}, {"a": [[]]}, {"a": [[math.nan]]}])
def test_no_numbers_raise_and_leave_no_file(tmp_path: Path, runs):
    with pytest.raises(DataError, match="expected at least one"):
        plot_learning_curves(runs, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_credit_by_position_of_known_methods(tmp_path: Path, drawn):
    scores = torch.tensor([2.0, -3.0])
    methods = {
        "terminal": terminal_credit(scores, MASK),
        "uniform": uniform_credit(scores, MASK).masked_fill(~MASK, math.nan),
        "first": torch.eye(8)[:1].expand(2, 8),
    }
    plot_credit_by_position(methods, MASK, tmp_path / "position.png", reference="first", points=16)
    fractions, uniform = drawn["uniform"]
    assert uniform == pytest.approx(fractions)
    # The last token begins at 7/8 of the first response and at 3/4 of the second.
    assert drawn["terminal"][1] == pytest.approx([0.0] * 13 + [0.125, 0.25, 0.625, 1.0])
    assert drawn["first"][1] == pytest.approx([0.0, 0.375, 0.75, 0.875] + [1.0] * 13)


def test_a_response_without_credit_does_not_count(tmp_path: Path, drawn):
    scores = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    plot_credit_by_position({"a": scores}, scores == scores, tmp_path / "position.png", points=2)
    assert drawn["a"][1] == [0.0, 1.0, 1.0]


def test_a_method_that_pays_nothing_raises(tmp_path: Path):
    with pytest.raises(DataError, match="pays nothing"):
        plot_credit_by_position({"a": torch.zeros(2, 8)}, MASK, tmp_path / "position.png")
    with pytest.raises(DataError, match="no scores"):
        plot_credit_by_position({}, MASK, tmp_path / "position.png")


def test_prefix_accuracy_of_one_model_and_of_several(tmp_path: Path, drawn):
    rows = [{"fraction": 0.5, "accuracy": 0.6, "count": 9}, {"fraction": 1.0, "accuracy": 0.8}]
    plot_prefix_accuracy(rows, tmp_path / "one.png")
    assert drawn.pop("") == ([0.5, 1.0], [0.6, 0.8])
    plot_prefix_accuracy({"last": rows, "every": rows[:1]}, tmp_path / "two.png")
    assert drawn == {"last": ([0.5, 1.0], [0.6, 0.8]), "every": ([0.5], [0.6])}
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())


def test_error_bars_are_binomial(tmp_path: Path, monkeypatch):
    bars = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, errors, **style: bars.append(errors))
    rows = [{"fraction": 0.5, "accuracy": 0.8, "count": 16}, {"fraction": 1.0, "accuracy": 0.8}]
    plot_prefix_accuracy(rows, tmp_path / "one.png")
    assert bars == [[pytest.approx(0.1), 0.0]]


@pytest.mark.parametrize("rows", [[], {}, {"model": []}])
def test_no_rows_raise(tmp_path: Path, rows):
    with pytest.raises(DataError, match="expected at least one"):
        plot_prefix_accuracy(rows, tmp_path / "accuracy.png")


def test_calibration_of_one_model_and_of_several(tmp_path: Path, drawn):
    rows = [
        {"predicted": 0.6, "observed": 0.5, "count": 9},
        {"predicted": 0.9, "observed": 0.8, "count": 3},
    ]
    plot_calibration(rows, tmp_path / "one.png")
    assert drawn.pop("") == ([0.6, 0.9], [0.5, 0.8])
    plot_calibration({"last": rows, "every": rows[:1]}, tmp_path / "two.png", percent=False)
    assert drawn == {"last": ([0.6, 0.9], [0.5, 0.8]), "every": ([0.6], [0.5])}
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())


def test_a_bin_is_as_large_as_its_count(tmp_path: Path, monkeypatch):
    areas = []
    monkeypatch.setattr(Axes, "scatter", lambda self, x, y, area, **style: areas.append(area))
    rows = [{"predicted": 0.6, "observed": 0.5, "count": count} for count in (8, 2)]
    plot_calibration(rows, tmp_path / "one.png")
    assert areas[0][0] == 4 * areas[0][1]


def test_a_perfect_model_lies_on_the_diagonal(tmp_path: Path, monkeypatch):
    lines = []
    plot = Axes.plot

    def recorded(self, x, y, **style):
        lines.append((list(x), list(y)))
        return plot(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", recorded)
    rows = [{"predicted": p, "observed": o, "count": 1} for p, o in ((2.0, 3.0), (7.0, 5.0))]
    plot_calibration(rows, tmp_path / "one.png", percent=False)
    assert lines[0] == ([2.0, 7.0], [2.0, 7.0])


@pytest.mark.parametrize("curves", [[], {}, {"model": []}])
def test_no_curves_raise(tmp_path: Path, curves):
    with pytest.raises(DataError, match="expected at least one"):
        plot_calibration(curves, tmp_path / "calibration.png")


def test_names_at_the_same_height_are_written_apart(tmp_path: Path, monkeypatch):
    heights = []
    annotate = Axes.annotate

    def recorded(self, *args, **style):
        heights.append(style["xytext"][1])
        return annotate(self, *args, **style)

    monkeypatch.setattr(Axes, "annotate", recorded)
    runs = {name: [[1.0]] for name in "abcd"} | {"e": [[0.9]], "f": [[-3.0]]}
    plot_learning_curves(runs, tmp_path / "curves.png")
    heights.sort()
    assert min(b - a for a, b in pairwise(heights)) > 0.06


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def full_disk(self, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_figure(Figure(), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"figure.png": b"old"}


def test_the_ending_names_the_format(tmp_path: Path):
    path = plot_learning_curves({"a": [[1.0, 2.0]]}, tmp_path / "curves.svg")
    assert b"<svg" in path.read_bytes()


def test_pyplot_is_left_alone(tmp_path: Path):
    plot_learning_curves({"a": [[1.0, 2.0]]}, tmp_path / "curves.png")
    assert pyplot.get_fignums() == []
