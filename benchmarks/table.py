"""Prints the tables of the README and of docs/results: hybrid.md, papers.md,
speed.md.

A test compares the pages with the tables.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sbi_multilevel_benchmarks.journal import read_records
from sbi_multilevel_benchmarks.papers.experiment import EXPERIMENTS
from sbi_multilevel_benchmarks.records import (
    MIN_SEEDS,
    Cell,
    Record,
    Table,
    cells,
    finished,
    key,
    over_seeds,
)
from sbi_multilevel_benchmarks.reproduce import overview, published_table

RESULTS = Path(__file__).parent / "results"
METHODS = {"plain": "high", "multilevel": "ml", "transfer": "mf", "hybrid": "hybrid"}


class Line(NamedTuple):
    """A metric of a task, with their titles, at several numbers of simulations."""

    task: str
    title: str
    metric: str
    metric_title: str
    counts: tuple[tuple[int, ...], ...]

    @property
    def full_title(self) -> str:
        return f"{self.title}, {self.metric_title}"


def _with(low: int, *high: int) -> tuple[tuple[int, ...], ...]:
    return tuple((low, each) for each in high)


LINES = (
    Line("g-and-k", "g-and-k", "kl_grid", "KL", _with(10_000, 50, 100, 300)),
    Line("camels", "CAMELS σ8, as in the paper", "nlpd", "NLPD", _with(980, 20)),
    Line("camels-shuffled", "CAMELS σ8, shuffled", "nlpd", "NLPD", _with(980, 20)),
    Line("ou", "OU, 3 parameters", "nlpd", "NLPD", _with(1_000, 10, 50, 100)),
    Line("ou-start", "OU, free start", "nlpd", "NLPD", _with(1_000, 100)),
    Line("ou2-published", "OU2", "c2st", "C2ST", _with(10_000, 50, 100, 1_000)),
    Line(
        "toggle-switch", "toggle switch", "mmd_squared", "MMD²", ((10_000, 500, 100),)
    ),
    Line("slcp", "SLCP", "c2st", "C2ST", _with(10_000, 50, 100)),
    Line("slcp", "SLCP", "nltp", "NLTP", _with(10_000, 50, 100)),
    Line("ou4", "OU4", "c2st", "C2ST", _with(10_000, 50, 100)),
    Line("ou4", "OU4", "nltp", "NLTP", _with(10_000, 50, 100)),
    Line("sir", "SIR", "c2st", "C2ST", _with(10_000, 50, 100)),
    Line("sir", "SIR", "nltp", "NLTP", _with(10_000, 50, 100)),
    Line("blob", "blobs, images of 32 x 32", "nltp", "NLTP", _with(1_000, 50, 100)),
    Line("l5pc", "L5PC, pyramidal cell", "nltp", "NLTP", _with(10_000, 50, 100, 1_000)),
    Line("matter-power", "matter power, CAMB", "nltp", "NLTP", _with(10_000, 50)),
)
USELESS = (
    Line("g-and-k-useless", "g-and-k", "kl_grid", "KL", _with(10_000, 100)),
    Line("ou-useless", "OU, 3 parameters", "nlpd", "NLPD", _with(1_000, 50)),
    Line("ou2-useless", "OU2", "c2st", "C2ST", _with(10_000, 50)),
)
PARTS = (
    Line("camels-shuffled", "CAMELS σ8, shuffled", "nlpd", "NLPD", _with(980, 20)),
    Line("g-and-k", "g-and-k", "kl_grid", "KL", _with(10_000, 100)),
)
WITHOUT = {
    "all parts": "hybrid",
    "no level maps": "hybrid-unaligned",
    "level maps without pairs": "hybrid-unpaired",
    "no rehearsal": "hybrid-unrehearsed",
    "no tail transform": "hybrid-untransformed",
    "no mixing": "hybrid-unmixed",
    "members from scratch": "hybrid-scratch",
    "high-fidelity simulations alone": "high-hybrid",
}


class Results:
    """Cells of the records, by task, numbers of simulations and method."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self._cells = {
            (each.task, each.num_simulations, each.method): each
            for each in cells(self.records)
            if each.observations is None
        }

    @classmethod
    @functools.cache
    def of_files(cls, pattern: str = "*.jsonl") -> Results:
        """The records of the repository in files of a pattern."""
        paths = sorted(RESULTS.glob(pattern))
        return cls([record for path in paths for record in read_records(path)])

    def cell(self, task: str, counts: tuple[int, ...], method: str) -> Cell | None:
        return self._cells.get((task, counts, method))

    def value(
        self, task: str, counts: tuple[int, ...], method: str, metric: str
    ) -> str:
        """Mean and standard error; empty if it was not run."""
        cell = self.cell(task, counts, method)
        if cell is None or metric not in cell.metrics:
            return ""
        seeds = "seed" if cell.num_seeds == 1 else "seeds"
        few = f" ({cell.num_seeds} {seeds})" if cell.num_seeds < MIN_SEEDS else ""
        return f"{cell.metrics[metric]['mean']}{few}"

    def errors(self, line: Line, counts: tuple[int, ...]) -> dict[int, float]:
        """Error of the hybrid by seed."""
        return {
            record["seed"]: record["metrics"][line.metric]["mean"]
            for record in finished(self.records)
            if key(record) == (line.task, "hybrid", counts, record["seed"], None)
        }

    def oracle(self, task: str, metric: str) -> str:
        """The value of the oracle."""
        known = [key[1] for key in self._cells if (key[0], key[2]) == (task, "oracle")]
        return self.value(task, max(known), "oracle", metric) if known else ""


