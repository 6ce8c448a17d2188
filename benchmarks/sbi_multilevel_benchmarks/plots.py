"""Plots of the benchmark: error against high-fidelity simulations and against cost."""

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
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from sbi_multilevel_benchmarks.records import MIN_SEEDS, Cell, Summary, joined

# distinct for the color-blind: Okabe and Ito (2008) without yellow, Tol (2021)
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#332288", "#882255", "#999933"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FIXED = {"high": "#000000", "low": "#7f7f7f"}
ORACLE_COLORS = ("#7f7f7f", "#b0a070")

LABELS = {
    "c2st": "C2ST (0.5 is perfect)",
    "kl": "KL divergence",
    "mmd_squared": "squared MMD",
    "nlpd": "negative log posterior density",
    "nlpd_raw": "negative log density, mass outside the prior included",
    "nltp": "negative log of the true parameter",
    "nrmse": "NRMSE",
}


@dataclass(frozen=True)
class Series:
    """A method at several numbers of simulations.

    Args:
        label: Name in the legend.
        color: Color.
        marker: Marker.
        cells: Its cells, by numbers of simulations.
    """

    label: str
    color: str
    marker: str
    cells: tuple[Cell, ...]


def draw(cells: Sequence[Cell]) -> Figure:
    """Two panels of the main metric of one task.

    Args:
        cells: Cells with the same task and observations.
    """
    metric = cells[0].metric
    cells = [cell for cell in cells if metric in cell.metrics]
    oracles = [cell for cell in cells if _is_oracle(cell)]
    series = arrange([cell for cell in cells if not _is_oracle(cell)])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_panel(left, series, metric, [_num_high(s.cells) for s in series])
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
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _is_oracle(cell: Cell) -> bool:
    return cell.method.startswith("oracle")


def arrange(cells: Sequence[Cell]) -> list[Series]:
    """Lines of the plot, sorted by label.

    A method with several numbers of simulations below the highest level has a line for
    each of them.
    """
    groups: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in cells:
        uses_lower = cell.runs is None or any(cell.runs[:-1])
        lower = cell.num_simulations[:-1] if uses_lower else ()
        groups[cell.method, lower].append(cell)
    several = len({lower for _, lower in groups if lower}) > 1
    series, unused = [], iter(COLORS * (1 + len(groups)))
    for index, ((method, lower), group) in enumerate(sorted(groups.items())):
        below = f" ({joined(lower)} below)" if several and lower else ""
        color = None if several else FIXED.get(method)
        series.append(
            Series(
                _with_seeds(method + below, group),
                color or next(unused),
                MARKERS[index % len(MARKERS)],
                tuple(sorted(group, key=lambda cell: cell.num_simulations)),
            )
        )
    return series


def _num_high(cells: Sequence[Cell]) -> list[float]:
    """High-fidelity runs; 0 for a method that needs none."""
    return [float((cell.runs or cell.num_simulations)[-1]) for cell in cells]


def _costs(cells: Sequence[Cell]) -> list[float]:
    """Costs; NaN if unknown."""
    return [math.nan if cell.cost is None else cell.cost for cell in cells]


def _draw_panel(
    axes: Axes, series: Sequence[Series], metric: str, places: Sequence[list[float]]
) -> None:
    """Error bars on a log axis; a horizontal line for a method whose places are 0."""
    known = [x for given in places for x in given if x > 0]
    axes.set_xscale("log")
    if not known:
        axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center")
        return
    width = max(math.log(max(known) / min(known)), math.log(2))
    middle, reach = math.sqrt(min(known) * max(known)), math.exp(0.625 * width)
    axes.set_xlim(middle / reach, middle * reach)
    for index, (line, given) in enumerate(zip(series, places)):
        means, errors = means_and_errors([
            cell.metrics[metric]["mean"] for cell in line.cells
        ])
        if not any(given):
            _draw_across(axes, means[-1], errors[-1], line.color, ":", line.label)
            continue
        # error bars at the same place are moved apart
        shift = 0.1 * width * ((index + 0.5) / len(series) - 0.5)
        axes.errorbar(
            np.array(given) * math.exp(shift),
            means,
            errors,
            color=line.color,
            marker=line.marker,
            markersize=5,
            linewidth=1.4,
            capsize=2.5,
            label=line.label,
        )
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def means_and_errors(
    summaries: Sequence[Summary],
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors; 0 for one seed, whose point has no bar."""
    means = np.array([summary.mean for summary in summaries])
    errors = np.array([summary.standard_error for summary in summaries])
    return means, np.nan_to_num(errors)


def _draw_oracles(axes: Axes, oracles: Sequence[Cell], metric: str) -> None:
    # an oracle does not depend on the numbers of simulations
    last = {(cell.method, cell.runs): cell for cell in oracles}
    for index, cell in enumerate(last.values()):
        (mean,), (error,) = means_and_errors([cell.metrics[metric]["mean"]])
        color = ORACLE_COLORS[index % len(ORACLE_COLORS)]
        number = "" if cell.runs is None else f" ({cell.runs[-1]} simulations)"
        label = _with_seeds(cell.method + number, [cell])
        _draw_across(axes, mean, error, color, "--", label)


def _draw_across(
    axes: Axes, mean: float, error: float, color: str, style: str, label: str
) -> None:
    axes.axhline(mean, color=color, linestyle=style, label=label, zorder=0.5)
    band = dict(color=color, alpha=0.2, linewidth=0, zorder=0)
    axes.axhspan(mean - error, mean + error, **band)


def _with_seeds(label: str, cells: Sequence[Cell]) -> str:
    few = min(cell.num_seeds for cell in cells)
    return label if few >= MIN_SEEDS else f"{label}, {few} of {MIN_SEEDS} seeds"


def _draw_legend(figure: Figure, *panels: Axes) -> None:
    """One legend for both panels, beside them."""
    entries: dict[str, object] = {}
    for axes in panels[::-1]:  # a method with points in one panel has points here
        for handle, label in zip(*axes.get_legend_handles_labels()):
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
