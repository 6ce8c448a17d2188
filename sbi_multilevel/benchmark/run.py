"""Runs methods x rows x seeds of a task, and reports mean ± standard error."""

from __future__ import annotations

import contextlib
import io
import json
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from sbi_multilevel.benchmark.methods import check_method, fit
from sbi_multilevel.benchmark.metrics import summarise
from sbi_multilevel.benchmark.tasks import BenchmarkTask, PosteriorTask, get_task
from sbi_multilevel.simulation.noise import seeded


@dataclass(frozen=True)
class Run:
    """One training, and how it is judged.

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

    def build_task(self) -> BenchmarkTask:
        """The task, with the observations asked for.

        Raises:
            ValueError: If the method cannot run on it, or it has no such observations.
        """
        task = get_task(self.task, self.data)
        check_method(self.method, task)
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
    record = {key: value for key, value in asdict(run).items() if key != "data"}
    if run.observations is None:
        del record["observations"]
    return {
        **record,
        "seconds": round(seconds, 1),
        "epochs": result.num_epochs,
        **{metric: summarise(values) for metric, values in errors.items()},
    }


def run_all(runs: Sequence[Run], num_workers: int = 1) -> list[dict[str, Any]]:
    """Run all, `num_workers` at a time, each on one thread.

    Runs with the same rows of level 0 go to one worker, one after the other, so that it
    pre-trains on them once. Each record is printed as it comes.

    Args:
        runs: What to run.
        num_workers: Processes.

    Returns:
        Records, in the order of `runs`.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        groups[run.task, run.data, run.num_simulations[0], run.seed].append(index)
    parallel = Parallel(n_jobs=num_workers, batch_size=1, return_as="generator")
    parts = parallel(
        delayed(_run_group)([runs[index] for index in group])
        for group in groups.values()
    )
    indices = [index for group in groups.values() for index in group]
    records = chain.from_iterable(parts)
    return [record for _, record in sorted(zip(indices, records), key=lambda p: p[0])]


def _run_group(runs: Sequence[Run]) -> list[dict[str, Any]]:
    records = []
    for run in runs:
        records.append(run_one(run))
        print(json.dumps(records[-1]), flush=True)
    return records


def write(path: Path, records: Sequence[dict[str, Any]], command: str) -> None:
    """Write records with the versions and the command that made them."""
    packages = ("sbi_multilevel", "sbi", "torch", "nflows", "zuko", "numpy")
    content = {
        "command": command,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "records": list(records),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown table: mean over test points, mean ± standard error over seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        key = (record["task"], tuple(record["num_simulations"]), record["method"])
        groups[key].append(record)
    # not all methods have all metrics
    metrics = list(
        dict.fromkeys(
            key
            for record in records
            for key, value in record.items()
            if isinstance(value, dict)
        )
    )
    columns = [
        f"{m} ({statistic})" for m in metrics for statistic in ("mean", "median")
    ]
    header = ["task", "rows", "method", "seeds", *columns, "seconds"]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for (task, rows, method), group in groups.items():
        cells = [
            plus_minus([r[metric][statistic] for r in group if metric in r])
            for metric in metrics
            for statistic in ("mean", "median")
        ]
        seconds = f"{np.mean([record['seconds'] for record in group]):.0f}"
        row = [
            task,
            " + ".join(map(str, rows)),
            method,
            str(len(group)),
            *cells,
            seconds,
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def plus_minus(values: Sequence[float]) -> str:
    """`mean ± standard error` over seeds; a dash where there are none."""
    if len(values) == 0:
        return "-"
    mean = np.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"
