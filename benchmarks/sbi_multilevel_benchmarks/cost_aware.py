r"""Simulations of a cost that depends on theta, from the prior and from a proposal.

Posteriors are trained on high-fidelity simulations of a budget: as many draws from the
prior as it pays, or from a `CostAwareProposal` with importance weights. The cost of a
simulation is measured after it was made, e.g. the number of reactions of a jump
process. The proposal knows it by `fit_cost`, from pilot simulations at draws from the
prior, whose cost is part of its budget and which are not trained on.

The metric is the mean of :math:`-\log q(\theta \mid x)` over simulations from the
prior, the same for all.

::

    python -m sbi_multilevel_benchmarks.cost_aware --output cost_aware.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel import MFNPE, OneCycle, TransferConfig
from sbi_multilevel.allocation import CostAwareProposal, fit_cost
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.journal import Journal, command_of
from sbi_multilevel_benchmarks.records import Record, Table, over_seeds
from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.run import quiet

PROGRAM = "python -m sbi_multilevel_benchmarks.cost_aware"
METHODS = ("prior", "cost-aware")
BUDGETS = (0.5, 0.7, 1.0)  # relative
_NUM_FULL = 1_000  # draws from the prior that the budget 1 pays on average
_NUM_PILOT, _NUM_TEST = 50, 1_000
_BATCH = 250


@dataclass(frozen=True)
class Draws:
    """Simulations that a budget pays.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        x: High-fidelity outputs, shape `(n, k)`.
        spent: Their cost, with that of the pilot simulations.
        weights: Importance weights, shape `(n,)`; `None` for draws from the prior.
        relative_cost: Predicted cost of an effective sample size, relative to the
            prior.
    """

    theta: Tensor
    x: Tensor
    spent: float
    weights: Tensor | None = None
    relative_cost: float = 1.0


def simulate(task: Any, method: str, budget: float, seed: int) -> Draws:
    """Draw and simulate until the budget is spent.

    Args:
        task: A task with `cost_of`, the cost of a simulation given theta and noise.
        method: One of `METHODS`.
        budget: Cost of all simulations.
        seed: Seed of theta and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    proposal, spent = task.prior, 0.0
    if method == "cost-aware":
        theta = task.prior.sample((_NUM_PILOT,))
        costs = task.cost_of(theta, task.noise(_NUM_PILOT, generator))
        proposal = CostAwareProposal(task.prior, fit_cost(theta, costs), seed=seed)
        spent = float(costs.sum())
    parts = []
    while True:
        theta = proposal.sample((_BATCH,))
        noise = task.noise(_BATCH, generator)
        total = spent + task.cost_of(theta, noise).double().cumsum(0)
        count = int((total <= budget).sum())
        parts.append((theta[:count], noise[:count]))
        spent = float(total[count - 1]) if count > 0 else spent
        if count < _BATCH:
            break
    theta, noise = (torch.cat(each) for each in zip(*parts))
    x = task.simulators[-1](theta, noise)
    if not isinstance(proposal, CostAwareProposal):
        return Draws(theta, x, spent)
    return Draws(theta, x, spent, proposal.weights(theta), proposal.relative_cost)


def run_one(name: str, method: str, budget: float, seed: int) -> Record:
    """Train and evaluate, and return the record."""
    with quiet(seed):
        task: Any = get_task(name)
        test_theta, test_x = task.simulate_high(_NUM_TEST, seed=10_000)
        mean_cost = mean_cost_of(name)
        draws = simulate(task, method, budget * _NUM_FULL * mean_cost, seed)
        trainer = MFNPE(
            task.prior,
            density_estimator="maf",
            config=TransferConfig(schedule=OneCycle()),
            tracker=SilentTracker(),
            show_progress_bars=False,
        )
        weights = torch.ones(len(draws.x)) if draws.weights is None else draws.weights
        trainer.append_weighted_simulations(draws.theta, draws.x, weights)
        estimator = trainer.train().eval()
        with torch.no_grad():
            nltp = -estimator.log_prob(test_theta[None], condition=test_x)
    return {
        "task": name,
        "approach": method,
        "budget_share": budget,
        "seed": seed,
        "num_simulations": len(draws.x),
        "spent": draws.spent / (_NUM_FULL * mean_cost),
        "relative_cost": draws.relative_cost,
        "nltp": float(nltp.mean()),
    }


@cache
def mean_cost_of(name: str) -> float:
    """Mean cost of a draw from the prior, from 1 000 draws."""
    task: Any = get_task(name)
    with seeded(20_000):
        theta = task.prior.sample((1_000,))
    noise = task.noise(len(theta), torch.Generator().manual_seed(20_000))
    return float(task.cost_of(theta, noise).double().mean())


def cost_table(records: Sequence[Record]) -> Table:
    """NLTP by task and budget, for each method, and the difference paired by seed."""
    found = {
        (r["task"], r["budget_share"], r["approach"], r["seed"]): r for r in records
    }
    rows = []
    for task, budget in sorted({key[:2] for key in found}):
        by_method = {
            m: {k[3]: r for k, r in found.items() if k[:3] == (task, budget, m)}
            for m in METHODS
        }
        values = [
            over_seeds([r["nltp"] for r in each.values()])
            for each in by_method.values()
        ]
        first, second = by_method.values()
        gaps = [second[s]["nltp"] - first[s]["nltp"] for s in first if s in second]
        rows.append((task, f"{budget:g}", *map(str, values), str(over_seeds(gaps))))
    return Table(("task", "budget", *METHODS, "difference"), tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the records that a file lacks, and print the table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["lotka-volterra", "heat"])
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(given)
    journal = Journal(options.output, command_of(PROGRAM, given))
    known = {_key(record) for record in journal.records}
    wanted = product(options.tasks, range(options.seeds), options.budgets, METHODS)
    for task, seed, budget, method in wanted:
        if (task, method, budget, seed) not in known:
            record = journal.append(run_one(task, method, budget, seed))
            print(json.dumps(record), flush=True)
    print(cost_table(journal.records))


def _key(record: Record) -> tuple[str, str, float, int]:
    return (
        record["task"],
        record["approach"],
        record["budget_share"],
        record["seed"],
    )


if __name__ == "__main__":
    main()
