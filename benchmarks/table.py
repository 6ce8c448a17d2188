"""Prints the tables of the README and of docs/results/hybrid.md from results/*.jsonl.

`python benchmarks/table.py` prints that of the README, `--full` those of the other.
A test compares both pages with them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sbi_multilevel_benchmarks.journal import Record, read_records
from sbi_multilevel_benchmarks.records import MIN_SEEDS, Cell, Table, cells

RESULTS = Path(__file__).parent / "results"
METHODS = {"plain": "high", "multilevel": "ml", "transfer": "mf", "hybrid": "hybrid"}


class Line(NamedTuple):
    """A task, what it is called, a metric, what that is called, and numbers of rows."""

    task: str
    title: str
    metric: str
    called: str
    rows: tuple[tuple[int, ...], ...]


def _and(low: int, *high: int) -> tuple[tuple[int, ...], ...]:
    return tuple((low, each) for each in high)


LINES = (
    Line("g-and-k", "g-and-k", "kl_grid", "KL", _and(10_000, 50, 100, 300)),
    Line("camels", "CAMELS σ8, the paper's rows", "nlpd", "NLPD", _and(980, 20)),
    Line("camels-shuffled", "CAMELS σ8, shuffled", "nlpd", "NLPD", _and(980, 20)),
    Line("ou", "OU, 3 parameters", "nlpd", "NLPD", _and(1_000, 10, 50, 100)),
    Line("ou2-published", "OU2", "c2st", "C2ST", _and(10_000, 50, 100, 1_000)),
    Line(
        "toggle-switch", "toggle switch", "mmd_squared", "MMD²", ((10_000, 500, 100),)
    ),
    Line("slcp", "SLCP", "c2st", "C2ST", _and(10_000, 50, 100)),
    Line("slcp", "SLCP", "nltp", "NLTP", _and(10_000, 50, 100)),
    Line("ou4", "OU4", "c2st", "C2ST", _and(10_000, 50, 100)),
    Line("ou4", "OU4", "nltp", "NLTP", _and(10_000, 50, 100)),
    Line("sir", "SIR", "c2st", "C2ST", _and(10_000, 50, 100)),
    Line("sir", "SIR", "nltp", "NLTP", _and(10_000, 50, 100)),
    Line("blob", "blobs, images of 32 x 32", "nltp", "NLTP", _and(1_000, 50, 100)),
)
USELESS = (
    Line("g-and-k-useless", "g-and-k", "kl_grid", "KL", _and(10_000, 100)),
    Line("ou-useless", "OU, 3 parameters", "nlpd", "NLPD", _and(1_000, 50)),
    Line("ou2-useless", "OU2", "c2st", "C2ST", _and(10_000, 50)),
)
PARTS = (
    Line("camels-shuffled", "CAMELS σ8, shuffled", "nlpd", "NLPD", _and(980, 20)),
    Line("g-and-k", "g-and-k", "kl_grid", "KL", _and(10_000, 100)),
)
WITHOUT = {
    "all of it": "hybrid",
    "no alignment": "hybrid-unaligned",
    "maps without pairs": "hybrid-unpaired",
    "no rehearsing": "hybrid-unrehearsed",
    "tails not tamed": "hybrid-untamed",
    "members unmixed": "hybrid-unmixed",
    "members from scratch": "hybrid-scratch",
    "dear rows alone": "high-hybrid",
}


class Results:
    """Cells of the records, by task, rows and method."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._cells = {
            (each.task, each.num_simulations, each.method): each
            for each in cells(records)
            if each.observations is None
        }

    @classmethod
    @functools.cache
    def of_files(cls) -> Results:
        """Those that are kept in the repository."""
        paths = sorted(RESULTS.glob("*.jsonl"))
        return cls([record for path in paths for record in read_records(path)])

    def cell(self, task: str, rows: tuple[int, ...], method: str) -> Cell | None:
        return self._cells.get((task, rows, method))

    def value(self, task: str, rows: tuple[int, ...], method: str, metric: str) -> str:
        """Mean and standard error; empty where it was not run."""
        cell = self.cell(task, rows, method)
        if cell is None or metric not in cell.metrics:
            return ""
        few = f" ({cell.num_seeds} seeds)" if cell.num_seeds < MIN_SEEDS else ""
        return f"{cell.metrics[metric]['mean']}{few}"

    def oracle(self, task: str, metric: str) -> str:
        """Of the most rows that there is one of."""
        rows = [key[1] for key in self._cells if (key[0], key[2]) == (task, "oracle")]
        return self.value(task, max(rows), "oracle", metric) if rows else ""


