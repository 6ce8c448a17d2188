"""Runs methods x numbers of simulations x seeds of tasks."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.fit import Fit, runs_of
from sbi_multilevel_benchmarks.metrics import summarize
from sbi_multilevel_benchmarks.pool import run_records
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.records import Record, finished, key
from sbi_multilevel_benchmarks.registry import get_method, get_task
from sbi_multilevel_benchmarks.task import BenchmarkTask


@dataclass(frozen=True)
class Run:
    """A training, and its evaluation.

    Args:
        task: Name of the task.
        method: Name of the method.
        num_simulations: Number of simulations of each level.
        seed: Seed.
        data: File that the task reads, if any.
        observations: Number of observations that posteriors are evaluated at, the first
            ones; all if `None`.
    """

    task: str
    method: str
    num_simulations: tuple[int, ...]
    seed: int
    data: str | None = None
    observations: int | None = None

    @property
    def identity(self) -> Record:
        """The beginning of the record, which identifies the run."""
        record = {key: value for key, value in asdict(self).items() if key != "data"}
        if self.observations is None:
            del record["observations"]
        return record

    def build_task(self) -> BenchmarkTask:
        """The task, with the first observations only if these are limited.

        Raises:
            ValueError: If the method cannot run on the task, or the task has other
                levels or no such observations.
        """
        task = get_task(self.task, self.data)
        check_method(self.method, task)
        if len(self.num_simulations) != len(task.num_simulations):
            raise ValueError(
                f"num_simulations={self.num_simulations} has "
                f"{len(self.num_simulations)} numbers, but task={self.task!r} has "
                f"{len(task.num_simulations)} levels. Pass a number for each level, "
                "and run tasks with other levels by another command."
            )
        if self.observations is None:
            return task
        if not isinstance(task, PosteriorTask) or self.observations < 2:
            raise ValueError(
                f"observations={self.observations} must be at least 2, as NRMSE needs "
                f"their range, and task={self.task!r} must evaluate posteriors. Leave "
                "the option out, or choose another task."
            )
        task.observations = task.observations[: self.observations]
        task.true_theta = task.true_theta[: self.observations]
        return task


def check_method(method: str, task: BenchmarkTask) -> None:
    """Raise if a method cannot run on a task.

    Raises:
        ValueError: If the method needs observations, a level, or settings of the
            reference code, that the task does not have.
    """
    how, is_posterior_task = get_method(method), isinstance(task, PosteriorTask)
    needs_observations = getattr(how, "needs_observations", False)
    if needs_observations and not is_posterior_task:
        raise ValueError(
            f"method={method!r} infers one observation after another, but task="
            f"{task.name!r} evaluates density estimators, without observations. Choose "
            "a task that evaluates posteriors, or another method."
        )
    level = getattr(how, "level", None)
    if level is not None and level > task.highest_level:
        raise ValueError(
            f"method={method!r} simulates level {level}, but the highest level of task="
            f"{task.name!r} is {task.highest_level}. Choose 'equal-cost', or a task "
            "with more levels."
        )
    needs_settings = getattr(how, "needs_paper_settings", False)
    if needs_settings and is_posterior_task:
        raise ValueError(
            f"method={method!r} needs the settings of the reference code of ML-NPE, "
            f"which has no task={task.name!r}. Choose 'ml', or another task."
        )


def fit(method: str, task: BenchmarkTask, n: tuple[int, ...], seed: int) -> Fit:
    """Simulate and train, both seeded.

    Args:
        method: Name of a method.
        task: The task.
        n: Number of simulations of each level.
        seed: Seed of the simulations, the network and the order of batches.

    Raises:
        ValueError: If the method cannot run on the task.
    """
    check_method(method, task)
    simulations = task.simulate(n, seed)
    torch.manual_seed(seed)
    result = get_method(method)(task, simulations, seed)
    return replace(result, runs=result.runs or runs_of(simulations))


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """One thread, a seed, and no output that would mix with the records."""
    torch.set_num_threads(1)
    silent = contextlib.redirect_stdout(io.StringIO())
    with silent, warnings.catch_warnings(), seeded(seed):
        warnings.simplefilter("ignore")
        yield


def evaluation(task: BenchmarkTask, result: Fit) -> Record:
    """The part of a record with the metrics of a fit."""
    errors = task.evaluate(result.evaluated, result.trained_on)
    metrics = {metric: summarize(values) for metric, values in errors.items()}
    return {"metric": task.metric, "metrics": metrics}


def run_one(run: Run) -> Record:
    """Train and evaluate, and return the record."""
    task = run.build_task()
    with quiet(run.seed):
        start = time.perf_counter()
        result = fit(run.method, task, run.num_simulations, run.seed)
        seconds = time.perf_counter() - start + result.seconds_before
        evaluated = evaluation(task, result)
    return {**run.identity, **evaluated, **effort(task, result, seconds)}


def effort(task: BenchmarkTask, result: Fit, seconds: float) -> Record:
    """The part of a record with the runs of simulators, their cost, and the time."""
    runs = result.runs or ()
    return {
        "runs": list(runs),
        "cost": sum(n * cost for n, cost in zip(runs, task.costs)),
        "seconds": round(seconds, 1),
        "epochs": result.num_epochs,
        "threads": torch.get_num_threads(),
    }


def missing(runs: Sequence[Run], records: Sequence[Record]) -> list[Run]:
    """The runs without a record of success.

    Args:
        runs: The runs.
        records: Records, failures included.

    Raises:
        ValueError: If one of them cannot run, before anything is run.
    """
    done = {key(record) for record in finished(records)}
    left = [run for run in runs if key(run.identity) not in done]
    if len(left) < len(runs):
        num_done = len(runs) - len(left)
        print(f"{num_done} runs were done before.", file=sys.stderr, flush=True)
    for run in {(r.task, r.method, r.num_simulations): r for r in left}.values():
        run.build_task()
    return left


def run_all(
    runs: Sequence[Run],
    num_workers: int = 1,
    plugins: Sequence[str | os.PathLike] = (),
) -> Iterator[Record]:
    """Records of all runs as they end, failures included.

    Runs with the same simulations of level 0 are run by one process, one after the
    other, so that networks are pre-trained on them once.

    Args:
        runs: The runs.
        num_workers: Processes, each of one thread.
        plugins: Files that register some of the tasks or methods.
    """
    groups: dict[tuple, list[Any]] = defaultdict(list)
    for run in runs:
        groups[run.task, run.data, run.num_simulations[0], run.seed].append(run)
    return run_records(run_one, list(groups.values()), num_workers, plugins)
