"""Losses and gradients of a training over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from sbi_multilevel.plots.hybrid import plot_hybrid
from sbi_multilevel.plots.style import NEUTRAL, color, despine, plain_log_ticks
from sbi_multilevel.training.history import (
    TrainingRun,
    curve,
    summary_of,
    training_runs,
)

_MAX_LINEAR = 1_000.0  # largest loss on a linear axis, in nats
_WIDTH, _FIRST_HEIGHT, _HEIGHT = 8.0, 3.0, 1.8  # inches


def plot_training(
    inference: Any,
    ax: Axes | None = None,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
) -> tuple[Figure | SubFigure, np.ndarray]:
    r"""Plot the losses and gradients of a training.

    Panels from top to bottom: training and validation loss with a band of one standard
    error, the epoch whose weights were kept, and the stages of training; the loss of
    each level; and, if levels were trained jointly, the gradient norms of base and
    corrections, their cosine and the control-variate coefficients, and the effective
    sample size of a batch (`sbi_multilevel.training.history`). For `HybridNPE` and
    `HybridNLE` the panels show `hybrid_summary`: scores of the maps, weights and log
    scores of the components, and the effective sample size. If `ax` is passed, it shows
    the losses of all members.

    Args:
        inference: A trained trainer of this package, or of sbi.
        ax: Axes for the losses; a new figure with all panels by default.
        figsize: Width and height of a new figure, in inches.
        title: Title of a new figure.

    Returns:
        The figure, and an array of its axes.

    Raises:
        ValueError: If `inference` is not a trainer, or was not trained.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((100,))
        >>> inference = MFNPE(prior, density_estimator="mdn", show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta, theta)
        >>> inference = inference.append_simulations(theta[:20], theta[:20] + 0.1)
        >>> _ = inference.train(max_num_epochs=3)
        >>> figure, axes = plot_training(inference)
        >>> len(axes)
        1
    """
    hybrid = getattr(inference, "hybrid_summary", None)
    if hybrid is not None:
        if ax is not None:
            _plot_members(ax, hybrid.runs)
            return ax.figure, np.array([ax])
        return plot_hybrid(hybrid, figsize=figsize, title=title)
    summary = summary_of(inference)
    runs = training_runs(summary)
    if ax is not None:
        _plot_losses(ax, summary, runs)
        return ax.figure, np.array([ax])
    shown = {
        _plot_levels: any(len(run.levels) > 1 for run in runs),
        _plot_norms: "gradient_norm" in summary,
        _plot_angles: "gradient_cosine" in summary,
        _plot_sample_size: "effective_sample_size" in summary,
    }
    panels = [panel for panel, is_shown in shown.items() if is_shown]
    heights = [_FIRST_HEIGHT, *[_HEIGHT] * len(panels)]
    figure, axes = plt.subplots(
        len(heights),
        sharex=True,
        squeeze=False,
        figsize=figsize or (_WIDTH, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
    )
    _plot_losses(axes[0, 0], summary, runs)
    for axis, panel in zip(axes[1:, 0], panels):
        panel(axis, summary)
    for axis in axes[:-1, 0]:
        axis.set_xlabel("")
    if title is not None:
        figure.suptitle(title)
    return figure, axes[:, 0]


def _plot_losses(
    axes: Axes, summary: Mapping[str, Any], runs: Sequence[TrainingRun]
) -> None:
    """Training and validation loss, stages, and epochs whose weights were kept."""
    levels = _levels(summary)
    for index, run in enumerate(runs):
        alone = run.levels[0] if len(run.levels) == 1 and len(levels) > 1 else None
        line = {"color": "black" if alone is None else color(alone), "lw": 1.3}
        labels = [None] * 3 if index else ["training", "validation", "kept weights"]
        axes.plot(run.epochs, run.training_loss, label=labels[0], **line)
        axes.plot(run.epochs, run.validation_loss, "--", label=labels[1], **line)
        low, high = (run.validation_loss + s * run.validation_error for s in (-1, 1))
        axes.fill_between(run.epochs, low, high, color=line["color"], alpha=0.15, lw=0)
        if run.best_epoch is not None:
            axes.axvline(run.best_epoch, color=NEUTRAL, linestyle=":", label=labels[2])
    _scale_losses(axes)
    _mark_stages(axes, runs)
    _finish(axes, "loss [nats]")
    legend = axes.get_legend()
    assert legend is not None
    plt.setp(legend.legend_handles[:2], color="black")  # colors denote levels


def _plot_members(
    axes: Axes, components: Mapping[str, Mapping[str, Sequence[TrainingRun]]]
) -> None:
    """Losses of each network of `runs` of a `HybridSummary`, colored by component."""
    if not components:
        raise ValueError(
            "inference.hybrid_summary has no losses of members. Train again, or omit "
            "ax to plot the summary."
        )
    named = set()
    for index, (component, members) in enumerate(components.items()):
        for member, runs in members.items():
            is_start = member.startswith("start")  # pre-trained
            name = "pre-training" if is_start else component
            shade = NEUTRAL if is_start else color(index)
            for run in runs:
                label = None if name in named else name
                named.add(name)
                _plot_run(axes, run, shade, label)
    black = {"color": "black", "linewidth": 1.0}
    axes.plot([], [], label="training", **black)
    axes.plot([], [], "--", label="validation", **black)
    axes.plot([], [], "ko", markersize=4, label="kept weights")
    _scale_losses(axes)
    _finish(axes, "loss [nats]")


def _plot_run(axes: Axes, run: TrainingRun, shade: str, label: str | None) -> None:
    line = {"color": shade, "linewidth": 1.0, "alpha": 0.7}
    axes.plot(run.epochs, run.training_loss, label=label, **line)
    axes.plot(run.epochs, run.validation_loss, "--", **line)
    best = run.best_epoch
    if best is not None and best >= run.start:
        kept = run.validation_loss[best - run.start]
        axes.plot(best, kept, "o", color=shade, markersize=4)


def _plot_levels(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Contribution of each level to the loss."""
    for level in _levels(summary):
        name, shade = f"level {level}", color(level)
        _draw(axes, summary, f"training_loss_level_{level}", name, shade)
        _draw(axes, summary, f"validation_loss_level_{level}", None, shade, "--")
    _scale_losses(axes)
    _finish(axes, "loss by level\n[nats]")


