r"""All families and methods on a linear-Gaussian task, whose posteriors are known.

.. math:: x_l = A_l \theta + b_l + s\, u, \qquad \theta \sim N(0, I), \; u \sim N(0, I),

with three levels, two parameters and two features. The metric is the divergence
:math:`\mathrm{KL}(p \| q)` of the posterior q from the exact one, the mean over 50
observations. Posteriors of likelihoods and ratios are normalized on a grid, those of
vector fields have the density of their probability flow, and of all others the density
of the network is used.

Methods: `plain` is the trainer of sbi on the high-fidelity simulations alone, with its
default settings, `ml`, `mf` and `hybrid` are those of this package with theirs, and
`oracle` is `plain` with as many high-fidelity simulations as level 0 has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sbi.inference
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import sbi_multilevel
from sbi_multilevel import MultilevelSimulations, simulate_multilevel
from sbi_multilevel.estimators.vector_field_density import VectorFieldDensity
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.pool import run_records
from sbi_multilevel_benchmarks.records import Record, Table, over_seeds
from sbi_multilevel_benchmarks.run import quiet

FAMILIES = (
    "NPE",
    "NLE",
    "NRE",
    "NRE_A",
    "NRE_C",
    "BNRE",
    "FMPE",
    "NPSE",
)
METHODS = {"plain": "", "ml": "ML", "mf": "MF", "hybrid": "Hybrid", "oracle": ""}
NUM_SIMULATIONS = (5_000, 200, 50)
_NUM_OBSERVATIONS, _SCALE, _DIM = 50, 0.5, 2
_GAPS = (0.5, 0.1, 0.0)  # of the matrices of each level from that of the highest
_SHIFTS = (0.3, 0.05, 0.0)


def prior() -> MultivariateNormal:
    """A standard normal distribution."""
    return MultivariateNormal(torch.zeros(_DIM), torch.eye(_DIM))


def matrix(level: int) -> Tensor:
    """The matrix from theta to x of a level, shape `(2, 2)`."""
    apart = torch.tensor([[0.4, 0.0], [0.5, 0.3]])
    return torch.tensor([[1.0, 0.2], [0.0, 1.0]]) + _GAPS[level] * apart


@dataclass(frozen=True)
class LinearSimulator:
    """The simulator of a level; it can be pickled.

    Args:
        level: The level.
    """

    level: int

    def __call__(self, theta: Tensor, noise: Tensor) -> Tensor:
        """Simulate x, shape `(n, 2)`."""
        return theta @ matrix(self.level).T + _SHIFTS[self.level] + _SCALE * noise


def noise(num: int, generator: torch.Generator) -> Tensor:
    """Noise of simulations, shape `(num, 2)`."""
    return torch.randn(num, _DIM, generator=generator)


def simulate(num_simulations: Sequence[int], seed: int) -> MultilevelSimulations:
    """Simulations of all levels."""
    return simulate_multilevel(
        [LinearSimulator(level) for level in range(3)],
        prior(),
        num_simulations,
        noise=noise,
        seed=seed,
        show_progress_bars=False,
    )


def exact_posterior(x: Tensor) -> MultivariateNormal:
    """The posterior at one observation of the highest level, shape `(2,)`."""
    a = matrix(2)
    covariance = torch.linalg.inv(torch.eye(_DIM) + a.T @ a / _SCALE**2)
    return MultivariateNormal(covariance @ a.T @ x / _SCALE**2, covariance)


@dataclass(frozen=True)
class FamilyRun:
    """A training.

    Args:
        family: One of `FAMILIES`.
        method: One of `METHODS`.
        seed: Seed of simulations and training.
    """

    family: str
    method: str
    seed: int

    @property
    def identity(self) -> Record:
        """The beginning of the record, which identifies the run."""
        # records with a "method" are those of tasks
        return {"family": self.family, "approach": self.method, "seed": self.seed}


def run_family(run: FamilyRun) -> Record:
    """Train and evaluate, and return the record."""
    counts = list(NUM_SIMULATIONS)
    if run.method == "oracle":
        counts[-1] = counts[0]
    with quiet(run.seed):
        simulations = simulate(counts, run.seed)
        prefix, start = METHODS[run.method], time.process_time()
        module = sbi_multilevel if prefix else sbi.inference
        trainer = getattr(module, prefix + run.family)(
            prior(), tracker=SilentTracker(), show_progress_bars=False
        )
        if prefix:
            trainer.append_multilevel_simulations(simulations)
        else:
            high = simulations[-1]
            trainer.append_simulations(high.theta, high.x)
        network = trainer.train().eval()
        seconds = time.process_time() - start
        divergence = mean_divergence(network, run.family)
    return {
        **run.identity,
        "num_simulations": counts,
        "kl": divergence,
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def mean_divergence(network: Any, family: str) -> float:
    """Mean over observations of the divergence from the exact posterior, in nats."""
    generator = torch.Generator().manual_seed(12_345)
    theta = torch.randn(_NUM_OBSERVATIONS, _DIM, generator=generator)
    observations = LinearSimulator(2)(theta, noise(_NUM_OBSERVATIONS, generator))
    if family in ("FMPE", "NPSE"):
        network = VectorFieldDensity(network)
    values = [_divergence(network, family, x) for x in observations]
    return sum(values) / len(values)


def _divergence(network: Any, family: str, x: Tensor) -> float:
    exact = exact_posterior(x)
    if family in ("NPE", "FMPE", "NPSE"):
        noise = torch.randn(200, _DIM, generator=torch.Generator().manual_seed(0))
        theta = exact.mean + noise @ exact.scale_tril.T
        found = network.log_prob(theta[:, None], condition=x[None])[:, 0]
        return float((exact.log_prob(theta) - found).mean())
    grid = torch.linspace(-5, 5, 81)
    points = torch.cartesian_prod(grid, grid)
    given = x.expand(len(points), -1)
    if family == "NLE":
        found = network.log_prob(given[None], condition=points)[0]
    else:
        found = network(points, given)
    found = (found + prior().log_prob(points)).log_softmax(0)
    log_exact = exact.log_prob(points).log_softmax(0)
    return float((log_exact.exp() * (log_exact - found)).sum())


def run_families(
    seeds: Sequence[int],
    num_workers: int = 1,
    before: Sequence[Record] = (),
    families: Sequence[str] = FAMILIES,
    methods: Sequence[str] = tuple(METHODS),
) -> Iterator[Record]:
    """Records of runs as they end, failures included.

    Args:
        seeds: Seeds.
        num_workers: Processes, each of one thread.
        before: Records of earlier runs, which are not repeated.
        families: Some of `FAMILIES`.
        methods: Some of `METHODS`.
    """
    runs = [FamilyRun(f, m, seed) for seed in seeds for f in families for m in methods]
    done = [_key(record) for record in before if "kl" in record]
    missing = [[run] for run in runs if _key(run.identity) not in done]
    return run_records(run_family, missing, num_workers)


def family_table(records: Sequence[Record]) -> Table:
    """Divergence of each method by family, and the ratio of the hybrid to plain."""
    last = {_key(record): record for record in records if "kl" in record}
    rows = []
    for family in FAMILIES:
        found = {
            method: [r["kl"] for k, r in last.items() if k[:2] == (family, method)]
            for method in METHODS
        }
        if not any(found.values()):
            continue
        means = {m: sum(v) / len(v) for m, v in found.items() if v}
        ratio = "-"
        if {"hybrid", "plain"} <= set(means):
            ratio = f"{means['hybrid'] / means['plain']:.2f}"
        cells = (str(over_seeds(values)) for values in found.values())
        rows.append((family, *cells, ratio))
    return Table(("family", *METHODS, "hybrid / plain"), tuple(rows))


def _key(record: Record) -> tuple[str, str, int]:
    return record["family"], record["approach"], record["seed"]
