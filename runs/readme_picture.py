"""The picture at the top of the README: one answer by four credits, beside the learning curves.

    python runs/readme_picture.py

Reads `docs/results/real/imdb.json`, which `runs/real_report.py` keeps, and writes
`docs/results/real/four-credits.png`. The answer is one that SmolLM2-135M wrote before any training
step, to a prompt that all runs of a seed begin with, so that the JSON has it by every credit that
was trained with. Uniform credit is its score in equal parts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tokencredit import uniform_credit
from tokencredit.evaluation.learning import WINDOW, mean_curve, running_means
from tokencredit.evaluation.plots import COLORS, write_figure
from tokencredit.evaluation.token_display import (
    LOW_MARK,
    THEMES,
    background,
    full_scale,
    shown_side,
    spaces_and_rest,
)

REAL = Path("docs/results/real")
PICTURE = "four-credits.png"
SEED = 1
INK, GREY, FAINT = "#333333", "#666666", "#dddddd"
# Of each credit: its name, its colour in both halves, and what it does.
CREDITS = {
    "prefix differences": (COLORS[2], "what each token adds to the score"),
    "terminal": (COLORS[0], "the whole score on the last token"),
    "attention": (COLORS[1], "the score spread by attention (ABC)"),
    "uniform": (GREY, "the score in equal parts"),
}
# Of each curve: where its name stands, in steps and nats.
NAMED_AT = {"prefix differences": (5.0, 1.75), "terminal": (30.5, 2.25), "attention": (30.5, 1.9)}
# Characters of a line; points of the font; in inches the figure, a character and a line.
COLUMNS, FONT = 62, 9.4
SIZE, CHARACTER, LINE = (9.5, 3.8), 0.602 * FONT / 72, 0.21


class Answer(NamedTuple):
    """One answer, and what each credit pays its tokens, in nats."""

    prompt: str
    score: float
    tokens: list[str]
    token_scores: dict[str, list[float]]


def runs_of(kept: Mapping[str, Any], method: str) -> list[str]:
    """Names of the runs of a method at the learning rate that it is compared at, by seed."""
    row = next(row for row in kept["table"] if row["method"] == method)
    start = f"{method}_lr{row['learning rate']}_lam{row['gae_lambda']}_seed"
    return sorted(name for name in kept["curves"] if name.startswith(start))


def first_answer(kept: Mapping[str, Any]) -> Answer:
    """The answer that every run of the seed begins with, by all four credits."""
    trained = [row["method"] for row in kept["table"]]
    samples = {method: kept["samples"][runs_of(kept, method)[SEED]][0] for method in trained}
    one = samples["terminal"]
    assert all(
        (sample["step"], sample["prompt"], sample["tokens"]) == (0, one["prompt"], one["tokens"])
        for sample in samples.values()
    )
    mask = torch.ones(1, len(one["tokens"]), dtype=torch.bool)
    (even,) = uniform_credit(torch.tensor([one["score"]]), mask).tolist()
    paid = {method: sample["token_scores"] for method, sample in samples.items()}
    paid["uniform"] = even
    return Answer(
        one["prompt"], one["score"], one["tokens"], {name: paid[name] for name in CREDITS}
    )


def lines_of(tokens: Sequence[str]) -> list[list[tuple[int, str, int]]]:
    """Column, text and number of each token, on lines broken between tokens."""
    lines: list[list[tuple[int, str, int]]] = [[]]
    column = 0
    for number, token in enumerate(tokens):
        spaces, rest = spaces_and_rest(token)
        column += len(spaces) if lines[-1] else 0
        if column + len(rest) > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((column, rest, number))
        column += len(rest)
    return lines


def draw_heatmap(figure: Figure, answer: Answer) -> None:
    """The left half: the text once per credit, every token on the colour of its score."""
    height = SIZE[1] / LINE
    axes = figure.add_axes(
        (0, 0, COLUMNS * CHARACTER / SIZE[0], 1), xlim=(0, COLUMNS), ylim=(height, 0)
    )
    axes.set_axis_off()
    write(axes, 0, 0.6, f"{answer.prompt} …", fontweight="bold")
    full = full_scale(answer.tokens, answer.token_scores, scale=None)
    said = f"score {answer.score:+.2f} nats"
    write(axes, 0, 1.7, f"{said}; blue is paid, orange is charged", color=GREY)
    top = 3.0
    for name, scores in answer.token_scores.items():
        color, words = CREDITS[name]
        write(axes, 0, top + 0.5, name, color=color, fontweight="bold")
        write(axes, COLUMNS, top + 0.5, words, color=GREY, ha="right")
        top += 1.15
        for line in lines_of(answer.tokens):
            for column, text, number in line:
                draw_token(axes, column, top, text, scores[number] / full)
            top += 1
        top += 0.55


def draw_token(axes: Axes, column: int, top: float, text: str, strength: float) -> None:
    ground = "#{:02x}{:02x}{:02x}".format(*background(strength, theme=THEMES["light"]))
    axes.add_patch(Rectangle((column, top + 0.05), len(text), 0.9, color=ground, linewidth=0))
    if shown_side(strength) == "low":
        under = Rectangle((column + 0.1, top + 0.86), len(text) - 0.2, 0.07)
        under.set(color=LOW_MARK, linewidth=0)
        axes.add_patch(under)
    write(axes, column, top + 0.5, text, family="DejaVu Sans Mono")


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    font = {"fontsize": FONT, "va": "center_baseline", "color": "#1a1a1a", "parse_math": False}
    axes.text(x, y, text, **{**font, **style})


def draw_curves(figure: Figure, kept: Mapping[str, Any]) -> None:
    """The right half: what the judge thinks of each step's answers, mean and range of the seeds."""
    left, right = COLUMNS * CHARACTER + 0.75, SIZE[0] - 0.8
    axes = figure.add_axes((left / SIZE[0], 0.145, (right - left) / SIZE[0], 0.72))
    for row in kept["table"]:
        color, _ = CREDITS[row["method"]]
        seeds = [
            running_means(kept["curves"][name]["held_out_score"], WINDOW)
            for name in runs_of(kept, row["method"])
        ]
        steps = range(WINDOW, WINDOW + len(seeds[0]))
        low, high = zip(*((min(step), max(step)) for step in zip(*seeds, strict=True)), strict=True)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, mean_curve(seeds), color=color, linewidth=2)
        named = {"color": color, "fontsize": FONT, "fontweight": "bold"}
        axes.annotate(row["method"], NAMED_AT[row["method"]], annotation_clip=False, **named)
    axes.set_title("Score by another model (nats)", loc="left", fontsize=FONT + 1, color=INK)
    axes.set_xlabel("training step", color=INK, fontsize=FONT)
    axes.tick_params(colors=INK, length=3, labelsize=FONT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.margins(x=0.02)


def main() -> None:
    kept = json.loads((REAL / "imdb.json").read_text())
    figure = Figure(figsize=SIZE, facecolor="white")
    draw_heatmap(figure, first_answer(kept))
    draw_curves(figure, kept)
    # Unhinted letters are as wide as the font says, so that tokens fill their boxes.
    with rc_context({"text.hinting": "none"}):
        print(write_figure(figure, REAL / PICTURE))


if __name__ == "__main__":
    main()
