"""Losses of the members of `HybridNPE` and `HybridNLE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from sbi_multilevel.plots.style import NEUTRAL, color, finish_epochs, scale_losses
from sbi_multilevel.training.history import TrainingRun

_START = "start"  # prefix of the names of pre-trained networks


def plot_members(
    axes: Axes, components: Mapping[str, Mapping[str, Sequence[TrainingRun]]]
) -> None:
    """Plot training and validation loss of each network, colored by component.

    Args:
        axes: Axes to plot into.
        components: `runs` of a `HybridSummary`.

    Raises:
        ValueError: If there are none, as in a summary of an earlier version.
    """
    if not components:
        raise ValueError(
            "inference.hybrid_summary has no losses of members. Train again, or omit "
            "ax to plot the summary."
        )
    shown, named = [], set()
    for index, (component, members) in enumerate(components.items()):
        for member, runs in members.items():
            is_start = member.startswith(_START)
            name = "pre-training" if is_start else component
            shade = NEUTRAL if is_start else color(index)
            for run in runs:
                label = None if name in named else name
                named.add(name)
                _plot_run(axes, run, shade, label)
                shown += [run.training_loss, run.validation_loss]
    black = {"color": "black", "linewidth": 1.0}
    axes.plot([], [], label="training", **black)
    axes.plot([], [], "--", label="validation", **black)
    axes.plot([], [], "ko", markersize=4, label="kept weights")
    scale_losses(axes, shown)
    finish_epochs(axes, "loss [nats]")


def _plot_run(axes: Axes, run: TrainingRun, shade: str, label: str | None) -> None:
    line = {"color": shade, "linewidth": 1.0, "alpha": 0.7}
    axes.plot(run.epochs, run.training_loss, label=label, **line)
    axes.plot(run.epochs, run.validation_loss, "--", **line)
    best = run.best_epoch
    if best is not None and best >= run.start:
        kept = run.validation_loss[best - run.start]
        axes.plot(best, kept, "o", color=shade, markersize=4)