def _plot_norms(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Norms of the gradients of the step and of each level."""
    _draw(axes, summary, "gradient_norm", "step")
    _draw_levels(axes, summary, "gradient_norm", "level {}")
    _spread(axes)
    _finish(axes, "gradient norm")


def _plot_angles(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Cosine of base and correction, and control-variate coefficients."""
    _draw(axes, summary, "gradient_cosine", "cosine of base\nand correction")
    _draw_levels(axes, summary, "control_variate", "$\\beta_{}$")
    for value in (0.0, 1.0):
        axes.axhline(value, color=NEUTRAL, lw=0.6, zorder=0)
    _finish(axes, "cosine, $\\beta$")


def _plot_sample_size(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Effective sample size of a batch."""
    _draw(axes, summary, "effective_sample_size")
    _spread(axes)
    _finish(axes, "effective sample\nsize of a batch")


def _draw(
    axes: Axes,
    summary: Mapping[str, Any],
    key: str,
    label: str | None = None,
    shade: str = "black",
    style: str = "-",
) -> None:
    """Draw the values of a list of the summary over epochs."""
    axes.plot(*curve(summary, key), style, color=shade, lw=1.2, label=label)


def _draw_levels(axes: Axes, summary: Mapping[str, Any], key: str, label: str) -> None:
    """Draw a curve for each level that has one."""
    for level in _levels(summary):
        name = f"{key}_level_{level}"
        if name in summary:
            _draw(axes, summary, name, label.format(level), color(level))


def _levels(summary: Mapping[str, Any]) -> list[int]:
    prefix = "training_loss_level_"
    return sorted(int(key[len(prefix) :]) for key in summary if key.startswith(prefix))


def _scale_losses(axes: Axes) -> None:
    """Use a symmetric logarithmic axis if losses are very large."""
    if np.abs(_finite(axes)).max(initial=0.0) > _MAX_LINEAR:
        axes.set_yscale("symlog", linthresh=10.0)


def _spread(axes: Axes) -> None:
    """Use a logarithmic axis if positive values span more than a decade."""
    values = _finite(axes)
    values = values[values > 0]
    ratio = values.max() / values.min() if len(values) else 1.0
    if ratio > 10:
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, (1, 2, 5) if ratio < 100 else (1,))
    else:
        axes.set_ylim(bottom=0)


def _finite(axes: Axes) -> np.ndarray:
    """The finite values of all curves."""
    values = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])
    return values[np.isfinite(values)]


def _finish(axes: Axes, label: str) -> None:
    """Set labels, ticks and legend of curves over epochs."""
    axes.set_ylabel(label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    despine(axes)
    if axes.get_legend_handles_labels()[0]:
        beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        axes.legend(**beside, frameon=False, fontsize="small")


def _mark_stages(axes: Axes, runs: Sequence[TrainingRun]) -> None:
    """Draw a line at the start of each stage and its levels above."""
    if len(runs) == 1:
        return
    for run in runs:
        if run.start > 0:
            axes.axvline(run.start - 0.5, color=NEUTRAL, lw=0.8)
        place = (run.start + len(run.training_loss) / 2 - 0.5, 1.01)
        names = ", ".join(map(str, run.levels))
        alone = len(run.levels) == 1
        text = f"level {names}" if alone else f"levels {names}"
        shade = color(run.levels[0]) if alone else "black"
        kwargs = dict(transform=axes.get_xaxis_transform(), fontsize="small")
        axes.text(*place, text, ha="center", va="bottom", color=shade, **kwargs)
