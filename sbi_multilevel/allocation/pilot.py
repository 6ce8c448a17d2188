r"""A pilot run: what each level costs, and how much it tells.

A few rows of each level give the cost :math:`C_l` of a run and the variances
:math:`V_l = \mathrm{Var}[f_l - f_{l-1}]` (`sbi_multilevel.allocation.variances`), which
say how to spend a budget (`sbi_multilevel.allocation.optimal`). At the theta and noise
of its rows the pilot also runs the simulators further below, which cost little beside
the row itself, so that :math:`\mathrm{Var}[f_l - f_k]` is known for all :math:`k < l`
and it can be judged whether a level is worth having (`sbi_multilevel.allocation.advice`).

Variances of a loss have heavy tails: a handful of rows may carry most of them. The
bootstrap intervals say how far an estimate can be trusted, but are too short
themselves where few rows carry it: of nominal 95 % intervals from 200 rows some 90 %
contain the variance of chi-squared numbers, and 80 % that of log-normal ones. A wrong
allocation costs little all the same: with :math:`n_0 / n_1` off by a factor of 1.5 the
variance of the loss of two levels rises by 4 % at most. Pilots of 1 000 rows of level 0
and 100 of each level above came within 4 to 10 % (g-and-k) and 4 to 10 % (toggle
switch) of the variance that a pilot of 20 000 and 5 000 rows would reach, means over 12
and over 5 other seeds, and within 31 % at worst; equal spending comes within 17 % and
12 %, as many rows of each level within 57 % and 27 %. Verdicts on levels are less
stable than allocations: where few rows carry a variance, resampling cannot know of
those that are missing, and no interval knows that another fit would give other losses:
with 20 rows of the top level, ``num_folds`` of 2, 3 and 4 gave variances that differ
tenfold (tutorial on budgets). Try several before you rely on one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbi_multilevel.allocation.advice import Advice, advise
from sbi_multilevel.allocation.extra_runs import ExtraRuns
from sbi_multilevel.allocation.growing import GrowingSimulations, Source
from sbi_multilevel.allocation.measuring import Measuring
from sbi_multilevel.allocation.optimal import allocate, check_costs, row_costs
from sbi_multilevel.allocation.quick_fit import Inference
from sbi_multilevel.allocation.variances import Measurements, Method, Triangle
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.utils.argument_types import check_types

MIN_ROWS = 10
_NUM_RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Pilot:
    r"""What a pilot found.

    Args:
        simulations: Its rows: the first ones that `simulate_multilevel` makes with the
            same seed, so that a longer run repeats them (or goes on, with a store).
        num_simulations: Rows of each level, those that failed included.
        costs: Cost :math:`C_l` of one run of each simulator.
        cost: Cost of the pilot, the runs beside its rows included.
        measurements: What its rows say about each pair of levels.
    """

    simulations: MultilevelSimulations
    num_simulations: tuple[int, ...]
    costs: tuple[float, ...]
    cost: float
    measurements: Measurements

    @property
    def difference_variances(self) -> Triangle:
        r"""Row l holds :math:`\mathrm{Var}[f_l - f_k]` for k < l, last Var f_l."""
        return self.measurements.triangle()

    @property
    def variances(self) -> tuple[float, ...]:
        r"""The variance of each term of the loss.

        :math:`V_0 = \mathrm{Var} f_0` and :math:`V_l = \mathrm{Var}[f_l - f_{l-1}]`;
        with the method "norm" up to a common factor.
        """
        table = self.difference_variances
        return tuple(row[max(level - 1, 0)] for level, row in enumerate(table))

    def intervals(self, confidence: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Bootstrap interval of each of `variances` (see the module: too short).

        Args:
            confidence: Its nominal level, in (0, 1).
        """
        check_types(Pilot.intervals, locals())
        pairs = [(level, max(level - 1, 0)) for level in range(len(self.costs))]
        return tuple(self.measurements.interval(p, confidence) for p in pairs)

    def allocate(self, budget: float) -> tuple[int, ...]:
        """Rows of each level for a budget, never fewer than the pilot made.

        Args:
            budget: Cost of all rows, those of the pilot included.

        Raises:
            ValueError: If it does not pay the pilot.
        """
        check_types(Pilot.allocate, locals())
        beside = self.cost - float(np.dot(row_costs(self.costs), self.num_simulations))
        return allocate(
            self.costs, self.variances, budget - beside, self.num_simulations
        )

    def advise(self, budget: float) -> Advice:
        """Which levels are worth having, and how far resampled rows agree.

        Args:
            budget: Cost of all rows.
        """
        check_types(Pilot.advise, locals())
        advice = advise(self.costs, self.difference_variances, budget)
        rng = np.random.default_rng(0)
        agreeing = 0
        for _ in range(_NUM_RESAMPLES):
            triangle = self.measurements.resampled(rng)
            resampled = advise(self.costs, triangle, budget)
            of = {plan.levels: plan.error_variance for plan in resampled.plans}
            agreeing += of[advice.best.levels] < of[advice.full.levels]
        return advise(
            self.costs, self.difference_variances, budget, agreeing / _NUM_RESAMPLES
        )

    def table(self) -> str:
        """Rows, cost and variance of each level, as text."""
        name = "V" if self.measurements.method == "loss" else "V (bound)"
        lines = [f"level    rows  cost of a run  {name:>10}  95 % interval"]
        for level, interval in enumerate(self.intervals()):
            lines.append(
                f"{level:>5}  {self.num_simulations[level]:>6}  "
                f"{self.costs[level]:>13.4g}  {self.variances[level]:>10.4g}  "
                f"{interval[0]:.4g} to {interval[1]:.4g}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.table()}\nThe pilot cost {self.cost:.6g}."


def pilot(
    simulators: Sequence[Simulator],
    prior: Any,
    num_simulations: Sequence[int],
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
) -> Pilot:
    r"""Simulate a few rows of each level, and estimate what each level is worth.

    The rows are those of `simulate_multilevel` with the same seed. With a store,
    nothing is simulated twice: a later `simulate_multilevel(..., store=store)` goes on.

    Args:
        simulators: One a level, cheapest first.
        prior: Prior over theta.
        num_simulations: Rows of each level, at least 10 each; about 1 000 of level
            0 and 100 of the others are a start.
        noise: Noise sampler, as of `simulate_multilevel`.
        seed: Root seed of simulations and fits, an integer >= 0.
        inference: What :math:`f_l` is the loss of: a trainer without simulations, e.g.
            `MLNLE(prior, density_estimator="nsf")`; a function of the prior that makes
            one; a trained trainer, which is then used as it is; `None` for NPE. NPE,
            NLE and vector fields, of sbi or of this package. It is copied.
        method: `"loss"`, the variance of :math:`f_l - f_{l-1}` under a quick fit, or
            `"norm"`, the bound by fourth moments, which needs no fit but a second run
            of every simulator at every row.
        num_folds: Quick fits, each to the rows that the others are judged by.
        train_options: Arguments of `train` of the quick fits.
        simulation_batch_size: As of `simulate_multilevel`.
        num_workers: As of `simulate_multilevel`.
        costs: Cost of a run of each simulator; measured, in seconds, by default.
        store: As of `simulate_multilevel`.
        timeout: As of `simulate_multilevel`.
        max_failure_share: As of `simulate_multilevel`.
        show_progress_bars: Whether to show a progress bar a level.

    Returns:
        Rows, costs and variances.

    Raises:
        ValueError: If the arguments do not fit.
        TooManyFailures: If a larger share of rows fails than is allowed.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import pilot
        >>> def coarse(theta, noise):
        ...     return theta + noise
        >>> def fine(theta, noise):
        ...     return theta + 0.1 * theta**3 + noise
        >>> found = pilot(
        ...     [coarse, fine],
        ...     BoxUniform(-torch.ones(1), torch.ones(1)),
        ...     num_simulations=(200, 50),
        ...     noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        ...     costs=(1.0, 10.0),
        ...     train_options={"max_num_epochs": 2},
        ...     show_progress_bars=False,
        ... )
        >>> found.cost
        750.0
        >>> rows = found.allocate(budget=2_000)
    """
    check_types(pilot, locals())
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
    measuring = Measuring(source, inference, method, num_folds, train_options or {})
    found, _ = run_pilot(GrowingSimulations(source), num_simulations, measuring)
    return found


def run_pilot(
    growing: GrowingSimulations, num_simulations: Sequence[int], measuring: Measuring
) -> tuple[Pilot, ExtraRuns]:
    """The pilot on rows that may grow later, and its runs beside them.

    Args:
        growing: Where its rows come from.
        num_simulations: As of `pilot`.
        measuring: How variances are estimated.
    """
    counts = tuple(int(n) for n in num_simulations)
    growing.source.check_rows("num_simulations", counts, MIN_ROWS)
    simulations = growing.simulate(counts)
    extra = ExtraRuns(growing, simulations, counts)
    costs = simulations.costs
    assert costs is not None
    check_costs(costs)
    cost = float(np.dot(row_costs(costs), counts))
    cost += measuring.extra_cost(counts, costs)
    measured = measuring.measure(simulations, extra)
    return Pilot(simulations, counts, costs, cost, measured), extra
