"""Pictures of the papers: outputs of the levels, posteriors, densities, recovery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sbi.diagnostics import run_tarp
from torch import Tensor

from sbi_multilevel.plots import compare
from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.papers.experiment import Result, Size, Sweep, for_study
from sbi_multilevel_benchmarks.plots import COLORS
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.records import Record, joined
from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.run import Run, fit, quiet

_NUM_EXAMPLES = 4
_NUM_SAMPLES = 1_000
_NUM_TESTS = {"paper": 500, "half": 200, "smoke": 20}


@dataclass(frozen=True)
class NetworkPosterior:
    """Samples of a network, those outside of the prior included, as in the papers.

    Args:
        network: Density estimator of theta.
    """

    network: Any

    def sample(self, shape: tuple[int, ...], x: Tensor, **options: Any) -> Tensor:
        """Samples at one x, shape `(n, d_theta)`."""
        return self.sample_batched(shape, x)[:, 0]

    def sample_batched(
        self, shape: tuple[int, ...], x: Tensor, **options: Any
    ) -> Tensor:
        """Samples at each x, shape `(n, m, d_theta)`."""
        return self.network.sample(shape, x).detach()


@dataclass(frozen=True)
class Trained:
    """A method that was trained on a task, with seed 0.

    Args:
        run: Task, method and numbers of simulations.
        size: Size of the study.
    """

    run: Run
    size: Size

    @classmethod
    def all_of(cls, sweep: Sweep, size: Size) -> list[Trained]:
        """Each method at each number of simulations."""
        return [cls(run, size) for run in sweep.runs(size, 1)]

    @cached_property
    def task(self) -> Any:
        """The task."""
        return for_study(self.run.build_task(), self.size)

    @cached_property
    def estimator(self) -> Any:
        """The posterior, or the density estimator, that the task evaluates."""
        with quiet(self.run.seed):
            run = self.run
            return fit(run.method, self.task, run.num_simulations, run.seed).evaluated

    @cached_property
    def posterior(self) -> Any:
        """The posterior, with `sample` and `sample_batched`."""
        if isinstance(self.task, PosteriorTask):
            return self.estimator
        return NetworkPosterior(self.estimator)

    def test(self) -> tuple[Tensor, Tensor]:
        """Theta and x of test simulations."""
        return self.task.simulate_high(_NUM_TESTS[self.size], seed=10_000)

    def __str__(self) -> str:
        return f"{self.run.method}, {joined(self.run.num_simulations)}"


@dataclass(frozen=True)
class Outputs:
    """Outputs of all levels at the same theta and noise.

    Args:
        task: Name of the task, which has pairs.
        num: Number of simulations of a histogram.
    """

    task: str
    num: int = 1_000

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        task = get_task(self.task)
        num = min(self.num, 100) if size == "smoke" else self.num
        outputs = _at_all_levels(task, num)
        shape = outputs[0].shape[1:]
        if math.prod(shape) == 1:
            return Result({f"{self.task} outputs": _histograms(outputs)})
        draw = _lines if len(shape) == 1 else _images
        return Result({f"{self.task} outputs": draw(outputs)})


@dataclass(frozen=True)
class Posteriors:
    """Posteriors of several methods at one observation.

    Args:
        sweep: The methods, and the numbers of simulations, of which the first are used.
        observation: Index of the observation.
    """

    sweep: Sweep
    observation: int = 0

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        trained = Trained.all_of(self.sweep, size)
        task = trained[0].task
        x_o = task.observations[self.observation][None]
        with seeded(0):
            samples = {str(each): _at(each, x_o) for each in trained}
        if task.has_reference:
            samples["exact"] = task.reference(self.observation)[:_NUM_SAMPLES]
        figure, _ = compare(samples, truth=task.true_theta[self.observation])
        return Result({f"{self.sweep.task} posteriors": _of_figure(figure)})


@dataclass(frozen=True)
class Recovery:
    """Medians of posteriors against true parameters, with absolute deviations.

    Args:
        sweep: The methods and the numbers of simulations.
    """

    sweep: Sweep

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        figures = {}
        for trained in Trained.all_of(self.sweep, size):
            theta, x = trained.test()
            samples = _sampled(trained.posterior, x)
            name = f"{self.sweep.task} recovery, {trained}"
            figures[name] = _recovery(theta, samples)
        return Result(figures)


@dataclass(frozen=True)
class CoverageCurves:
    """Expected coverage (TARP) by credibility, the diagonal if calibrated.

    Args:
        sweep: The methods and the numbers of simulations.
    """

    sweep: Sweep

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        figure = Figure(figsize=(4.5, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#7f7f7f", linestyle=":")
        for index, trained in enumerate(Trained.all_of(self.sweep, size)):
            with seeded(1):
                coverage, credibility = run_tarp(
                    *trained.test(),
                    trained.posterior,
                    num_posterior_samples=200,
                    show_progress_bar=False,
                    use_batched_sampling=True,
                )
            line = dict(color=_color(index), label=str(trained))
            axes.plot(credibility, coverage, **line)
        axes.set(xlabel="credibility", ylabel="expected coverage")
        axes.legend(frameon=False, fontsize=8)
        return Result({f"{self.sweep.task} coverage": figure})


@dataclass(frozen=True)
class Densities:
    """Densities of scalar x at a few theta, with a histogram of the high fidelity.

    Args:
        sweep: The methods and the numbers of simulations.
        quantiles: Of x, between which densities are drawn.
    """

    sweep: Sweep
    quantiles: tuple[float, float] = (0.01, 0.99)

    def __call__(self, size: Size, records: Sequence[Record]) -> Result:
        trained = Trained.all_of(self.sweep, size)
        task = trained[0].task
        with seeded(0):
            thetas = task.prior.sample((_NUM_EXAMPLES,))
        figure = Figure(figsize=(3.2 * _NUM_EXAMPLES, 3), layout="constrained")
        panels = figure.subplots(1, _NUM_EXAMPLES)
        for theta, axes in zip(thetas, panels):
            self._draw(axes, task, theta, trained)
        panels[0].set_ylabel("density")
        panels[-1].legend(frameon=False, fontsize=7)
        return Result({f"{self.sweep.task} densities": figure})

    def _draw(
        self, axes: Axes, task: Any, theta: Tensor, trained: Sequence[Trained]
    ) -> None:
        noise = task.noise(_NUM_SAMPLES, torch.Generator().manual_seed(0))
        x = task.simulators[-1](theta.expand(_NUM_SAMPLES, -1), noise)[:, 0].float()
        low, high = (float(x.quantile(q)) for q in self.quantiles)
        inside = x[(x >= low) & (x <= high)].numpy()
        axes.hist(inside, bins=40, density=True, color="#dddddd", label="high fidelity")
        grid = torch.linspace(low, high, 400)
        for index, each in enumerate(trained):
            values = each.estimator.log_prob(grid[:, None, None], theta[None]).detach()
            line = dict(color=_color(index), label=str(each))
            axes.plot(grid, values[:, 0].exp(), **line)
        axes.set_xlabel("x")


def _at_all_levels(task: Any, num: int) -> list[Tensor]:
    with seeded(0):
        theta = task.prior.sample((num,))
    noise = task.noise(num, torch.Generator().manual_seed(0))
    return [simulator(theta, noise).float() for simulator in task.simulators]


def _histograms(outputs: Sequence[Tensor]) -> Figure:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    every = torch.cat([each.flatten() for each in outputs])
    edges = np.linspace(*np.quantile(every.numpy(), (0.005, 0.995)), 60)
    for level, each in enumerate(outputs):
        options = dict(histtype="step", color=_color(level), label=f"level {level}")
        axes.hist(each.flatten().numpy(), bins=edges, **options)
    axes.set(xlabel="x", ylabel="simulations")
    axes.legend(frameon=False)
    return figure


def _lines(outputs: Sequence[Tensor]) -> Figure:
    figure = Figure(figsize=(3 * _NUM_EXAMPLES, 2.6), layout="constrained")
    for index, axes in enumerate(figure.subplots(1, _NUM_EXAMPLES)):
        for level, each in enumerate(outputs):
            axes.plot(each[index], color=_color(level), marker=".", label=str(level))
        axes.set_xlabel("feature of x")
    figure.axes[0].legend(title="level", frameon=False)
    return figure


def _images(outputs: Sequence[Tensor]) -> Figure:
    figure = Figure(figsize=(2 * _NUM_EXAMPLES, 2 * len(outputs)), layout="constrained")
    panels = figure.subplots(len(outputs), _NUM_EXAMPLES)
    for level, row in enumerate(panels):
        for image, axes in zip(outputs[level], row):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=(), yticks=())
        row[0].set_ylabel(f"level {level}")
    return figure


def _recovery(theta: Tensor, samples: Tensor) -> Figure:
    """Panels of the parameters.

    Args:
        theta: True parameters, shape `(n, d)`.
        samples: Samples of the posteriors, shape `(m, n, d)`.
    """
    medians = samples.median(dim=0).values
    errors = (samples - medians).abs().median(dim=0).values
    dim = theta.shape[1]
    figure = Figure(figsize=(3 * dim, 3), layout="constrained")
    for j, axes in enumerate(np.atleast_1d(figure.subplots(1, dim))):
        truth, median = theta[:, j], medians[:, j]
        axes.errorbar(truth, median, errors[:, j], fmt=".", color=_color(0), alpha=0.4)
        ends = [float(truth.min()), float(truth.max())]
        axes.plot(ends, ends, color="#000000", linestyle="--")
        r = float(torch.corrcoef(torch.stack((truth, median)))[0, 1])
        axes.set(xlabel=f"true parameter {j + 1}", title=f"r = {r:.3f}")
    figure.axes[0].set_ylabel("posterior median")
    return figure


def _at(trained: Trained, x_o: Tensor) -> Tensor:
    """Samples of the posterior of one observation."""
    options: dict[str, Any] = dict(x=x_o, show_progress_bars=False)
    return trained.posterior.sample((_NUM_SAMPLES,), **options).flatten(0, -2)


def _sampled(posterior: Any, x: Tensor) -> Tensor:
    with seeded(1):
        return posterior.sample_batched((200,), x=x, show_progress_bars=False).detach()


def _of_figure(figure: Any) -> Figure:
    return figure if isinstance(figure, Figure) else figure.figure


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]
