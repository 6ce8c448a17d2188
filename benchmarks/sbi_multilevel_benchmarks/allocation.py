"""Rows by a pilot against rows by rules of thumb, at equal budget."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sbi_multilevel import MLNLE, MultilevelSimulations
from sbi_multilevel.allocation.optimal import row_costs
from sbi_multilevel.allocation.spending import BudgetedSimulations, simulate_budget
from sbi_multilevel.simulation.noise import seeded
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.methods import METHODS
from sbi_multilevel_benchmarks.metrics import summarise
from sbi_multilevel_benchmarks.pool import FailedRun, run_groups
from sbi_multilevel_benchmarks.records import Table, over_seeds
from sbi_multilevel_benchmarks.tasks import BenchmarkTask, get_task


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
    return {
        **asdict(run),
        "budget": setting.budget,
        "num_simulations": list(rows),
        "metric": task.metric,
        "metrics": {metric: summarise(values) for metric, values in errors.items()},
        "seconds": round(time.perf_counter() - start, 1),
        "epochs": fit.num_epochs,
        "threads": torch.get_num_threads(),
    }


def _simulate(
    task: BenchmarkTask, run: AllocationRun, setting: Setting
) -> MultilevelSimulations:
    if run.scheme == "pilot":
        return by_pilot(task, setting, run.seed).simulations
    rule = RULES.get(run.scheme, equal_rows)
    return task.simulate(rule(task, setting.budget), run.seed)


def run_allocations(
    seeds: Sequence[int],
    num_workers: int = 1,
    before: Sequence[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """All tasks and schemes, `num_workers` at a time, each on one thread.

    Args:
        seeds: Seeds.
        num_workers: Processes.
        before: Records of what was done before, and is not done again.

    Yields:
        A record of each as it ends; that of one that fails has an `error`, and its
        traceback is printed.
    """
    done = {_identity(record) for record in before if "error" not in record}
    runs = [
        AllocationRun(task, scheme, seed)
        for task in SETTINGS
        for seed in seeds
        for scheme in SCHEMES
        if (task, scheme, seed) not in done
    ]
    groups = [[run] for run in runs]
    for run, result in run_groups(run_allocation, groups, num_workers):
        if isinstance(result, FailedRun):
            print(result.trace, file=sys.stderr, flush=True)
            result = {**asdict(run), "error": result.reason}
        yield result


def allocation_table(records: Sequence[dict[str, Any]]) -> Table:
    """Mean rows, and mean error ± standard error over seeds, by task and scheme."""
    last = {_identity(r): r for r in records if "scheme" in r and "error" not in r}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in last.values():
        groups[record["task"], record["scheme"]].append(record)
    rows = []
    for (name, scheme), group in sorted(groups.items()):
        numbers = np.mean([record["num_simulations"] for record in group], axis=0)
        metric = group[0]["metric"]
        errors = over_seeds([record["metrics"][metric]["mean"] for record in group])
        rows.append((
            f"{name}, {metric}",
            f"{group[0]['budget']:g}",
            scheme,
            " + ".join(f"{count:.0f}" for count in numbers),
            str(len(group)),
            str(errors),
            f"{np.mean([record['seconds'] for record in group]):.0f}",
        ))
    header = ("task", "budget", "rows by", "rows (mean)", "seeds", "error", "seconds")
    return Table(header, tuple(rows))


def _identity(record: dict[str, Any]) -> tuple:
    return record["task"], record.get("scheme"), record["seed"]
