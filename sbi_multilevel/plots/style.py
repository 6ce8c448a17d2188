"""Colors, lines and axes of all figures."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito (2008), for color-blind readers, without yellow (low contrast) and black
# (true parameters)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
NEUTRAL = "#555555"


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
