"""Colours and lines that all pictures share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito (2008), told apart by the colour-blind, without yellow, too light for
# lines, and black, which is for truths
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
NEUTRAL = "#555555"
_LOG_FROM = 1_000.0  # losses that a linear axis can no longer show


def colour(index: int) -> str:
    """Colour of the level, or the curve, of this number."""
    return COLOURS[index % len(COLOURS)]


def despine(axes: Axes) -> None:
    """Axes as sbi draws them: no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def plain_log_ticks(axis: Axis, factors: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at these times powers of ten, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=tuple(factors)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend_beside(axes: Axes) -> None:
    """A legend on the right of the axes, where it hides no curve."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize="small",
        )


def scale_losses(axes: Axes, curves: Sequence[np.ndarray]) -> None:
    """An axis that shows losses that blew up, too."""
    sizes = [np.abs(values[np.isfinite(values)]) for values in curves]
    if max((size.max() for size in sizes if len(size)), default=0.0) > _LOG_FROM:
        axes.set_yscale("symlog", linthresh=10.0)


def finish_epochs(axes: Axes, label: str) -> None:
    """Labels, ticks and legend of something that is drawn over epochs."""
    axes.set_ylabel(label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    despine(axes)
    legend_beside(axes)
