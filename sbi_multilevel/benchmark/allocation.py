"""Rows by a pilot against rows by rules of thumb, at equal budget."""

from __future__ import annotations

import contextlib
import io
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from sbi_multilevel import MLNLE, MultilevelSimulations
from sbi_multilevel.benchmark.methods import METHODS
from sbi_multilevel.benchmark.metrics import summarise
from sbi_multilevel.benchmark.run import plus_minus
from sbi_multilevel.benchmark.tasks import BenchmarkTask, get_task
from sbi_multilevel.budget.allocation import row_costs
from sbi_multilevel.budget.spending import BudgetedSimulations, simulate_budget
from sbi_multilevel.simulation.noise import seeded
from sbi_multilevel.trainers.tracking import SilentTracker


@dataclass(frozen=True)
class Setting:
    """What is spent on a task.

    Args:
        budget: Cost of all simulations, in the unit of the task's costs.
        pilot_simulations: Rows of each level in the pilot.
    """

    budget: float
    pilot_simulations: tuple[int, ...]


# the budgets are what the default rows of the tasks cost
SETTINGS = {
    "g-and-k": Setting(11_100.0, (1_000, 100)),
    "toggle-switch": Setting(603_000.0, (1_000, 100, 100)),
}


def equal_rows(task: BenchmarkTask, budget: float) -> tuple[int, ...]:
    """As many rows of each level."""
    count = int(budget // sum(row_costs(task.costs)))
    return (count,) * len(task.costs)


def equal_spending(task: BenchmarkTask, budget: float) -> tuple[int, ...]:
    """As much spent on each level, so that rows are inverse to their cost."""
    share = budget / len(task.costs)
    return tuple(int(share // cost) for cost in row_costs(task.costs))


RULES = {"equal rows": equal_rows, "equal spending": equal_spending}
# "high only": plain NLE on the high-fidelity rows that the budget pays
SCHEMES = ("pilot", *RULES, "high only")


@dataclass(frozen=True)
class AllocationRun:
    """One training on rows allocated by a scheme.

    Args:
        task: Name of the task.
        scheme: One of `SCHEMES`.
        seed: Seed.
    """

    task: str
    scheme: str
    seed: int


def by_pilot(task: BenchmarkTask, setting: Setting, seed: int) -> BudgetedSimulations:
    """Rows by a pilot, whose cost counts, fitted with the network of the task."""
    inference = MLNLE(
        task.prior,
        density_estimator=task.build_network(),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    return simulate_budget(
        task.simulators,
        task.prior,
        setting.budget,
        setting.pilot_simulations,
        noise=task.noise,
        seed=seed,
        inference=inference,
        costs=task.costs,
        show_progress_bars=False,
    )


def run_allocation(run: AllocationRun) -> dict[str, Any]:
    """Simulate, train and evaluate; returns a record that can be written as JSON."""
    torch.set_num_threads(1)
    task, setting = get_task(run.task), SETTINGS[run.task]
    start = time.perf_counter()
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, warnings.catch_warnings(), seeded(run.seed):
        warnings.simplefilter("ignore")
        simulations = _simulate(task, run, setting)
        torch.manual_seed(run.seed)
        method = "equal-cost" if run.scheme == "high only" else "ml"
        fit = METHODS[method](task, simulations, run.seed)
        errors = task.evaluate(fit.judged, fit.trained_on)
    rows = simulations.num_simulations
    if run.scheme == "high only":
        rows = (int((simulations.total_cost or 0.0) // task.costs[-1]),)
    record = {
        **asdict(run),
        "budget": setting.budget,
        "num_simulations": rows,
        "seconds": round(time.perf_counter() - start, 1),
        "epochs": fit.num_epochs,
        **{metric: summarise(values) for metric, values in errors.items()},
    }
    print(json.dumps(record), flush=True)
    return record


def _simulate(
    task: BenchmarkTask, run: AllocationRun, setting: Setting
) -> MultilevelSimulations:
    if run.scheme == "pilot":
        return by_pilot(task, setting, run.seed).simulations
    rule = RULES.get(run.scheme, equal_rows)
    return task.simulate(rule(task, setting.budget), run.seed)


def run_allocations(seeds: Sequence[int], num_workers: int = 1) -> list[dict[str, Any]]:
    """All tasks and schemes, `num_workers` at a time, each on one thread."""
    runs = [
        AllocationRun(task, scheme, seed)
        for task in SETTINGS
        for seed in seeds
        for scheme in SCHEMES
    ]
    parallel = Parallel(n_jobs=num_workers, batch_size=1)
    return parallel(delayed(run_allocation)(run) for run in runs)


def allocation_table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown table: mean rows, and mean error ± standard error over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["scheme"]].append(record)
    lines = ["| task | budget | rows by | rows (mean) | seeds | error | seconds |"]
    lines.append("| --- " * 7 + "|")
    for (name, scheme), group in groups.items():
        rows = np.mean([record["num_simulations"] for record in group], axis=0)
        metric = get_task(name).metric
        cells = [
            f"{name}, {metric}",
            f"{group[0]['budget']:g}",
            scheme,
            " + ".join(f"{count:.0f}" for count in rows),
            str(len(group)),
            plus_minus([record[metric]["mean"] for record in group]),
            f"{np.mean([record['seconds'] for record in group]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
