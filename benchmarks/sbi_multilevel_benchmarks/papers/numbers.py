"""Studies of the papers that are no runs of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sbi_multilevel.diagnostics import fidelity_report
from sbi_multilevel_benchmarks.cost import step_costs
from sbi_multilevel_benchmarks.metrics import biased_mmd, c2st
from sbi_multilevel_benchmarks.papers.experiment import Counts, Result, Size, for_study
from sbi_multilevel_benchmarks.plots import COLORS
from sbi_multilevel_benchmarks.records import Record, Table
from sbi_multilevel_benchmarks.registry import get_method, get_task
from sbi_multilevel_benchmarks.run import fit, quiet

_NUM_SAMPLES = 1_000
_PROBES = ("below", "transfer", "aligned", "own")


@dataclass(frozen=True)
class LevelDistances:
    """Distance of the posterior of the lowest level to that of the highest.

    Both are NPE on the same number of simulations, at observations of the highest
    level; MMD is not squared. Mean ± standard deviation over observations.

    Args:
        published: Published MMD and C2ST of each task.
    """

    published: Mapping[str, tuple[str, str]]

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        num = {"paper": 100_000, "half": 10_000, "smoke": 100}[size]
        rows = []
        for name, values in self.published.items():
            pairs = self._samples(name, num, size)
            mmd = np.array([float(biased_mmd(*pair)) for pair in pairs])
            accuracy = np.array([float(c2st(*pair)) for pair in pairs])
            ours = (f"{v.mean():.2f} ± {v.std(ddof=1):.2f}" for v in (mmd, accuracy))
            rows.append((name, *ours, *values))
        header = ("task", "MMD", "C2ST", "published MMD", "published C2ST")
        title = f"{num} simulations of each level"
        return Result(tables={title: Table(header, tuple(rows))})

    def _samples(self, name: str, num: int, size: Size) -> list:
        task = get_task(name)
        task.oracle_size = num
        observations = task.observations[: 2 if size == "smoke" else 10]
        counts: Counts = (num, 2)
        with quiet(0):
            posteriors = [fit(m, task, counts, 0).evaluated for m in ("low", "oracle")]
            return [
                [
                    each.sample((_NUM_SAMPLES,), x=x, show_progress_bars=False)
                    for each in posteriors
                ]
                for x in observations.unsqueeze(1)
            ]


@dataclass(frozen=True)
class Informativeness:
    """Uncertainty coefficient of the lowest level, and scores of a probe of theta.

    The probe is trained on the lowest level, and its R² is that at this level, at the
    highest, and there after an affine map; the last is that of a probe of the highest.

    Args:
        tasks: Names of tasks of two levels.
    """

    tasks: tuple[str, ...]

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        num = 200 if size == "smoke" else 2_000
        rows = []
        for name in self.tasks:
            simulations = get_task(name).simulate((num, num), seed=0)
            (level,) = fidelity_report(simulations, seed=0).levels
            probes = (getattr(level.coherence, each) for each in _PROBES)
            coefficient = f"{level.uncertainty_coefficient:.3f}"
            rows.append((name, coefficient, *map(str, probes)))
        header = ("task", "uncertainty coefficient", *_PROBES)
        return Result(tables={f"{num} pairs": Table(header, tuple(rows))})


@dataclass(frozen=True)
class Losses:
    """Training losses of the multilevel method, with and without adjustment.

    Args:
        task: Name of the task.
        num_simulations: Numbers of simulations of each level.
    """

    task: str
    num_simulations: Counts

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        task = for_study(get_task(self.task), size)
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        for index, method in enumerate(("ml-paper-none", "ml-paper")):
            with quiet(0):
                simulations = task.simulate(self.num_simulations, 0)
                how: Any = get_method(method)
                trainer = how.build(task, simulations)
                trainer.train(**how.train_options(task, simulations))
            losses = trainer.summary["training_loss"]
            axes.plot(losses, color=COLORS[index], label=method, linewidth=0.8)
        axes.set(xlabel="epoch", ylabel="multilevel loss")
        axes.set_ylim(*_limits([line.get_ydata() for line in axes.lines]))
        axes.legend(frameon=False)
        return Result({f"{self.task} losses": figure})


def step_durations(size: Size, records: Sequence[Record]) -> Result:
    """Duration of a step of training."""
    sizes, repeats = ((200,), 1) if size == "smoke" else ((200, 2_000, 10_000), 5)
    return Result(tables={"Steps of training": step_costs(sizes, repeats=repeats)})


def _limits(curves: list) -> tuple[float, float]:
    """Between the first losses and the lowest, so that divergence does not hide all."""
    every = np.concatenate([np.asarray(each, dtype=float) for each in curves])
    low, high = np.nanquantile(every[np.isfinite(every)], (0.02, 0.98))
    return low - 0.1 * (high - low), high + 0.1 * (high - low)
