"""Curves of the benchmark: error against high-fidelity rows, and against cost."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sbi_multilevel_benchmarks.records import MIN_SEEDS, Cell, Summary

# Okabe and Ito (2008), told apart by the colour-blind, without yellow, too light for
# lines; then three by Tol (2021)
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#332288", "#882255", "#999933"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FIXED = {"high": "#000000", "low": "#7f7f7f"}
ORACLE_COLOURS = ("#7f7f7f", "#b0a070")

LABELS = {
    "c2st": "C2ST (0.5 is perfect)",
    "kl": "KL divergence",
    "mmd_squared": "squared MMD",
    "nlpd": "negative log posterior density",
    "nlpd_raw": "negative log density, mass outside the prior counted",
    "nltp": "negative log of the true parameter",
    "nrmse": "NRMSE",
}


@dataclass(frozen=True)
class Series:
    """A method at several numbers of rows.

    Args:
        label: Name in the legend.
        colour: Colour.
        marker: Marker.
        cells: Its cells, by rising cost.
    """

    label: str
    colour: str
    marker: str
    cells: tuple[Cell, ...]


def draw(cells: Sequence[Cell]) -> Figure:
    """Two panels of the main metric of one task.

    Args:
        cells: Cells of one task, evaluated alike.
    """
    metric = cells[0].metric
    cells = [cell for cell in cells if metric in cell.metrics]
    oracles = [cell for cell in cells if is_oracle(cell)]
    series = arrange([cell for cell in cells if not is_oracle(cell)])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_panel(left, series, metric, [_high_rows(s.cells) for s in series])
    _draw_panel(right, series, metric, [_costs(s.cells) for s in series])
    for axes in (left, right):
        _draw_oracles(axes, oracles, metric)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(LABELS.get(metric, metric) + ", mean ± SE")
    left.set_xlabel("high-fidelity simulations")
    right.set_xlabel("cost of all simulations")
    figure.suptitle(cells[0].title)
    _draw_legend(figure, left, right)
    return figure


def png(figure: Figure) -> bytes:
    """The picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def is_oracle(cell: Cell) -> bool:
    """Whether a method stands for what could be reached, by its name."""
    return cell.method.startswith("oracle")


def arrange(cells: Sequence[Cell]) -> list[Series]:
    """Lines of the plot, sorted by label.

    Cells of one method with other rows below the highest level are lines of their own;
    their labels say which where there are several.
    """
    groups: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in cells:
        lower = cell.num_simulations[:-1] if _uses_lower(cell) else ()
        groups[cell.method, lower].append(cell)
    several = len({lower for _, lower in groups if lower}) > 1
    series, used = [], 0
    for (method, lower), group in sorted(groups.items()):
        label = method
        if several and lower:
            label += f" ({' + '.join(map(str, lower))} below)"
        colour = FIXED.get(method) if not several else None
        if colour is None:
            colour = COLOURS[used % len(COLOURS)]
            used += 1
        marker = MARKERS[len(series) % len(MARKERS)]
        ordered = tuple(sorted(group, key=lambda cell: cell.num_simulations))
        label = _with_seeds(label, group)
        series.append(Series(label, colour, marker, ordered))
    return series


def _uses_lower(cell: Cell) -> bool:
    return cell.runs is None or any(cell.runs[:-1])


def _high_rows(cells: Sequence[Cell]) -> list[float]:
    """High-fidelity runs; 0 where a method takes none."""
    return [float((cell.runs or cell.num_simulations)[-1]) for cell in cells]


def _costs(cells: Sequence[Cell]) -> list[float]:
    """Costs; NaN where unknown."""
    return [math.nan if cell.cost is None else cell.cost for cell in cells]


