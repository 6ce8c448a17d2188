r"""The share of the gap between plain training and an oracle that a method closes.

With the main metric p of plain training on the high-fidelity simulations alone, o of
the oracle and m of a method, each a mean over seeds, the share is

.. math:: \frac{p - m}{p - o},

1 where the method equals the oracle, 0 where the lower levels gain nothing, and
negative where they are harmful. Its standard error is that of p and m to first order.
On tasks with exact posterior densities, m and p are the excess over these and o is 0.

`python -m sbi_multilevel_benchmarks.gaps FILE [FILE ...] --output PICTURE` draws the
shares of all tasks whose records have plain training, an oracle and a method.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_multilevel_benchmarks.journal import read_records
from sbi_multilevel_benchmarks.plots import FIXED, means_and_errors, png
from sbi_multilevel_benchmarks.records import Cell, Summary, cells, joined

PLAIN, LOW, ORACLE, EXACT = "high", "low", "oracle", "excess"
# title, color and marker of each method
METHODS = {
    LOW: ("low fidelity alone", FIXED[LOW], "|"),
    "ml": ("multilevel", "#009E73", "^"),
    "mf": ("transfer", "#E69F00", "s"),
    "hybrid": ("hybrid", "#0072B2", "o"),
}
_RANGE = (-0.55, 1.35)  # of the axis; shares outside are arrows at its ends
_ROW_HEIGHT = 0.24  # inches


@dataclass(frozen=True)
class Gap:
    """The shares of a task at given numbers of simulations.

    Args:
        title: The task.
        num_simulations: Number of simulations of each level.
        shares: Share of the gap by method, with its standard error.
    """

    title: str
    num_simulations: tuple[int, ...]
    shares: Mapping[str, Summary]


def gaps(given: Iterable[Cell]) -> list[Gap]:
    """The shares of all tasks that have plain training and an oracle.

    Args:
        given: Cells of all tasks.

    Returns:
        By the share of the hybrid, or of the best method without it, largest first.
    """
    rows: dict[tuple[str, tuple[int, ...]], dict[str, Summary]] = {}
    oracles: dict[str, float] = {}
    low: dict[tuple[str, tuple[int, ...]], Summary] = {}
    for cell in given:
        is_exact = EXACT in cell.metrics
        value = cell.metrics[EXACT if is_exact else cell.metric]["mean"]
        if cell.method == ORACLE or is_exact:
            oracles[cell.title] = 0.0 if is_exact else value.mean
        if cell.method == LOW:  # does not depend on the number above
            low[cell.title, cell.num_simulations[:-1]] = value
        rows.setdefault((cell.title, cell.num_simulations), {})[cell.method] = value
    found = []
    for (title, counts), row in rows.items():
        if PLAIN not in row or title not in oracles:
            continue
        if not row[PLAIN].mean > oracles[title]:  # no gap that could be closed
            continue
        at_low = low.get((title, counts[:-1]))
        row = row if at_low is None else {**row, LOW: at_low}
        shares = {
            method: _share(row[PLAIN], row[method], oracles[title])
            for method in METHODS
            if method in row
        }
        if set(shares) - {LOW}:
            found.append(Gap(title, counts, shares))
    return sorted(found, key=_order)


def _share(plain: Summary, method: Summary, oracle: float) -> Summary:
    gap = plain.mean - oracle
    rest = (method.mean - oracle) / gap
    error = math.hypot(method.standard_error, rest * plain.standard_error) / gap
    num_seeds = min(plain.num_seeds, method.num_seeds)
    return Summary(1 - rest, error, num_seeds)


def _order(gap: Gap) -> float:
    known = gap.shares.get("hybrid")
    others = [each.mean for name, each in gap.shares.items() if name != LOW]
    return -(max(others) if known is None else known.mean)


def draw_gaps(given: Sequence[Gap]) -> Figure:
    """A row of points for each task, with bars of one standard error.

    Args:
        given: At least one.
    """
    height = 1.3 + _ROW_HEIGHT * len(given)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.subplots()
    names = [f"{each.title}, {joined(each.num_simulations)}" for each in given]
    for name, (label, color, marker) in METHODS.items():
        rows = [row for row, each in enumerate(given) if name in each.shares]
        shares = [given[row].shares[name] for row in rows]
        style = dict(color=color, marker=marker, linestyle="none", markersize=6)
        means, errors = means_and_errors(shares)
        axes.errorbar(
            means,
            rows,
            xerr=errors,
            label=label,
            elinewidth=1,
            **style,
        )
        for row, mean in zip(rows, means):
            _point_outside(axes, row, mean, color)
    for place, style in ((0.0, ":"), (1.0, "--")):
        axes.axvline(place, color="#222222", linestyle=style, linewidth=1, zorder=0)
    axes.set_xlim(*_RANGE)
    axes.set_ylim(len(given) - 0.5, -0.5)
    axes.set_yticks(range(len(given)), names, fontsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("share of the gap between plain (0) and oracle (1), ± SE")
    figure.legend(loc="outside upper center", ncols=len(METHODS), frameon=False)
    return figure


def _point_outside(axes: Axes, row: int, share: float, color: str) -> None:
    """An arrow with the value of a share that is outside of the axis."""
    if _RANGE[0] <= share <= _RANGE[1]:
        return
    is_left = share < _RANGE[0]
    text = f"◂ {share:.1f}" if is_left else f"{share:.1f} ▸"
    axes.text(
        0.005 if is_left else 0.995,
        row,
        text,
        transform=axes.get_yaxis_transform(),
        color=color,
        va="center",
        ha="left" if is_left else "right",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m sbi_multilevel_benchmarks.gaps",
        description="Draw the share of the gap to an oracle that each method closes.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="files of JSON lines")
    parser.add_argument("--output", type=Path, default=Path("gaps.png"))
    options = parser.parse_args(arguments)
    records = [record for path in options.files for record in read_records(path)]
    found = gaps(cells(records))
    if not found:
        parser.error("no task in these files has plain training, an oracle and others.")
    options.output.write_bytes(png(draw_gaps(found)))
    print(options.output)


if __name__ == "__main__":
    main()
