r"""Spends a budget: pilot, allocation, and a second estimate.

1. A pilot (`sbi_multilevel.allocation.pilot`) gives costs :math:`C_l` and variances
   :math:`V_l`.
2. The optimal numbers of simulations for about half of the remaining budget are run
   (`sbi_multilevel.allocation.optimal`).
3. Variances are estimated again with all simulations, and the rest is spent. Measured
   costs fluctuate, so then the rest is spent in parts, with costs averaged again after
   each: a wrong cost affects only the last part, a tenth of the remaining budget.

Simulations are never discarded: an allocation only adds to the existing ones, including
those that a store held before. With a store the numbers of each step are written to a
file next to it before the simulations are run; the same call resumes an interrupted
run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbi_multilevel.allocation.advice import Advice
from sbi_multilevel.allocation.measuring import Measuring, digest
from sbi_multilevel.allocation.optimal import allocate, check_budget
from sbi_multilevel.allocation.pilot import Pilot, check_numbers, estimated
from sbi_multilevel.allocation.quick_fit import Inference
from sbi_multilevel.allocation.step_log import SpendingLog, SpendingStep
from sbi_multilevel.allocation.variances import Method
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.simulation.arguments import per_level
from sbi_multilevel.simulation.filling import RunOptions
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.utils.argument_types import check_types

# share of the remaining budget that each step spends
_SHARES_GIVEN, _SHARES_MEASURED = (0.5, 1.0), (0.5, 0.8, 1.0)
# simulations of each level that are timed before a pilot of unknown cost
_NUM_TIMED = 3


@dataclass(frozen=True, eq=False)
class BudgetedSimulations:
    """Simulations for a budget, and how it was spent.

    Args:
        simulations: The simulations, for `append_multilevel_simulations`.
        num_simulations: Number of simulations of each level, including failed ones.
        budget: The budget.
        spent: Cost of all runs, including failed ones and the extra runs of the pilot.
        pilot: The pilot, from its own simulations.
        estimates: The same from all simulations, with the variances of the first step.
        steps: The numbers of simulations after the pilot, with costs and variances.
        advice: Which levels to use at this budget.
    """

    simulations: MultilevelSimulations
    num_simulations: tuple[int, ...]
    budget: float
    spent: float
    pilot: Pilot
    estimates: Pilot
    steps: tuple[SpendingStep, ...]
    advice: Advice

    def __str__(self) -> str:
        lines = [
            f"Spent {self.spent:.6g} of {self.budget:.6g} on "
            f"{self.num_simulations} simulations, {self.pilot.num_simulations} of them "
            "as a pilot.",
            self.estimates.table(),
            str(self.advice),
        ]
        return "\n".join(lines)


def simulate_budget(
    simulators: Sequence[Simulator],
    prior: Any,
    budget: float,
    pilot_simulations: Sequence[int],
    *,
    noise: NoiseSampler | None = None,
    seed: int = 0,
    inference: Inference | None = None,
    method: Method = "loss",
    num_folds: int = 2,
    train_options: Mapping[str, Any] | None = None,
    simulation_batch_size: int | Sequence[int] = 1_000,
    num_workers: int | None = None,
    costs: Sequence[float] | None = None,
    store: str | os.PathLike | None = None,
    timeout: float | None = None,
    max_failure_share: float = 0.2,
    show_progress_bars: bool = True,
) -> BudgetedSimulations:
    r"""Run the optimal numbers of simulations of each level for a budget.

    The variance :math:`\sum_l V_l / n_l` of the multilevel loss is minimized at the
    cost :math:`\sum_l n_l c_l` that remains after the extra runs of the pilot. All
    levels are used: if leaving some out would be better, a warning and `advice` report
    this. Existing simulations of a store are kept and count as spent.

    Args:
        simulators: One per level, the lowest fidelity first.
        prior: Prior over theta.
        budget: Cost of all simulations, including the pilot, in the unit of `costs`
            (seconds in a simulator if these are measured). With given costs it is never
            exceeded.
        pilot_simulations: Number of simulations of each level in the pilot, at least
            10 each.
        noise: Noise sampler, as of `simulate_multilevel`.
        seed: Root seed of simulations and fits.
        inference: As of `pilot`.
        method: As of `pilot`; with "norm" the variances of the pilot are kept.
        num_folds: As of `pilot`.
        train_options: As of `pilot`.
        simulation_batch_size: As of `simulate_multilevel`.
        num_workers: As of `simulate_multilevel`.
        costs: Cost of one run of each simulator; the measured seconds by default.
        store: As of `simulate_multilevel`. The same call resumes an interrupted run; a
            call with a larger budget adds simulations.
        timeout: As of `simulate_multilevel`.
        max_failure_share: As of `simulate_multilevel`.
        show_progress_bars: Whether to show one progress bar per level.

    Returns:
        Simulations and report.

    Raises:
        ValueError: If the arguments do not fit, or the budget is below the cost of the
            pilot.
        TooManyFailures: If a larger share of simulations fails than allowed.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import simulate_budget
        >>> def coarse(theta, noise):
        ...     return theta + noise
        >>> def fine(theta, noise):
        ...     return theta + 0.1 * theta**3 + noise
        >>> done = simulate_budget(
        ...     [coarse, fine],
        ...     BoxUniform(-torch.ones(1), torch.ones(1)),
        ...     budget=2_000.0,
        ...     pilot_simulations=(200, 20),
        ...     noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        ...     costs=(1.0, 10.0),
        ...     train_options={"max_num_epochs": 2},
        ...     show_progress_bars=False,
        ... )
        >>> 1_990 < done.spent <= 2_000
        True
    """
    check_types(simulate_budget, locals())
    check_budget(budget)
    sizes = per_level(simulation_batch_size, len(simulators))
    options = RunOptions(
        sizes, num_workers, max_failure_share, show_progress_bars, timeout, costs
    )
    check_numbers("pilot_simulations", pilot_simulations, len(simulators))
    growing = GrowingSimulations(tuple(simulators), prior, noise, seed, store, options)
    measuring = Measuring(
        growing, pilot_simulations, inference, method, num_folds, train_options or {}
    )
    result = _spend(measuring, budget)
    if result.advice.warning is not None:
        warnings.warn(result.advice.warning, stacklevel=2)
    return result


def _spend(measuring: Measuring, budget: float) -> BudgetedSimulations:
    """Run the pilot, then each step."""
    existing = measuring.growing.existing()
    _check_budget_covers_pilot(measuring, budget)
    pilot = estimates = estimated(measuring, measuring.num_simulations)
    log, steps = _log(measuring, budget, pilot), list[SpendingStep]()
    is_given = measuring.growing.options.costs is not None
    for index, share in enumerate(_SHARES_GIVEN if is_given else _SHARES_MEASURED):
        # the store may hold simulations that this run did not request
        least = tuple(np.maximum(estimates.num_simulations, existing).tolist())
        step = log.step(index) or _next(measuring, budget, estimates, least, share)
        if step is None:
            break
        log.write(index, step)
        steps.append(step)
        again = index == 0 and measuring.method == "loss"
        known = None if again else estimates.measurements
        estimates = estimated(measuring, step.num_simulations, known)
    return BudgetedSimulations(
        estimates.simulations,
        estimates.num_simulations,
        budget,
        estimates.cost,
        pilot,
        estimates,
        tuple(steps),
        estimates.advise(budget),
    )


def _next(
    measuring: Measuring,
    budget: float,
    estimates: Pilot,
    least: tuple[int, ...],
    share: float,
) -> SpendingStep | None:
    """The numbers for a share of the remaining budget; `None` if it is spent."""
    costs, variances = estimates.costs, estimates.variances
    spent = measuring.cost(least, costs)
    if spent >= budget:
        is_known = least == estimates.num_simulations
        return None if is_known else SpendingStep(least, costs, variances)
    affordable = spent + share * (budget - spent) - measuring.extra_cost(costs)
    numbers = allocate(costs, variances, affordable, least)
    return SpendingStep(numbers, costs, variances)


def _log(measuring: Measuring, budget: float, pilot: Pilot) -> SpendingLog:
    """The log of earlier runs with the same arguments."""
    store, costs = measuring.growing.store, measuring.growing.options.costs
    path = None if store is None else Path(f"{os.fspath(store)}.budget.json")
    key = {
        "budget": budget,
        "method": measuring.method,
        "costs": None if costs is None else list(costs),
        "pilot": digest(pilot.simulations),
    }
    return SpendingLog(path, key)


def _check_budget_covers_pilot(measuring: Measuring, budget: float) -> None:
    costs = measuring.growing.options.costs
    if costs is None:
        few = tuple(min(_NUM_TIMED, n) for n in measuring.num_simulations)
        _, costs = measuring.simulate(few)
    needed = measuring.cost(measuring.num_simulations, costs)
    if needed > budget:
        raise ValueError(
            f"budget={budget:.6g} is below the cost of the pilot: "
            f"pilot_simulations={measuring.num_simulations} cost {needed:.6g}, "
            "including extra runs. Raise the budget, or use fewer simulations."
        )
