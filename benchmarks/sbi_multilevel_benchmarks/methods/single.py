"""sbi's NPE and NLE, trained on simulations of one level."""

from __future__ import annotations

from dataclasses import replace

from sbi.inference import NLE, NPE
from torch import Tensor

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.fit import Fit, evaluated, runs_at
from sbi_multilevel_benchmarks.registry import register_method
from sbi_multilevel_benchmarks.task import BenchmarkTask


def _train(task: BenchmarkTask, theta: Tensor, x: Tensor, level: int = -1) -> Fit:
    trainer = {"nle": NLE, "npe": NPE}[task.family](
        task.prior,
        density_estimator=task.build_network(),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    estimator = trainer.append_simulations(theta, x).train()
    epochs = trainer.summary["epochs_trained"][-1]
    return Fit(
        evaluated(task, [estimator]), x, epochs, runs=runs_at(level, len(x), task)
    )


def high(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """NPE or NLE on the high-fidelity simulations of the pairs."""
    return _train(task, simulations[-1].theta, simulations[-1].x)


def low(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """NPE or NLE on the simulations of level 0."""
    fit = _train(task, simulations[0].theta, simulations[0].x, level=0)
    return replace(fit, trained_on=simulations[0].x[:0])


def oracle(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """NPE or NLE on as many high-fidelity simulations as it takes to be near exact."""
    return _train(task, *task.simulate_high(task.oracle_size, seed))


def equal_cost(
    task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
) -> Fit:
    """NPE or NLE on high-fidelity simulations of the cost of all simulations."""
    affordable = int((simulations.total_cost or 0.0) // task.costs[-1])
    return _train(task, *task.simulate_high(affordable, seed))


register_method("high", high)
register_method("low", low)
register_method("equal-cost", equal_cost)
register_method("oracle", oracle)
