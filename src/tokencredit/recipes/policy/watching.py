"""Watching a run: whether it should stop, which of its checkpoints is best, and the figure of it.

A policy that fools its reward model shows it in a score that goes on rising while a judge that it
never sees falls, or in a KL that runs away. Both are means over a few steps, since single steps are
noisy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokencredit.recipes.policy.watch_groups import StopSettings

WATCHED = ("kl", "score", "held_out_score")
"""Names of the metrics that are watched, the last only where there is a held-out model."""

History = list[dict[str, float]]
"""What was watched, a row for each step so far."""


def watched(row: Mapping[str, Any]) -> dict[str, float]:
    """What is watched of a row of metrics."""
    return {name: row[name] for name in WATCHED if name in row}


def running_means(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and of those before it, as many as the window holds.

    >>> running_means([1.0, 3.0, 8.0], 2)
    [1.0, 2.0, 5.5]
    """
    parts = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]


def reason_to_stop(history: History, settings: StopSettings) -> str | None:
    """Why a run should stop after its last step; None where it should go on.

    Args:
        history: of the run.
        settings: when to stop. A window that is not full yet is no reason.
    """
    window = settings.window
    if len(history) < window:
        return None
    if settings.kl_above is not None:
        kl = running_means([row["kl"] for row in history], window)[-1]
        if kl > settings.kl_above:
            return f"the KL is {kl:.3g} nats and stop_when.kl_above {settings.kl_above:g}"
    if settings.held_out_falls is not None:
        means = running_means([row["held_out_score"] for row in history], window)[window - 1 :]
        best = max(range(len(means)), key=means.__getitem__)
        since = len(means) - 1 - best
        if since >= settings.held_out_falls:
            return (
                f"the held-out score is {means[-1]:.3g} and was {means[best]:.3g} {since} steps "
                f"before; stop_when.held_out_falls is {settings.held_out_falls}"
            )
    return None


def held_out_now(history: History, window: int) -> float | None:
    """Mean held-out score of the last steps; None without a held-out model."""
    last = [row["held_out_score"] for row in history[-window:] if "held_out_score" in row]
    return sum(last) / len(last) if last else None


def plot_run(history: History, window: int, folder: Path) -> Path:
    """Write the score, and the held-out score if there is one, against the KL: `frontier.png`.

    Args:
        history: of a run, at least one step.
        window: steps that are averaged.
        folder: of the run.
    """
    from tokencredit.evaluation.plots import plot_frontier  # Matplotlib waits until it is needed

    kl = running_means([row["kl"] for row in history], window)
    lines = {
        name.replace("_", " "): (kl, running_means([row[name] for row in history], window))
        for name in WATCHED[1:]
        if all(name in row for row in history)
    }
    title = f"What was reached at which KL, means of {window} steps"
    return plot_frontier(lines, folder / "frontier.png", title=title)
