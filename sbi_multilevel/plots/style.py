"""Colors, lines and axes of all figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito (2008), for color-blind readers, without yellow (low contrast) and black
# (true parameters)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
NEUTRAL = "#555555"
_MAX_LINEAR = 1_000.0  # largest loss on a linear axis, in nats


def color(index: int) -> str:
    """Color of the level, or the curve, of this index."""
    return COLORS[index % len(COLORS)]


def despine(axes: Axes) -> None:
    """Remove the frame at the top and on the right, as sbi does."""
    axes.spines[["top", "right"]].set_visible(False)


def plain_log_ticks(axis: Axis, factors: Sequence[int]) -> None:
    """Ticks at these factors of powers of ten, with plain numbers as labels."""
    axis.set_major_locator(LogLocator(subs=tuple(factors)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def scale_losses(axes: Axes, curves: Sequence[np.ndarray]) -> None:
    """Use a symmetric logarithmic axis if losses are very large."""
    sizes = [np.abs(values[np.isfinite(values)]) for values in curves]
    if max((size.max() for size in sizes if len(size)), default=0.0) > _MAX_LINEAR:
        axes.set_yscale("symlog", linthresh=10.0)


def finish_epochs(axes: Axes, label: str) -> None:
    """Set labels, ticks and legend of curves over epochs."""
    axes.set_ylabel(label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    despine(axes)
    if axes.get_legend_handles_labels()[0]:
        beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        axes.legend(**beside, frameon=False, fontsize="small")
