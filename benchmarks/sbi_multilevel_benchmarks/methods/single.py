"""sbi's NPE and NLE, trained on simulations of one level."""

from __future__ import annotations

from dataclasses import dataclass

from sbi.inference import NLE, NPE
from torch import Tensor

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.fit import Fit, evaluated, runs_at
from sbi_multilevel_benchmarks.registry import register_method
from sbi_multilevel_benchmarks.task import BenchmarkTask


def _train(task: BenchmarkTask, theta: Tensor, x: Tensor, level: int) -> Fit:
    trainer = {"nle": NLE, "npe": NPE}[task.family](
        task.prior,
        density_estimator=task.build_network(),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    estimator = trainer.append_simulations(theta, x).train()
    epochs = trainer.summary["epochs_trained"][-1]
    trained_on = x if level == task.highest_level else x[:0]
    runs = runs_at(level, len(x), task)
    return Fit(evaluated(task, [estimator]), trained_on, epochs, runs=runs)


def high(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """NPE or NLE on the high-fidelity simulations of the pairs."""
    return _train(task, simulations[-1].theta, simulations[-1].x, task.highest_level)


def low(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """NPE or NLE on the simulations of level 0."""
    return _train(task, simulations[0].theta, simulations[0].x, level=0)


def oracle(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """NPE or NLE on as many high-fidelity simulations as it takes to be near exact."""
    return _train(task, *task.simulate_high(task.oracle_size, seed), task.highest_level)


@dataclass(frozen=True)
class EqualCost:
    """NPE or NLE on simulations of one level of the cost of all simulations.

    Args:
        level: The level, 0 for the lowest fidelity; `None` for the highest.
    """

    level: int | None = None

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        level = task.highest_level if self.level is None else self.level
        affordable = int((simulations.total_cost or 0.0) // task.costs[level])
        return _train(task, *task.simulate_level(level, affordable, seed), level)


register_method("high", high)
register_method("low", low)
register_method("equal-cost", EqualCost())
register_method("equal-cost-0", EqualCost(0))
register_method("equal-cost-1", EqualCost(1))
register_method("oracle", oracle)