def main_table(full: bool = False) -> Table:
    """The table of all tasks.

    Args:
        full: With calibration, minutes and every metric of a task, not the first alone.
    """
    results, rows, seen = Results.of_files(), [], set()
    for line in LINES:
        if not full and line.task in seen:
            continue
        seen.add(line.task)
        for index, counts in enumerate(line.rows):
            rows.append(_row(results, line, counts, index == 0, full))
    extra = ("TARP area", "SBC", "minutes") if full else ()
    return Table(("task, metric", "rows", *METHODS, "oracle", *extra), tuple(rows))


def useless_table() -> Table:
    """What a useless level 0 does."""
    methods = {"plain": "high", "hybrid without level 0": "high-hybrid"}
    methods |= {"transfer": "mf", "hybrid": "hybrid"}
    results = Results.of_files()
    rows = [
        (
            f"{line.title}, {line.called}",
            _counted(counts),
            *(
                results.value(line.task, counts, m, line.metric)
                for m in methods.values()
            ),
        )
        for line in USELESS
        for counts in line.rows
    ]
    return Table(("task, metric", "rows", *methods), tuple(rows))


def parts_table() -> Table:
    """What is lost without each part of the recipe."""
    results = Results.of_files()
    rows = [
        (
            name,
            *(
                results.value(line.task, counts, method, line.metric)
                for line in PARTS
                for counts in line.rows
            ),
        )
        for name, method in WITHOUT.items()
    ]
    titles = [
        f"{line.title}, {line.called}, {_counted(counts)}"
        for line in PARTS
        for counts in line.rows
    ]
    return Table(("", *titles), tuple(rows))


def _counted(counts: tuple[int, ...]) -> str:
    return " + ".join(f"{count:,}".replace(",", " ") for count in counts)


def _row(
    results: Results, line: Line, counts: tuple[int, ...], is_first: bool, full: bool
) -> tuple[str, ...]:
    names = [
        results.value(line.task, counts, method, line.metric)
        for method in METHODS.values()
    ]
    names[-1] = f"**{names[-1]}**" if _is_best(results, line, counts) else names[-1]
    row = [
        f"{line.title}, {line.called}" if is_first else "",
        _counted(counts),
        *names,
        results.oracle(line.task, line.metric) if is_first else "",
    ]
    if full:
        row += [results.value(line.task, counts, "hybrid", m) for m in ("atc", "sbc")]
        cell = results.cell(line.task, counts, "hybrid")
        row.append("" if cell is None else f"{cell.seconds / 60:.1f}")
    return tuple(row)


def _is_best(results: Results, line: Line, counts: tuple[int, ...]) -> bool:
    """Whether the hybrid is below each other method by two standard errors."""
    found = {
        name: cell.metrics[line.metric]["mean"]
        for name, method in METHODS.items()
        if (cell := results.cell(line.task, counts, method)) is not None
    }
    if "hybrid" not in found:
        return False
    mine = found.pop("hybrid")
    return all(
        mine.mean + 2 * (mine.standard_error**2 + each.standard_error**2) ** 0.5
        < each.mean
        for each in found.values()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all metrics and columns")
    full = parser.parse_args(arguments).full
    print(main_table(full))
    if full:
        print(f"\n{useless_table()}\n\n{parts_table()}")


if __name__ == "__main__":
    main()
