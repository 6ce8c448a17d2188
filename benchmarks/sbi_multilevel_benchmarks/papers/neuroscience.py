"""Studies of the neuroscience tasks: traces, predictives, plausibility, costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.papers.experiment import Result, Size, Sweep
from sbi_multilevel_benchmarks.papers.pictures import Trained
from sbi_multilevel_benchmarks.plots import COLORS
from sbi_multilevel_benchmarks.records import Cell, Record, Table, cells, joined
from sbi_multilevel_benchmarks.registry import get_task

_SUMMARIES = (
    "spikes",
    "resting potential, mV",
    "its deviation, mV",
    "mean voltage, mV",
)
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Traces:
    """Voltages of both levels at the same theta and noise."""

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        task: Any = get_task("l5pc")
        with seeded(0):
            theta = task.prior.sample((_NUM_EXAMPLES,))
        noise = task.noise(_NUM_EXAMPLES, torch.Generator().manual_seed(0))
        figure = Figure(figsize=(4 * _NUM_EXAMPLES, 3), layout="constrained")
        panels = figure.subplots(1, _NUM_EXAMPLES, sharey=True)
        for level, simulator in enumerate(task.simulators):
            for trace, axes in zip(simulator.voltages(theta, noise), panels):
                times = np.linspace(0, 120, len(trace))
                options = dict(color=COLORS[level], linewidth=0.9)
                axes.plot(times, trace, label=f"level {level}", **options)
                axes.set_xlabel("time, ms")
        panels[0].set_ylabel("voltage at the soma, mV")
        panels[-1].legend(frameon=False)
        return Result({"l5pc traces": figure})


@dataclass(frozen=True)
class Predictive:
    """Summaries of high-fidelity simulations at draws from posteriors.

    Args:
        sweep: The methods and the numbers of simulations.
        num_samples: Draws from each posterior.
    """

    sweep: Sweep
    num_samples: int = 200

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        trained = Trained.all_of(self.sweep, size)
        task: Any = trained[0].task
        num = 10 if size == "smoke" else self.num_samples
        noise = task.noise(num, torch.Generator().manual_seed(0))
        x_o = task.observations[:1]
        outputs = {}
        for each in trained:
            with seeded(0):
                theta = each.posterior.sample((num,), x=x_o, show_progress_bars=False)
            outputs[each.run.method] = task.simulators[-1](theta, noise)
        figure = Figure(figsize=(11, 3), layout="constrained")
        panels = figure.subplots(1, len(_SUMMARIES))
        for j, (axes, title) in enumerate(zip(panels, _SUMMARIES)):
            values = [x[:, j][x[:, j].isfinite()].numpy() for x in outputs.values()]
            axes.boxplot(values, tick_labels=list(outputs), whis=(5, 95), sym="")
            axes.axhline(float(x_o[0, j]), color="#000000", linestyle="--")
            axes.set_title(title, fontsize=9)
            axes.tick_params(axis="x", labelrotation=60)
        counts = joined(trained[0].run.num_simulations)
        return Result({f"l5pc predictives, {counts}": figure})


@dataclass(frozen=True)
class PlausibleShare:
    """Share of posterior samples whose networks have 1 to 50 Hz.

    Networks are simulated at a few samples for each of the first observations. Means
    are over observations, and have their standard errors.

    Args:
        sweep: The methods and the numbers of simulations, of the task `plasticity`.
        num_observations: Number of observations.
        num_samples: Samples of each posterior.
    """

    sweep: Sweep
    num_observations: int = 20
    num_samples: int = 5

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        num = 1 if size == "smoke" else self.num_observations
        rows = []
        for each in Trained.all_of(self.sweep, size):
            task, shares = each.task, []
            for x_o in task.observations[:num].unsqueeze(1):
                with seeded(0):
                    theta = task.in_box(each.posterior).sample(
                        (self.num_samples,), x=x_o, show_progress_bars=False
                    )
                shares.append(task.plausible_share(theta))
            mean, deviation = np.mean(shares), np.std(shares, ddof=min(num - 1, 1))
            error = deviation / np.sqrt(num)
            rows.append((str(each), f"{mean:.2f} ± {error:.2f}"))
        header = ("method", "share inside 1 to 50 Hz")
        title = f"{self.sweep.task}: {self.num_samples} samples each"
        return Result(tables={title: Table(header, tuple(rows))})


@dataclass(frozen=True)
class CostTable:
    """CPU seconds of simulations and of training, by method.

    Args:
        task: Name of the task.
    """

    task: str

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        seconds = _seconds_of_simulations(get_task(self.task))
        found = [cell for cell in cells(records) if cell.task == self.task]
        rows = tuple(_costs(cell, seconds) for cell in found)
        header = ("method", *(f"runs of level {i}" for i in range(len(seconds))))
        header += ("simulations, s", "training, s", "total, s", "NLTP")
        return Result(tables={f"{self.task}: cost": Table(header, rows)})


def _costs(cell: Cell, seconds: Sequence[float]) -> tuple[str, ...]:
    runs = cell.runs or (0,) * len(seconds)
    simulated = sum(n * each for n, each in zip(runs, seconds))
    total = simulated + cell.seconds
    times = (f"{value:.0f}" for value in (simulated, cell.seconds, total))
    return (cell.method, *map(str, runs), *times, str(cell.metrics["nltp"]["mean"]))


def _seconds_of_simulations(task: Any, num: int = 64) -> list[float]:
    """CPU seconds of a run of each simulator."""
    with seeded(0):
        theta = task.prior.sample((num,))
    noise = task.noise(num, torch.Generator().manual_seed(0))
    durations = []
    for simulator in task.simulators:
        simulator(theta, noise)  # compiles
        start = time.process_time()
        simulator(theta, noise)
        durations.append((time.process_time() - start) / num)
    return durations
