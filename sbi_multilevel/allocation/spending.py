r"""Spends a budget: pilot, allocation, and a second look on the way.

1. A pilot (`sbi_multilevel.allocation.pilot`) gives costs :math:`C_l` and variances
   :math:`V_l`.
2. The rows that are best for about half of what is left are simulated
   (`sbi_multilevel.allocation.optimal`).
3. Variances are estimated again with all rows, and the rest is spent. Where costs are
   measured they fluctuate, so the rest is spent in parts, the costs averaged anew after
   each: the last part, a tenth of it, is what a wrong cost can still spoil.

Rows are never discarded: an allocation only adds to those that exist, also to those
that a store held before. With a store the number of rows of every step is written to a
file beside it before they are simulated; the same call goes on from there after a kill.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sbi_multilevel.allocation.advice import Advice
from sbi_multilevel.allocation.extra_runs import digest
from sbi_multilevel.allocation.growing import GrowingSimulations, Source
from sbi_multilevel.allocation.measuring import Measuring
from sbi_multilevel.allocation.optimal import allocate, check_budget, row_costs
from sbi_multilevel.allocation.pilot import MIN_ROWS, Pilot, run_pilot
from sbi_multilevel.allocation.quick_fit import Inference
from sbi_multilevel.allocation.step_log import SpendingLog, SpendingStep
from sbi_multilevel.allocation.variances import Method
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.utils.argument_types import check_types

# share of what is left that each step spends
_SHARES_GIVEN, _SHARES_MEASURED = (0.5, 1.0), (0.5, 0.8, 1.0)
# rows that are timed before a pilot whose cost is unknown
_TIMED_ROWS = 3


@dataclass(frozen=True, eq=False)
class BudgetedSimulations:
    """Simulations for a budget, and how it was spent.

    Args:
        simulations: The rows, for `append_multilevel_simulations`.
        num_simulations: Rows of each level, those that failed included.
        budget: What was to be spent.
        spent: What was: all rows, failed ones and those beside the pilot included.
        pilot: The pilot, as it was after its own rows.
        estimates: The same with all rows; its variances are those of the first step.
        steps: What was asked for after the pilot, and on what grounds.
        advice: Which levels are worth having at this budget.
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
            f"{self.num_simulations} rows, {self.pilot.num_simulations} of them as a "
            "pilot.",
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
    r"""Simulate as many rows of each level as are best for a budget.

    The variance :math:`\sum_l V_l / n_l` of the multilevel loss is made least at the
    cost :math:`\sum_l n_l c_l` that is left after the runs beside the pilot. Levels
    stay as they are: where leaving some out would be better, a warning and `advice` say
    so. Rows that the store holds already are kept and count as spent.

    Args:
        simulators: One a level, cheapest first.
        prior: Prior over theta.
        budget: What all simulations together may cost, the pilot included, in the unit
            of `costs` (seconds in a simulator if these are measured). With given costs
            it is never exceeded.
        pilot_simulations: Rows of each level in the pilot, at least 10 each.
        noise: Noise sampler, as of `simulate_multilevel`.
        seed: Root seed of simulations and fits.
        inference: As of `pilot`.
        method: As of `pilot`; with "norm" the variances of the pilot are kept.
        num_folds: As of `pilot`.
        train_options: As of `pilot`.
        simulation_batch_size: As of `simulate_multilevel`.
        num_workers: As of `simulate_multilevel`.
        costs: Cost of a run of each simulator; measured, in seconds, by default.
        store: As of `simulate_multilevel`. The same call goes on after a kill; one with
            a larger budget adds to the rows.
        timeout: As of `simulate_multilevel`.
        max_failure_share: As of `simulate_multilevel`.
        show_progress_bars: Whether to show a progress bar a level.

    Returns:
        Rows and report.

    Raises:
        ValueError: If the arguments do not fit, or the budget does not pay the pilot.
        TooManyFailures: If a larger share of rows fails than is allowed.

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
    source = Source(
        tuple(simulators),
        prior,
        noise,
        seed,
        simulation_batch_size,
        num_workers,
        None if costs is None else tuple(costs),
        store,
        timeout,
        max_failure_share,
        show_progress_bars,
    )
    source.check_rows("pilot_simulations", pilot_simulations, MIN_ROWS)
    measuring = Measuring(source, inference, method, num_folds, train_options or {})
    spending = _Spending(source, measuring, budget, tuple(pilot_simulations))
    result = spending.run()
    if result.advice.warning is not None:
        warnings.warn(result.advice.warning, stacklevel=2)
    return result


class _Spending:
    """One budget being spent."""

    def __init__(
        self, source: Source, measuring: Measuring, budget: float, rows: tuple[int, ...]
    ):
        self._source, self._measuring, self._budget = source, measuring, budget
        self._pilot_rows = rows
        self._growing = GrowingSimulations(source)
        self._existing = self._growing.existing()

    def run(self) -> BudgetedSimulations:
        """Pilot, then step after step."""
        self._check_pilot_is_paid()
        pilot, extra = run_pilot(self._growing, self._pilot_rows, self._measuring)
        log = self._log(pilot)
        estimates, counts, steps = pilot, self._pilot_rows, list[SpendingStep]()
        shares = _SHARES_GIVEN if self._source.costs else _SHARES_MEASURED
        for index, share in enumerate(shares):
            step = log.step(index) or self._next(estimates, counts, share)
            if step is None:
                break
            log.write(index, step)
            counts = step.num_simulations
            simulations = self._growing.simulate(counts)
            steps.append(step)
            assert simulations.costs is not None
            estimates = replace(
                estimates,
                simulations=simulations,
                num_simulations=counts,
                costs=simulations.costs,
                cost=self._cost(counts, simulations.costs),
            )
            if index == 0 and self._measuring.method == "loss":
                measured = self._measuring.measure(simulations, extra)
                estimates = replace(estimates, measurements=measured)
        return BudgetedSimulations(
            estimates.simulations,
            counts,
            self._budget,
            estimates.cost,
            pilot,
            estimates,
            tuple(steps),
            estimates.advise(self._budget),
        )

    def _next(
        self, estimates: Pilot, counts: tuple[int, ...], share: float
    ) -> SpendingStep | None:
        """Rows for a share of what is left; `None` if nothing more can be bought."""
        # rows of the store that this run did not ask for exist all the same
        least = tuple(np.maximum(counts, self._existing).tolist())
        spent = self._cost(least, estimates.costs)
        affordable = spent + share * (self._budget - spent)
        if spent >= self._budget and least == counts:
            return None
        beside = self._measuring.extra_cost(self._pilot_rows, estimates.costs)
        asked = least
        if affordable > spent:
            asked = allocate(
                estimates.costs, estimates.variances, affordable - beside, least
            )
        return SpendingStep(asked, estimates.costs, estimates.variances)

    def _cost(self, counts: Sequence[int], costs: Sequence[float]) -> float:
        beside = self._measuring.extra_cost(self._pilot_rows, costs)
        return beside + float(np.dot(row_costs(costs), counts))

    def _log(self, pilot: Pilot) -> SpendingLog:
        """The log of earlier runs that were asked for the same."""
        store, costs = self._source.store, self._source.costs
        path = None if store is None else Path(f"{os.fspath(store)}.budget.json")
        key = {
            "budget": self._budget,
            "method": self._measuring.method,
            "costs": None if costs is None else list(costs),
            "pilot": digest(pilot.simulations),
        }
        return SpendingLog(path, key)

    def _check_pilot_is_paid(self) -> None:
        costs = self._source.costs
        if costs is None:
            few = tuple(min(_TIMED_ROWS, n) for n in self._pilot_rows)
            costs = self._growing.simulate(few).costs
        assert costs is not None
        needed = self._cost(self._pilot_rows, costs)
        if needed > self._budget:
            raise ValueError(
                f"budget={self._budget:.6g} does not pay the pilot: "
                f"pilot_simulations={self._pilot_rows} cost {needed:.6g}, the runs "
                "beside them included. Raise the budget, or take fewer rows."
            )
