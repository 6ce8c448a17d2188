"""What the recipe `HybridConfig` chose, and what it was worth, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_multilevel.diagnostics import EffectiveSampleSize
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.plots.style import NEUTRAL, colour, despine, plain_log_ticks

_PANEL = (3.6, 3.0)  # inches
_MAX_COLUMNS = 3
_LINE_FROM = 0.38  # share of a panel below the line of the rows there are
_LOG_FROM = -20.0  # nats below the best that a linear axis still shows


def plot_hybrid(
    summary: HybridSummary,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
) -> tuple[Figure, np.ndarray]:
    """Plot the maps, the mixture, and what the lower levels were worth.

    Args:
        summary: `hybrid_summary` of a trained trainer.
        figsize: Width and height, in inches.
        title: Title.

    Returns:
        The figure, and an array of its axes.
    """
    steps = [step for step in enumerate(summary.map_scores) if step[1]]
    worth = summary.effective_sample_size
    count = len(steps) + 2 + (worth is not None)
    columns = count if count <= _MAX_COLUMNS else _MAX_COLUMNS - 1
    shape = math.ceil(count / columns), columns
    figure, grid = plt.subplots(
        *shape,
        squeeze=False,
        figsize=figsize or (_PANEL[0] * shape[1], _PANEL[1] * shape[0]),
        layout="constrained",
    )
    axes = grid.ravel()[:count]
    for spare in grid.ravel()[count:]:
        spare.remove()
    panels = list(axes)
    for level, scores in steps:
        _plot_maps(panels.pop(0), level, scores, summary.level_maps[level])
    _plot_weights(panels.pop(0), summary)
    _plot_scores(panels.pop(0), summary)
    if worth is not None:
        _plot_worth(panels.pop(0), worth)
    for axis in axes:
        despine(axis)
    if title is not None:
        figure.suptitle(title)
    return figure, axes


def _plot_maps(axes: Axes, level: int, scores: Mapping[str, float], used: str) -> None:
    """Score of each map beside the best; those that members use are filled."""
    names = sorted(scores, key=lambda name: scores[name])
    best, chosen = max(scores.values()), used.split(", ")
    for place, name in enumerate(names):
        is_used = name in chosen
        axes.plot(
            scores[name] - best,
            place,
            marker="o",
            markersize=7,
            color=colour(level),
            markerfacecolor=colour(level) if is_used else "white",
        )
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    if min(scores.values()) - best < _LOG_FROM:
        axes.set_xscale("symlog", linthresh=1.0)
    axes.margins(x=0.1)
    axes.set_xlabel("held-out score beside the best [nats a row]")
    axes.set_title(f"maps of level {level} to {level + 1}\n(filled: in use)")


def _plot_weights(axes: Axes, summary: HybridSummary) -> None:
    names = list(summary.log_scores)[::-1]
    weights = [summary.weights.get(name, 0.0) for name in names]
    bars = axes.barh(range(len(names)), weights, color=NEUTRAL, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    _name_components(axes, names)
    axes.set_xlim(0, 1.18)
    axes.set_xlabel("weight")
    axes.set_title("components of the mixture")


def _plot_scores(axes: Axes, summary: HybridSummary) -> None:
    names = list(summary.log_scores)[::-1]
    scores = [summary.log_scores[name] for name in names]
    axes.plot(scores, range(len(names)), "o", color=NEUTRAL, markersize=7)
    for place, score in enumerate(scores):
        axes.annotate(
            f"{score:.2f}",
            (score, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
        )
    _name_components(axes, names)
    axes.set_ylim(-0.5, len(names) - 0.3)
    axes.margins(x=0.2)
    axes.set_xlabel("held-out log score [nats a row]")
    axes.set_title("components on held-out rows")


def _name_components(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])


def _plot_worth(axes: Axes, worth: EffectiveSampleSize) -> None:
    """Effective rows with their interval; an arrow where it has no end."""
    axes.set_title(
        "worth of the lower levels\n"
        f"({worth.gain:+.2f} ± {worth.gain_error:.2f} nats a row)"
    )
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    ends = np.array([worth.estimate, *worth.interval])
    left, right = _axis_of_rows(axes, worth.num_rows, ends)
    if np.isnan(worth.estimate):
        axes.text(worth.num_rows, 0, " count: too noisy\n to tell", color=NEUTRAL)
        return
    estimate, low, high = np.clip(ends, left, right)
    axes.plot([low, high], [0, 0], color=colour(0), linewidth=3, alpha=0.5)
    for place, marker, is_shown in (
        (estimate, "o", estimate < right),
        (right, ">", ends[2] > right),
    ):
        if is_shown:
            axes.plot(place, 0, marker, color=colour(0), markersize=8, clip_on=False)
    worth_of = "many more" if np.isinf(ends[0]) else f"{ends[0]:.0f}"
    share = np.log(estimate / left) / np.log(right / left)  # of the axis
    axes.text(
        share,
        _LINE_FROM - 0.03,
        f"they count as {worth_of}",
        transform=axes.transAxes,
        ha="right" if share > 0.7 else "left" if share < 0.3 else "center",
        va="top",
    )


def _axis_of_rows(axes: Axes, num_rows: int, ends: np.ndarray) -> tuple[float, float]:
    """A logarithmic axis of rows, and a line at those there are; returns its ends."""
    axes.set_xlabel("high-fidelity rows")
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis, (1, 3))
    finite = [num_rows, *ends[np.isfinite(ends) & (ends > 0)]]
    left, right = min(finite) / 3, max(finite) * 3
    axes.set_xlim(left, right)
    # the line ends above what is written below the interval
    axes.axvline(num_rows, ymin=_LINE_FROM, color="black", linestyle="--")
    is_left = num_rows / left < right / num_rows
    text = f" there are {num_rows}" if is_left else f"there are {num_rows} "
    side = "left" if is_left else "right"
    axes.text(num_rows, 0.98, text, ha=side, va="top", fontsize="small")
    return left, right