def main_table(full: bool = False) -> Table:
    """The table of all tasks.

    Args:
        full: Whether to add calibration, minutes, all metrics of a task, and more than
            two numbers of simulations.
    """
    results, rows, seen = Results.of_files(), [], set()
    for line in LINES:
        if not full and line.task in seen:
            continue
        seen.add(line.task)
        for index, counts in enumerate(line.counts if full else line.counts[:2]):
            rows.append(_row(results, line, counts, index == 0, full))
    extra = ("TARP area", "SBC", "minutes") if full else ()
    return Table(
        ("task, metric", "simulations", *METHODS, "oracle", *extra), tuple(rows)
    )


def useless_table() -> Table:
    """Results with a level 0 without information."""
    methods = {"plain": "high", "hybrid without level 0": "high-hybrid"}
    methods |= {"transfer": "mf", "hybrid": "hybrid"}
    results = Results.of_files()
    rows = [
        (
            line.full_title,
            _counted(counts),
            *(
                results.value(line.task, counts, m, line.metric)
                for m in methods.values()
            ),
        )
        for line in USELESS
        for counts in line.counts
    ]
    return Table(("task, metric", "simulations", *methods), tuple(rows))


def parts_table() -> Table:
    """Results without one part of the hybrid method, all of one version."""
    results = Results.of_files("ablation.jsonl")
    rows = [
        (
            name,
            *(
                results.value(line.task, counts, method, line.metric)
                for line in PARTS
                for counts in line.counts
            ),
        )
        for name, method in WITHOUT.items()
    ]
    titles = [
        f"{line.full_title}, {_counted(counts)}"
        for line in PARTS
        for counts in line.counts
    ]
    return Table(("", *titles), tuple(rows))


def versions_table() -> Table:
    """The hybrid method before the schedule of learning rates, and now."""
    earlier, now = Results.of_files("earlier/*.jsonl"), Results.of_files()
    rows = []
    for line in LINES:
        found = [
            (counts, earlier.errors(line, counts), now.errors(line, counts))
            for counts in line.counts
        ]
        compared = [each for each in found if each[1]]
        for index, (counts, before, after) in enumerate(compared):
            seeds = sorted(set(before) & set(after))
            gaps = over_seeds([after[seed] - before[seed] for seed in seeds])
            values = (over_seeds(list(each.values())) for each in (before, after))
            title = line.full_title if index == 0 else ""
            change = f"{gaps.mean:+.3f} ± {gaps.standard_error:.3f}"
            rows.append((title, _counted(counts), *map(str, values), change))
    header = ("task, metric", "simulations", "before", "now", "difference")
    return Table(header, tuple(rows))


def papers_tables() -> tuple[Table, ...]:
    """Figures and tables of each paper, and published values beside ours."""
    experiments = list(EXPERIMENTS.values())
    papers = dict.fromkeys(each.name.partition(":")[0] for each in experiments)
    records = Results.of_files().records
    records = [each for each in records if each.get("observations") is None]
    return (
        *(overview(e for e in experiments if e.name.startswith(p)) for p in papers),
        published_table(experiments, records),
    )


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
        line.full_title if is_first else "",
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
    """Whether the hybrid is better than all others by two standard errors."""
    found = {
        name: cell.metrics[line.metric]["mean"]
        for name, method in METHODS.items()
        if (cell := results.cell(line.task, counts, method)) is not None
    }
    if "hybrid" not in found:
        return False
    best = found.pop("hybrid")
    return all(
        best.mean + 2 * (best.standard_error**2 + each.standard_error**2) ** 0.5
        < each.mean
        for each in found.values()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the tables of hybrid.md")
    parser.add_argument("--versions", action="store_true", help="that of speed.md")
    parser.add_argument("--papers", action="store_true", help="those of papers.md")
    options = parser.parse_args(arguments)
    if options.versions:
        print(versions_table())
        return
    if options.papers:
        print(*papers_tables(), sep="\n\n")
        return
    print(main_table(options.full))
    if options.full:
        print(f"\n{useless_table()}\n\n{parts_table()}")


if __name__ == "__main__":
    main()
