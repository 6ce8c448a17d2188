"""Runs methods x rows x seeds of a task, and reports mean ± standard error."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from sbi_multilevel.benchmark.methods import fit
from sbi_multilevel.benchmark.metrics import summarise
from sbi_multilevel.benchmark.tasks import get_task
from sbi_multilevel.simulation.noise import seeded


@dataclass(frozen=True)
class Run:
    """One training: a task, a method, rows of each level, and a seed."""

    task: str
    method: str
    num_simulations: tuple[int, ...]
    seed: int
    data: str | None = None


def run_one(run: Run) -> dict[str, Any]:
    """Train and evaluate; returns a record that can be written as JSON."""
    torch.set_num_threads(1)
    task = get_task(run.task, run.data)
    with warnings.catch_warnings(), seeded(run.seed):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        result = fit(run.method, task, run.num_simulations, run.seed)
        seconds = time.perf_counter() - start
        errors = task.evaluate(result.estimator, result.trained_on)
    record = {key: value for key, value in asdict(run).items() if key != "data"}
    return {
        **record,
        "seconds": round(seconds, 1),
        "epochs": result.num_epochs,
        **{metric: summarise(values) for metric, values in errors.items()},
    }


def run_all(runs: Sequence[Run], num_workers: int = 1) -> list[dict[str, Any]]:
    """Run all, `num_workers` at a time, each on one thread."""
    parallel = Parallel(n_jobs=num_workers, return_as="generator")
    records = []
    for record in parallel(delayed(run_one)(run) for run in runs):
        records.append(record)
        print(json.dumps(record), flush=True)
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
    metrics = [key for key, value in records[0].items() if isinstance(value, dict)]
    columns = [
        f"{m} ({statistic})" for m in metrics for statistic in ("mean", "median")
    ]
    header = ["task", "rows", "method", "seeds", *columns, "seconds"]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for (task, rows, method), group in groups.items():
        cells = [
            plus_minus([record[metric][statistic] for record in group])
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
    """`mean ± standard error` over seeds."""
    mean = np.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"
