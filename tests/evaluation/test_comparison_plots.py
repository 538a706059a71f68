from math import nan

import pytest

from tokencredit.errors import DataError
from tokencredit.evaluation import comparison_plots
from tokencredit.evaluation.comparison_plots import plot_fraction_curves, plot_intervals

ROWS = [
    ("b", "credit", 0.6, 0.5, 0.7),
    ("nothing", "credit", nan, nan, nan),
    ("a", "baseline", 0.8, 0.7, 0.9),
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    figures = []
    actual = comparison_plots.write_figure
    monkeypatch.setattr(
        comparison_plots,
        "write_figure",
        lambda figure, path: figures.append(figure) or actual(figure, path),
    )
    return figures


def test_methods_stand_in_their_order_with_their_intervals(drawn, tmp_path):
    path = plot_intervals(ROWS, tmp_path / "f.png", xlabel="AUROC", title="Which", reference=0.5)
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == ["b", "a"]
    assert labels[0].get_color() != labels[1].get_color()
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert [[0.5, 0.0], [0.7, 0.0]] in lines
    assert [[0.8, 1.0]] in lines
    assert axes.get_xlabel() == "AUROC"


def test_curves_are_drawn_as_they_are_and_the_reference_in_black(drawn, tmp_path):
    curves = {"mine": [3.0, 1.0, 0.0], "random": [3.0, 2.0, 0.0]}
    path = plot_fraction_curves(
        curves, (0.0, 0.5, 1.0), tmp_path / "c.png", xlabel="x", ylabel="y", reference="random"
    )
    assert path.exists()
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    assert lines["mine"].get_ydata().tolist() == curves["mine"]
    assert lines["random"].get_color() == "#000000"
    assert lines["random"].get_linestyle() == "--"


def test_nothing_to_plot(tmp_path):
    with pytest.raises(DataError, match="no numbers"):
        plot_intervals(ROWS[1:2], tmp_path / "f.png", xlabel="x")
    with pytest.raises(DataError, match="no curves"):
        plot_fraction_curves({}, (0.0, 1.0), tmp_path / "f.png", xlabel="x", ylabel="y")
