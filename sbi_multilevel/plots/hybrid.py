"""Level maps, mixture weights and effective sample size of a `HybridSummary`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_multilevel.losses.effective_sample_size import EffectiveSampleSize
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.plots.style import NEUTRAL, color, despine, plain_log_ticks

_PANEL = (3.6, 3.0)  # inches
_MAX_COLUMNS = 3
_LINE_FROM = 0.38  # lower end of the line at the actual sample size, as a share
_MIN_LINEAR = -20.0  # lowest relative score on a linear axis, in nats


def plot_hybrid(
    summary: HybridSummary,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
) -> tuple[Figure, np.ndarray]:
    """Plot map scores, weights, log scores and effective sample size."""
    steps = [step for step in enumerate(summary.map_scores) if step[1]]
    size = summary.effective_sample_size
    count = len(steps) + 2 + (size is not None)
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
    panels = iter(axes)
    for level, scores in steps:
        _plot_maps(next(panels), level, scores, summary.level_maps[level])
    _plot_components(next(panels), next(panels), summary)
    if size is not None:
        _plot_effective_sample_size(next(panels), size)
    for axis in axes:
        despine(axis)
    if title is not None:
        figure.suptitle(title)
    return figure, axes


def _plot_maps(axes: Axes, level: int, scores: Mapping[str, float], used: str) -> None:
    """Score of each map relative to the best; maps used by members are filled."""
    names = sorted(scores, key=lambda name: scores[name])
    best, chosen = max(scores.values()), used.split(", ")
    for place, name in enumerate(names):
        axes.plot(
            scores[name] - best,
            place,
            marker="o",
            markersize=7,
            color=color(level),
            markerfacecolor=color(level) if name in chosen else "white",
        )
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    if min(scores.values()) - best < _MIN_LINEAR:
        axes.set_xscale("symlog", linthresh=1.0)
    axes.margins(x=0.1)
    axes.set_xlabel("held-out score relative to best [nats]")
    axes.set_title(f"maps from level {level} to {level + 1}\n(filled: used)")


def _plot_components(weights: Axes, scores: Axes, summary: HybridSummary) -> None:
    """Weight of each component in the mixture, and its held-out log score."""
    names, values = list(summary.log_scores)[::-1], [*summary.log_scores.values()][::-1]
    shares = [summary.weights.get(name, 0.0) for name in names]
    bars = weights.barh(range(len(names)), shares, color=NEUTRAL, height=0.6)
    weights.bar_label(bars, fmt="%.2f", padding=3)
    weights.set_xlim(0, 1.18)
    weights.set_xlabel("weight")
    weights.set_title("mixture weights")
    scores.plot(values, range(len(names)), "o", color=NEUTRAL, markersize=7)
    above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    for place, score in enumerate(values):
        scores.annotate(f"{score:.2f}", (score, place), **above)
    scores.set_ylim(-0.5, len(names) - 0.3)
    scores.margins(x=0.2)
    scores.set_xlabel("held-out log score [nats]")
    scores.set_title("log score of components")
    two_lines = ["\n".join(name.rsplit(" ", 1)) for name in names]
    for axes in (weights, scores):
        axes.set_yticks(range(len(names)), two_lines)


def _plot_effective_sample_size(axes: Axes, size: EffectiveSampleSize) -> None:
    """Estimate with its interval; an arrow if the interval has no upper end."""
    axes.set_title(
        f"effective sample size\n(gain {size.gain:+.2f} ± {size.gain_error:.2f} nats)"
    )
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    ends = np.array([size.estimate, *size.interval])
    left, right = _sample_size_axis(axes, size.num_high, ends)
    if np.isnan(size.estimate):
        axes.text(size.num_high, 0, " not identified", color=NEUTRAL)
        return
    estimate, low, high = np.clip(ends, left, right)
    axes.plot([low, high], [0, 0], color=color(0), linewidth=3, alpha=0.5)
    for place, marker, is_shown in (
        (estimate, "o", estimate < right),
        (right, ">", ends[2] > right),
    ):
        if is_shown:
            axes.plot(place, 0, marker, color=color(0), markersize=8, clip_on=False)
    text = f"effective: {size.estimate:.0f}"
    if np.isinf(size.estimate):
        text = "too large to estimate"
    share = np.log(estimate / left) / np.log(right / left)  # of the axis
    axes.text(
        share,
        _LINE_FROM - 0.03,
        text,
        transform=axes.transAxes,
        ha="right" if share > 0.7 else "left" if share < 0.3 else "center",
        va="top",
    )


def _sample_size_axis(
    axes: Axes, num_high: int, ends: np.ndarray
) -> tuple[float, float]:
    """Set up a logarithmic axis with a line at the actual size; returns its limits."""
    axes.set_xlabel("high-fidelity simulations")
    axes.set_xscale("log")
    finite = [num_high, *ends[np.isfinite(ends) & (ends > 0)]]
    left, right = min(finite) / 3, max(finite) * 3
    plain_log_ticks(axes.xaxis, (1, 3) if right < 300 * left else (1,))
    axes.set_xlim(left, right)
    # the line ends above the text below the interval
    axes.axvline(num_high, ymin=_LINE_FROM, color="black", linestyle="--")
    is_left = num_high / left < right / num_high
    text = f" actual: {num_high}" if is_left else f"actual: {num_high} "
    side = "left" if is_left else "right"
    axes.text(num_high, 0.98, text, ha=side, va="top", fontsize="small")
    return left, right
