"""Runs methods x rows x seeds of tasks."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sbi_multilevel.simulation.noise import seeded
from sbi_multilevel_benchmarks.methods import check_method, fit
from sbi_multilevel_benchmarks.metrics import summarise
from sbi_multilevel_benchmarks.pool import FailedRun, run_groups
from sbi_multilevel_benchmarks.tasks import BenchmarkTask, PosteriorTask, get_task


@dataclass(frozen=True)
class Run:
    """One training, and how it is evaluated.

    Args:
        task: Name of the task.
        method: Name of the method.
        num_simulations: Rows of each level.
        seed: Seed.
        data: File that the task reads, if it reads one.
        observations: Number of observations to judge posteriors at, the first ones; all
            if `None`.
    """

    task: str
    method: str
    num_simulations: tuple[int, ...]
    seed: int
    data: str | None = None
    observations: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What the record begins with, and is told apart by."""
        record = {key: value for key, value in asdict(self).items() if key != "data"}
        if self.observations is None:
            del record["observations"]
        return record

    def build_task(self) -> BenchmarkTask:
        """The task, with the observations asked for.

        Raises:
            ValueError: If the method cannot run on it, or it has no such levels or
                observations.
        """
        task = get_task(self.task, self.data)
        check_method(self.method, task)
        if len(self.num_simulations) != len(task.num_simulations):
            raise ValueError(
                f"num_simulations={self.num_simulations} has "
                f"{len(self.num_simulations)} numbers, but task={self.task!r} has "
                f"{len(task.num_simulations)} levels. Name rows of each level, or run "
                "tasks of other levels by another command."
            )
        if self.observations is None:
            return task
        if not isinstance(task, PosteriorTask) or self.observations < 2:
            raise ValueError(
                f"observations={self.observations} must be at least 2, as NRMSE needs "
                f"their range, and task={self.task!r} one that is scored by "
                "posteriors. Leave it out otherwise."
            )
        task.observations = task.observations[: self.observations]
        task.true_theta = task.true_theta[: self.observations]
        return task


def run_one(run: Run) -> dict[str, Any]:
    """Train and evaluate; returns a record that can be written as JSON."""
    torch.set_num_threads(1)
    task = run.build_task()
    # sbi prints when training ends, which would run into the records
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, warnings.catch_warnings(), seeded(run.seed):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        result = fit(run.method, task, run.num_simulations, run.seed)
        seconds = time.perf_counter() - start + result.seconds_before
        errors = task.evaluate(result.judged, result.trained_on)
    runs = result.runs or ()
    return {
        **run.identity,
        "metric": task.metric,
        "metrics": {metric: summarise(values) for metric, values in errors.items()},
        "runs": list(runs),
        "cost": sum(n * cost for n, cost in zip(runs, task.costs)),
        "seconds": round(seconds, 1),
        "epochs": result.num_epochs,
        "threads": torch.get_num_threads(),
    }


def run_all(
    runs: Sequence[Run],
    num_workers: int = 1,
    plugins: Sequence[str | os.PathLike] = (),
) -> Iterator[dict[str, Any]]:
    """Run all, `num_workers` at a time, each on one thread.

    Runs with the same rows of level 0 go to one worker, one after the other, so that it
    pre-trains on them once.

    Args:
        runs: What to run.
        num_workers: Processes.
        plugins: Files that register some of the tasks or methods.

    Yields:
        A record of each as it ends; that of one that fails has an `error`, and its
        traceback is printed.
    """
    groups: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.task, run.data, run.num_simulations[0], run.seed].append(run)
    for run, result in run_groups(run_one, list(groups.values()), num_workers, plugins):
        if isinstance(result, FailedRun):
            print(result.trace, file=sys.stderr, flush=True)
            # where the file lies concerns nobody else
            reason = result.reason.replace(run.data or "\0", "FILE")
            result = {**run.identity, "error": reason}
        yield result
