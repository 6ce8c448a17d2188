"""Figures and tables of both papers, with the published values beside ours."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sbi_multilevel_benchmarks.journal import Journal, command_of
from sbi_multilevel_benchmarks.papers import multilevel, transfer  # noqa: F401
from sbi_multilevel_benchmarks.papers.experiment import (
    EXPERIMENTS,
    SIZES,
    Experiment,
    Published,
    Size,
)
from sbi_multilevel_benchmarks.plots import png
from sbi_multilevel_benchmarks.records import Record, Table, cells, finished, joined
from sbi_multilevel_benchmarks.report import write_report
from sbi_multilevel_benchmarks.run import missing, run_all

PROGRAM = "python -m sbi_multilevel_benchmarks reproduce"


def main(arguments: Sequence[str]) -> list[Record]:
    """Run `python -m sbi_multilevel_benchmarks reproduce "transfer: fig 2" --out F`.

    Args:
        arguments: Without a name, all figures and tables are listed.

    Returns:
        Records of runs that failed.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("name", nargs="?", help='e.g. "multilevel: table 4"')
    parser.add_argument("--size", choices=SIZES, default="half", help="half by default")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="folder, reproduced/NAME by default")
    options = parser.parse_args(arguments)
    if options.name is None:
        for each in EXPERIMENTS.values():
            print(f"{each.name:<40} {each.verdict:<13} {each.title}")
        return []
    experiment = find(options.name)
    folder = options.out or Path("reproduced") / _slug(experiment.name)
    journal = Journal(folder / "records.jsonl", command_of(PROGRAM, arguments))
    runs = missing(experiment.runs(options.size), journal.records)
    failures = journal.extend(run_all(runs, options.workers))
    print(write_results(experiment, options.size, journal.records, folder))
    return failures


def find(name: str) -> Experiment:
    """The experiment that has a figure or a table.

    Args:
        name: Paper and number, e.g. `"transfer: table 5"`.

    Raises:
        ValueError: If there is none, or more than one.
    """
    paper, _, item = (part.strip() for part in name.lower().partition(":"))
    found = [
        each
        for each in EXPERIMENTS.values()
        if each.name == name or (paper, item) in _items(each.name)
    ]
    if len(found) != 1:
        raise ValueError(
            f"name={name!r} must be a figure or a table of a paper, one of "
            f"{tuple(EXPERIMENTS)}."
        )
    return found[0]


def overview(experiments: Iterable[Experiment]) -> Table:
    """What each figure and table shows, and whether our results agree."""
    rows = tuple((e.name, e.title, e.verdict, e.remark) for e in experiments)
    return Table(("figure or table", "what it shows", "verdict", "remark"), rows)


def published_table(
    experiments: Iterable[Experiment], records: Sequence[Record]
) -> Table:
    """Published values, and ours where they were run.

    Args:
        experiments: Figures and tables.
        records: Our records.
    """
    ours = {
        (cell.task, cell.num_simulations, cell.method, name): values["mean"]
        for cell in cells(records)
        for name, values in cell.metrics.items()
    }
    rows = []
    for experiment in experiments:
        for each in experiment.published:
            value = ours.get(_key(each))
            text = "" if value is None else str(value)
            counts = joined(each.num_simulations)
            about = (experiment.name, each.task, each.metric, counts, each.method)
            rows.append((*about, str(each), text))
    header = ("figure or table", "task", "metric", "simulations", "method")
    return Table((*header, "published", "ours"), tuple(rows))


def write_results(
    experiment: Experiment, size: Size, records: Sequence[Record], folder: Path
) -> Path:
    """Write the report of the runs, the pictures, and the tables.

    Args:
        experiment: The figure or table.
        size: Size of the studies.
        records: Records of its runs.
        folder: Folder to write to; created if missing.

    Returns:
        Path of the tables, `results.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {experiment.name}: {experiment.title}", experiment.remark]
    if finished(records):
        parts.append(f"Runs: {write_report(records, folder).name}")
    if experiment.published:
        parts.append(str(published_table([experiment], records)))
    for study in experiment.studies:
        result = study(size, records)
        for title, table in result.tables.items():
            parts.append(f"## {title}\n\n{table}")
        for name, figure in result.figures.items():
            file = f"{_slug(name)}.png"
            (folder / file).write_bytes(png(figure))
            parts.append(f"![{name}]({file})")
    page = folder / "results.md"
    text = "\n\n".join(part for part in parts if part)
    page.write_text(f"{text}\n", encoding="utf-8")
    return page


def _key(each: Published) -> tuple:
    return each.task, each.num_simulations, each.method, each.metric


def _items(name: str) -> set[tuple[str, str]]:
    """Figures and tables of a name, e.g. fig 3b, fig 14 and table 5."""
    paper, _, items = name.partition(": ")
    found, kind = set(), ""
    for item in items.split(", "):
        first, _, rest = item.rpartition(" ")
        kind = first or kind
        found.add((paper, f"{kind} {rest}"))
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
