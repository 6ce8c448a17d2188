"""Numbers of simulations by a pilot and by rules of thumb, at equal budget."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from sbi_multilevel import (
    BudgetedSimulations,
    MultilevelConfig,
    MultilevelSimulations,
    simulate_budget,
)
from sbi_multilevel.allocation.optimal import simulation_costs
from sbi_multilevel_benchmarks.pool import run_records
from sbi_multilevel_benchmarks.records import Record, Table, over_seeds
from sbi_multilevel_benchmarks.registry import METHODS, get_task
from sbi_multilevel_benchmarks.run import evaluation, quiet
from sbi_multilevel_benchmarks.task import BenchmarkTask
from sbi_multilevel_benchmarks.trainers import build_trainer


@dataclass(frozen=True)
class Setting:
    """Budget of a task.

    Args:
        budget: Cost of all simulations, in the unit of the task's costs.
        pilot_simulations: Number of simulations of each level in the pilot.
    """

    budget: float
    pilot_simulations: tuple[int, ...]


# the budgets are the costs of the default numbers of simulations
SETTINGS = {
    "g-and-k": Setting(11_100.0, (1_000, 100)),
    "toggle-switch": Setting(603_000.0, (1_000, 100, 100)),
}


def equal_numbers(task: BenchmarkTask, budget: float) -> tuple[int, ...]:
    """Equal numbers of simulations of each level."""
    count = int(budget // sum(simulation_costs(task.costs)))
    return (count,) * len(task.costs)


def equal_spending(task: BenchmarkTask, budget: float) -> tuple[int, ...]:
    """Equal spending on each level: numbers are inverse to costs."""
    share = budget / len(task.costs)
    return tuple(int(share // cost) for cost in simulation_costs(task.costs))


RULES = {"equal rows": equal_numbers, "equal spending": equal_spending}
# "high only": plain NLE on the high-fidelity simulations that the budget pays
SCHEMES = ("pilot", *RULES, "high only")


@dataclass(frozen=True)
class AllocationRun:
    """A training on numbers of simulations allocated by a scheme.

    Args:
        task: Name of the task.
        scheme: One of `SCHEMES`.
        seed: Seed.
    """

    task: str
    scheme: str
    seed: int

    @property
    def identity(self) -> Record:
        """The beginning of the record, which identifies the run."""
        return asdict(self)


def by_pilot(task: BenchmarkTask, setting: Setting, seed: int) -> BudgetedSimulations:
    """Allocate by a pilot, whose cost counts, with the network of the task."""
    return simulate_budget(
        task.simulators,
        task.prior,
        setting.budget,
        setting.pilot_simulations,
        noise=task.noise,
        seed=seed,
        inference=build_trainer(task, MultilevelConfig()),
        costs=task.costs,
        show_progress_bars=False,
    )


def run_allocation(run: AllocationRun) -> Record:
    """Simulate, train and evaluate, and return the record."""
    task, setting = get_task(run.task), SETTINGS[run.task]
    start = time.perf_counter()
    with quiet(run.seed):
        simulations = _simulate(task, run, setting)
        torch.manual_seed(run.seed)
        method = "equal-cost" if run.scheme == "high only" else "ml"
        fit = METHODS[method](task, simulations, run.seed)
        evaluated = evaluation(task, fit)
    counts = simulations.num_simulations
    if run.scheme == "high only":
        counts = (int((simulations.total_cost or 0.0) // task.costs[-1]),)
    return {
        **run.identity,
        "budget": setting.budget,
        "num_simulations": list(counts),
        **evaluated,
        "seconds": round(time.perf_counter() - start, 1),
        "epochs": fit.num_epochs,
        "threads": torch.get_num_threads(),
    }


def _simulate(
    task: BenchmarkTask, run: AllocationRun, setting: Setting
) -> MultilevelSimulations:
    if run.scheme == "pilot":
        return by_pilot(task, setting, run.seed).simulations
    rule = RULES.get(run.scheme, equal_numbers)
    return task.simulate(rule(task, setting.budget), run.seed)


def run_allocations(
    seeds: Sequence[int], num_workers: int = 1, before: Sequence[Record] = ()
) -> Iterator[Record]:
    """Records of all tasks and schemes as they end, failures included.

    Args:
        seeds: Seeds.
        num_workers: Processes, each of one thread.
        before: Records of earlier runs, which are not repeated.
    """
    done = {_key(record) for record in before if "error" not in record}
    runs = [
        AllocationRun(task, scheme, seed)
        for task in SETTINGS
        for seed in seeds
        for scheme in SCHEMES
        if (task, scheme, seed) not in done
    ]
    return run_records(run_allocation, [[run] for run in runs], num_workers)


def allocation_table(records: Sequence[Record]) -> Table:
    """Mean numbers of simulations, and mean error ± standard error over seeds."""
    last = {_key(r): r for r in records if "scheme" in r and "error" not in r}
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
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
    header = ("task", "budget", "scheme", "simulations (mean)", "seeds", "error")
    return Table((*header, "seconds"), tuple(rows))


def _key(record: Record) -> tuple:
    return record["task"], record.get("scheme"), record["seed"]
