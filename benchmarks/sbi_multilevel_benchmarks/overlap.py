r"""Error against the share of noise that the two sides of a pair have in common.

Methods are trained on the simulations of `partial_pairs` at each share from 0
(unmatched seeds) to 1 (those of the task). `--unpaired` adds the approach
`ml-unpaired`, where the theta of the two sides differ, too.

For density estimators, records have the variance of a correction, :math:`\mathrm{Var}
[f_l - f_{l-1}]`, with the trained network on fresh pairs, as `variance`, and that of
unpaired simulations, :math:`\mathrm{Var} f_l + \mathrm{Var} f_{l-1}`, as
`variance_apart`, for each level above 0. Methods that do not use the coarse side of
pairs have the same error at each share.

.. code-block:: bash

    python -m sbi_multilevel_benchmarks.overlap --methods high ml hybrid --unpaired \
        --shares 0 0.25 0.5 0.75 1 --seeds 5 --out overlap.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel_benchmarks.fit import Fit, runs_of
from sbi_multilevel_benchmarks.journal import Journal, command_of
from sbi_multilevel_benchmarks.partial_pairs import (
    check_overlap,
    fit_unpaired,
    simulate_overlapping,
)
from sbi_multilevel_benchmarks.pool import run_records
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.records import Record, Table, joined, over_seeds
from sbi_multilevel_benchmarks.registry import METHODS, TASKS, get_task
from sbi_multilevel_benchmarks.run import Run, effort, evaluation, quiet
from sbi_multilevel_benchmarks.task import BenchmarkTask

PROGRAM = "python -m sbi_multilevel_benchmarks.overlap"
DEFAULT_TASKS = ("g-and-k", "toggle-switch")
DEFAULT_METHODS = ("high", "ml", "hybrid")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
UNPAIRED = "ml-unpaired"
_NUM_FRESH = 500


@dataclass(frozen=True)
class OverlapRun:
    """A training at a share.

    Args:
        task: Name of the task.
        approach: Name of the method, or `UNPAIRED`.
        share: Share of the noise that is common to both sides; `None` if unpaired.
        num_simulations: Number of simulations of each level.
        seed: Seed.
    """

    task: str
    approach: str
    share: float | None
    num_simulations: tuple[int, ...]
    seed: int

    @property
    def identity(self) -> Record:
        """The beginning of the record; those with a "method" are of other commands."""
        return asdict(self)

    def build_task(self) -> BenchmarkTask:
        """The task.

        Raises:
            ValueError: If it has other levels, or cannot have the share.
        """
        method = "ml" if self.share is None else self.approach
        task = Run(self.task, method, self.num_simulations, self.seed).build_task()
        check_overlap(task, 1.0 if self.share is None else self.share)
        return task


def run_overlap(run: OverlapRun) -> Record:
    """Train and evaluate, and return the record."""
    task, start = run.build_task(), time.perf_counter()
    with quiet(run.seed):
        if run.share is None:
            result = fit_unpaired(task, run.num_simulations, run.seed)
        else:
            result = fit_overlapping(task, run)
        seconds = time.perf_counter() - start + result.seconds_before
        errors = evaluation(task, result)
        if not isinstance(task, PosteriorTask):
            errors |= variances(task, result.evaluated, run.share, run.seed)
    return {**run.identity, **errors, **effort(task, result, seconds)}


def fit_overlapping(task: BenchmarkTask, run: OverlapRun) -> Fit:
    """Train a method on pairs that share a part of their noise."""
    assert run.share is not None
    numbers = run.num_simulations, run.seed, run.share
    simulations = simulate_overlapping(task, *numbers)
    torch.manual_seed(run.seed)
    result = METHODS[run.approach](task, simulations, run.seed)
    return replace(result, runs=result.runs or runs_of(simulations))


@torch.no_grad()
def variances(
    task: BenchmarkTask, estimator: Any, share: float | None, seed: int
) -> dict[str, list[float]]:
    """Variance of the correction per pair on fresh pairs, of each level above 0.

    Args:
        task: A task that evaluates density estimators.
        estimator: A trained one.
        share: Share of the noise that is common; `None` if unpaired.
        seed: Seed of the training; pairs have another.

    Returns:
        `variance`, and `variance_apart` of unpaired simulations.
    """

    def losses(theta: Tensor, x: Tensor) -> Tensor:
        sides = (theta, x) if task.family == "npe" else (x, theta)
        return -estimator.log_prob(sides[0].unsqueeze(0), sides[1])[0].double()

    counts = (2, *(_NUM_FRESH for _ in task.num_simulations[1:]))
    share_drawn = 0.0 if share is None else share
    pairs = simulate_overlapping(task, counts, seed + 2_000_000, share_drawn)
    found: dict[str, list[float]] = {"variance": [], "variance_apart": []}
    for level in pairs.levels[1:]:
        assert level.x_coarse is not None
        fine, coarse = (losses(level.theta, x) for x in (level.x, level.x_coarse))
        apart = fine.var() + coarse.var()
        together = apart if share is None else (fine - coarse).var()
        found["variance"].append(together.item())
        found["variance_apart"].append(apart.item())
    return found


def run_overlaps(
    runs: Sequence[OverlapRun], num_workers: int = 1, before: Sequence[Record] = ()
) -> Iterator[Record]:
    """Records of runs as they end, failures included.

    Args:
        runs: The runs.
        num_workers: Processes, each of one thread.
        before: Records of earlier runs, which are not repeated.
    """
    done = {_key(record) for record in before if "metrics" in record}
    groups: dict[tuple, list[OverlapRun]] = defaultdict(list)
    for run in runs:
        if _key(run.identity) not in done:
            # those that share pre-trained networks are run one after the other
            groups[run.task, run.approach, run.seed].append(run)
    return run_records(run_overlap, list(groups.values()), num_workers)


def overlap_table(records: Sequence[Record]) -> Table:
    """The main error of each approach at each share, mean ± standard error."""
    last = {_key(record): record for record in records if "metrics" in record}
    values: dict[tuple, dict[float | None, list[float]]] = defaultdict(dict)
    for (task, approach, share, counts, _), record in last.items():
        error = record["metrics"][record["metric"]]["mean"]
        row = values[task, joined(counts), approach, record["metric"]]
        row.setdefault(share, []).append(error)
    found = {share for row in values.values() for share in row}
    shares = sorted(found, key=lambda share: math.inf if share is None else share)
    titles = ["unpaired" if share is None else f"{share:.0%}" for share in shares]
    rows = tuple(
        (*names, *(str(over_seeds(row.get(share, []))) for share in shares))
        for names, row in sorted(values.items())
    )
    return Table(("task", "simulations", "approach", "metric", *titles), rows)


def _key(record: Record) -> tuple:
    task, approach, share, counts, seed = (
        record[name]
        for name in ("task", "approach", "share", "num_simulations", "seed")
    )
    return task, approach, share, tuple(counts), seed


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the records that a file lacks, and print a table.

    Raises:
        SystemExit: With code 1 if a run failed; all other runs are completed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    approaches = [(m, share) for m in options.methods for share in options.shares]
    approaches += [(UNPAIRED, None)] * options.unpaired
    runs = [
        OverlapRun(task, approach, share, counts, seed)
        for task in options.tasks
        for counts in options.num_simulations or [get_task(task).num_simulations]
        for approach, share in approaches
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]
    for run in runs[:: options.seeds]:  # errors of arguments are raised first
        run.build_task()
    journal = Journal(options.out, command_of(PROGRAM, given))
    failures = 0
    for record in run_overlaps(runs, options.workers, journal.records):
        record = journal.append(record)
        print(json.dumps(record), flush=True)
        failures += "error" in record
    print(overlap_table(journal.records))
    if failures:
        print(f"{failures} runs failed; the same command runs them again.")
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Error against the share of noise that sides of pairs share.",
        allow_abbrev=False,
    )
    methods = [m for m in METHODS if not hasattr(METHODS[m], "needs_observations")]
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=DEFAULT_TASKS)
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=DEFAULT_METHODS
    )
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument(
        "--unpaired", action="store_true", help=f"add {UNPAIRED}: theta differs, too"
    )
    parser.add_argument(
        "--num-simulations",
        nargs="+",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        help="of each level, e.g. 10000,100; by default those of the task",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="file of JSON lines, a record each")
    return parser


if __name__ == "__main__":
    main()