def _draw_panel(
    axes: Axes, series: Sequence[Series], metric: str, places: Sequence[list[float]]
) -> None:
    """Lines with error bars on a log axis, and a line across where the place is 0."""
    known = sorted({x for given in places for x in given if x > 0})
    axes.set_xscale("log")
    if not known:
        axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center")
        return
    low, high = known[0], known[-1]
    # some room around the only place, for all its methods
    width = max(math.log(high / low), math.log(2))
    middle, reach = math.sqrt(low * high), math.exp(0.625 * width)
    axes.set_xlim(middle / reach, middle * reach)
    beside = _beside(places, width)
    for line, given, shifts in zip(series, places, beside):
        means, errors = _values([cell.metrics[metric]["mean"] for cell in line.cells])
        if not any(given):  # its rows are no high-fidelity ones
            _draw_across(axes, means[-1], errors[-1], line.colour, ":", line.label)
            continue
        axes.errorbar(
            np.array(given) * np.exp(shifts),
            means,
            errors,
            color=line.colour,
            marker=line.marker,
            markersize=5,
            linewidth=1.4,
            capsize=2.5,
            label=line.label,
        )
    axes.xaxis.set_major_locator(FixedLocator(_ticks(known, width)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
    axes.xaxis.set_minor_locator(NullLocator())


def _beside(places: Sequence[list[float]], width: float) -> list[list[float]]:
    """Shifts on the log axis, so that no bar hides another at the same place."""
    sharing: dict[float, list[int]] = defaultdict(list)
    for index, given in enumerate(places):
        for x in given:
            sharing[x].append(index)
    most = max(map(len, sharing.values()))
    alone = len(sharing.keys() - {0.0}) == 1  # then there is room
    step = width * (0.6 / most if alone else min(0.014, 0.1 / most))
    return [
        [step * (sharing[x].index(i) - (len(sharing[x]) - 1) / 2) for x in given]
        for i, given in enumerate(places)
    ]


def _ticks(known: Sequence[float], width: float) -> list[float]:
    """The places if these are few, otherwise 1, 2 and 5 times powers of ten."""
    gaps = [math.log(after / before) for before, after in zip(known, known[1:])]
    if len(known) <= 6 and min(gaps, default=width) > 0.15 * width:
        return list(known)
    exponents = range(math.floor(math.log10(known[0])) - 1, 20)
    ticks = [factor * 10.0**power for power in exponents for factor in (1, 2, 5)]
    inside = [x for x in ticks if known[0] * 0.8 <= x <= known[-1] * 1.25]
    if len(inside) > 8:
        return [x for x in inside if f"{x:e}"[0] == "1"]
    return inside or [known[0]]


def _number(x: float) -> str:
    if x >= 1e6:
        return f"{x / 1e6:.3g}M"
    return f"{x / 1e3:.3g}k" if x >= 1e4 else f"{x:.4g}"


def _values(summaries: Sequence[Summary]) -> tuple[np.ndarray, np.ndarray]:
    means = np.array([summary.mean for summary in summaries])
    errors = np.array([summary.standard_error for summary in summaries])
    return means, np.nan_to_num(errors)  # one seed has a point, and no bar


def _draw_oracles(axes: Axes, oracles: Sequence[Cell], metric: str) -> None:
    # trained alike whatever the rows
    last = {(cell.method, cell.runs): cell for cell in oracles}
    for index, cell in enumerate(last.values()):
        (mean,), (error,) = _values([cell.metrics[metric]["mean"]])
        colour = ORACLE_COLOURS[index % len(ORACLE_COLOURS)]
        rows = "" if cell.runs is None else f" ({_number(cell.runs[-1])} rows)"
        label = _with_seeds(cell.method + rows, [cell])
        _draw_across(axes, mean, error, colour, "--", label)


def _draw_across(
    axes: Axes, mean: float, error: float, colour: str, style: str, label: str
) -> None:
    axes.axhline(mean, color=colour, linestyle=style, label=label, zorder=0.5)
    band = dict(color=colour, alpha=0.2, linewidth=0, zorder=0)
    axes.axhspan(mean - error, mean + error, **band)


def _with_seeds(label: str, cells: Sequence[Cell]) -> str:
    few = min(cell.num_seeds for cell in cells)
    return label if few >= MIN_SEEDS else f"{label}, {few} of {MIN_SEEDS} seeds"


def _draw_legend(figure: Figure, *panels: Axes) -> None:
    """One legend for both, beside them."""
    entries: dict[str, object] = {}
    for axes in panels[::-1]:  # a point in any panel is shown as a point
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels):
            entries.setdefault(label, handle)
    names = sorted(entries, key=lambda name: (name.startswith("oracle"), name))
    if not any(name.startswith("oracle") for name in names):
        names.append("(oracle not run)")
        entries[names[-1]] = Line2D([], [], linestyle=" ")
    figure.legend(
        [entries[name] for name in names],
        names,
        loc="outside right center",
        frameon=False,
        fontsize=9,
    )
