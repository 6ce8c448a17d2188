"""Demo: a likelihood from 10 000 low-fidelity and 300 high-fidelity simulations.

`python -m sbi_multilevel_benchmarks.demo` simulates the g-and-k distribution at two
levels and trains a network by NLE on the high-fidelity simulations, by NLE on the
low-fidelity simulations, and by HybridNLE on both. It infers the parameters of 100
observations by MCMC, also with the exact density, prints a table and draws a figure.

As the tails of x are heavy, the networks are density estimators of asinh(x). Densities
and divergences are those of x.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from sbi.inference import NLE, MCMCPosterior
from sbi.inference.potentials.base_potential import CustomPotentialWrapper
from sbi.neural_nets import likelihood_nn
from torch import Tensor

from sbi_multilevel import HybridNLE
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.records import Table
from sbi_multilevel_benchmarks.tasks.g_and_k import (
    GAndK,
    exact_log_prob,
    log_density,
    quantile,
)

NUM_SIMULATIONS = (10_000, 300)


def _compressed(theta: Tensor, noise: Tensor, simulator: Callable) -> Tensor:
    return torch.asinh(simulator(theta, noise))


class CompressedGAndK(GAndK):
    """The g-and-k task with x on the asinh scale."""

    simulators = tuple(
        partial(_compressed, simulator=simulator) for simulator in GAndK.simulators
    )

    def build_network(self) -> Callable:
        return likelihood_nn("nsf", num_transforms=1, tail_bound=5.0)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        return super().evaluate(OnRawScale(estimator), trained_on)


@dataclass(frozen=True)
class OnRawScale:
    """Density of x from the estimator of asinh(x)."""

    estimator: Any

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        log_jacobian = -0.5 * torch.log1p(x[..., 0] ** 2)
        return self.estimator.log_prob(torch.asinh(x), theta) + log_jacobian


TRUE_THETA = torch.tensor([1.5, 1.0, 1.5, 2.0])
NAMES = ("a", "b", "g", "k")
LABELS = {
    "high": "NLE, high fidelity only",
    "low": "NLE, low fidelity only",
    "hybrid": "HybridNLE, both",
}
COLORS = {"exact": "black", "high": "#0072B2", "low": "#999999", "hybrid": "#D55E00"}
NUM_SAMPLES = 400
MCMC = {
    "num_chains": 40,
    "warmup_steps": 15,
    "thin": 1,
    "init_strategy": "resample",
    "init_strategy_parameters": {"num_candidate_samples": 200},
}


def main(arguments: list[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo.png"))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    matplotlib.use("Agg")
    task = CompressedGAndK()
    simulations = task.simulate(NUM_SIMULATIONS, seed=0)
    low, pairs = simulations
    cost_low, cost_high = task.costs
    numbers = {
        "high": (f"{len(pairs)} high", len(pairs) * cost_high),
        "low": (f"{len(low)} low", len(low) * cost_low),
        "hybrid": (f"{len(low)} low + {len(pairs)} pairs", simulations.total_cost),
    }
    x_o = _observations(100)
    samples = {"exact": _sample(_exact_posterior(task, x_o), "exact posterior")}
    estimators, lines = {}, []
    for name in ("high", "low", "hybrid"):
        trainer = _trainer(name, task)
        if name == "hybrid":
            trainer.append_multilevel_simulations(simulations)
        else:
            part = pairs if name == "high" else low
            trainer.append_simulations(part.theta, part.x)
        torch.manual_seed(0)
        start = time.perf_counter()
        estimators[name] = trainer.train().eval()
        seconds = time.perf_counter() - start
        kl = task.evaluate(estimators[name], pairs.x)["kl"]
        posterior = trainer.build_posterior(mcmc_parameters=MCMC)
        posterior.set_default_x(torch.asinh(x_o))
        samples[name] = _sample(posterior, LABELS[name])
        lines.append((LABELS[name], np.mean(kl), *numbers[name], seconds))
    _print_table(lines)
    _draw(estimators, samples, options.out)
    print(f"\nFigure: {options.out.resolve()}")


def _trainer(name: str, task: GAndK) -> Any:
    return (HybridNLE if name == "hybrid" else NLE)(
        task.prior,
        density_estimator=task.build_network(),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )


def _observations(num: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(num, generator=generator, dtype=torch.float64)
    return quantile(TRUE_THETA.double(), z).float().unsqueeze(1)


def _exact_posterior(task: GAndK, x_o: Tensor) -> MCMCPosterior:
    def potential(theta: Tensor, x_o: Tensor) -> Tensor:
        inside = task.prior.support.check(theta)
        likelihood = exact_log_prob(theta, x_o[:, 0]).sum(dim=1)
        return torch.where(inside, likelihood, -torch.inf).float()

    wrapped = CustomPotentialWrapper(potential, prior=task.prior, x_o=x_o)
    return MCMCPosterior(
        wrapped, proposal=task.prior, method="slice_np_vectorized", **MCMC
    )


def _sample(posterior: Any, label: str) -> Tensor:
    print(f"\n{label}: sampling", flush=True)
    torch.manual_seed(0)
    np.random.seed(0)
    return posterior.sample((NUM_SAMPLES,), show_progress_bars=False)


def _print_table(lines: list[tuple]) -> None:
    header = ("method", "KL to the exact density", "simulations", "cost", "seconds")
    rows = tuple(
        (label, f"{kl:.2f}", number, f"{cost:.0f}", f"{seconds:.0f}")
        for label, kl, number, cost, seconds in lines
    )
    print(f"\n\n{Table(header, rows)}")
    print(
        "\nKL: mean over 200 parameters, lower is better. Cost: a run of level 0 costs "
        "1, a run of level 1 costs 10.\nSeconds: of training."
    )


def _draw(estimators: dict, samples: dict[str, Tensor], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 5, figsize=(15, 3.2), width_ratios=(2.2, 1, 1, 1, 1), layout="constrained"
    )
    z = torch.linspace(-2.3, 2.3, 500, dtype=torch.float64)
    theta = TRUE_THETA.double()
    x = quantile(theta, z)
    axes[0].plot(x, log_density(theta, z).exp(), color=COLORS["exact"], lw=2)
    for name, estimator in estimators.items():
        with torch.no_grad():
            inputs = x.float().reshape(-1, 1, 1)
            estimator = OnRawScale(estimator)
            density = estimator.log_prob(inputs, TRUE_THETA.unsqueeze(0)).exp()
        axes[0].plot(x, density[:, 0], color=COLORS[name], lw=1.8)
    axes[0].set(xlabel="x", ylabel="density", title="Likelihood at the true parameters")
    labels = {"exact": "exact density", **LABELS}
    for i, (ax, name) in enumerate(zip(axes[1:], NAMES)):
        for key, draws in samples.items():
            histogram = {"bins": 30, "density": True, "histtype": "step", "lw": 1.8}
            ax.hist(draws[:, i], color=COLORS[key], label=labels[key], **histogram)
        ax.axvline(TRUE_THETA[i], color="black", ls=":", lw=1.2)
        low, high = GAndK.prior.base_dist.low[i], GAndK.prior.base_dist.high[i]
        ax.set(xlabel=name, yticks=[], xlim=(low, high))
    axes[1].set_title("Posterior of 100 observations (dotted: truth)", loc="left")
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
