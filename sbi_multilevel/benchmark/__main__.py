"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sbi_multilevel.benchmark.allocation import allocation_table, run_allocations
from sbi_multilevel.benchmark.cost import step_costs
from sbi_multilevel.benchmark.methods import METHODS
from sbi_multilevel.benchmark.overhead import overheads
from sbi_multilevel.benchmark.run import Run, run_all, table, write
from sbi_multilevel.benchmark.tasks import POSTERIOR_TASKS, TASKS, get_task


def _rows(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _command(given: Sequence[str]) -> str:
    """The command line, to be written beside what came of it."""
    words = list(given)
    for option in ("--data", "--out"):  # paths of this machine concern nobody else
        if option in words:
            words[words.index(option) + 1] = "FILE"
    return f"python -m sbi_multilevel.benchmark {shlex.join(words)}"


def main(arguments: list[str] | None = None) -> None:
    """Run `python -m sbi_multilevel.benchmark TASK --methods ... --rows ...`."""
    parser = argparse.ArgumentParser(
        prog="python -m sbi_multilevel.benchmark", description=__doc__
    )
    parser.add_argument(
        "task", choices=(*TASKS, *POSTERIOR_TASKS, "cost", "allocation", "overhead")
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["high", "ml"])
    parser.add_argument(
        "--rows",
        nargs="+",
        type=_rows,
        help="rows of each level, e.g. 10000,50 10000,100",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--observations",
        type=int,
        help="judge posteriors at the first so many observations only",
    )
    parser.add_argument("--data", help="file that the task reads, if any")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.task == "cost":
        print(step_costs())
        return
    if options.task == "overhead":
        print(overheads())
        return
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    command = _command(arguments if arguments is not None else sys.argv[1:])
    if options.task == "allocation":
        records = run_allocations(seeds, options.workers)
        if options.out:
            write(options.out, records, command)
        print(allocation_table(records))
        return
    rows = options.rows or [get_task(options.task, options.data).num_simulations]
    runs = [
        Run(options.task, method, n, seed, options.data, options.observations)
        for n in rows
        for method in options.methods
        for seed in seeds
    ]
    # what cannot run is told before hours are spent
    for run in {run.method: run for run in runs}.values():
        run.build_task()
    records = run_all(runs, options.workers)
    if options.out:
        write(options.out, records, command)
    print(table(records))


if __name__ == "__main__":
    main()
