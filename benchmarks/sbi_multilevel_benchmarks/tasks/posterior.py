r"""Tasks evaluated by the whole posterior at a few observations.

At each observation :math:`x_o`, drawn from :math:`\theta^* \sim p(\theta)`, the samples
of an estimated posterior q are set against reference samples of the exact one:

* `c2st`: accuracy of a classifier that tells the two apart, 0.5 at best. A random
  forest with the defaults of scikit-learn, five folds and seed 1, z-scored by the
  estimate, as in the code of Krouglova et al. (2026), arXiv:2502.08416. A neural
  classifier, the choice of sbibm, gives other values.
* `mmd`: *squared* maximum mean discrepancy with a Gaussian kernel, its width the median
  distance of the pooled samples. Biased, so not 0 for the exact posterior.
* `nltp`: :math:`-\log q(\theta^* \mid x_o)`.
* `nrmse`: distance of the samples to :math:`\theta^*`, see `metrics.nrmse`.

The network is that of the same paper: a neural spline flow on the logit of theta
within the prior's box (the log, for positive parameters), so q has no mass outside.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn

from sbi_multilevel.estimators.transformed import unconstrained
from sbi_multilevel.simulation.noise import seeded
from sbi_multilevel_benchmarks.calibration import calibration
from sbi_multilevel_benchmarks.metrics import biased_mmd, c2st, nltp, nrmse
from sbi_multilevel_benchmarks.tasks.base import BenchmarkTask


def build_flow(prior: Any, embedding_net: nn.Module | None = None) -> Callable:
    """Builder of the flow that all posterior tasks share.

    Args:
        prior: Prior over theta; its support bounds the flow.
        embedding_net: Network that x passes first, untrained, or `None`.
    """
    build = posterior_nn(
        "zuko_nsf",
        num_transforms=5,
        hidden_features=50,
        num_bins=8,
        embedding_net=nn.Identity() if embedding_net is None else embedding_net,
    )
    # sbi's own transform of theta would leave it without z-scoring
    return unconstrained(build, prior)


class PosteriorTask(BenchmarkTask):
    """A task with a few observations and samples of their exact posteriors.

    Attributes:
        observations: Observations of the highest level, shape `(k, *x_shape)`.
        true_theta: Parameters that made them, shape `(k, d_theta)`.
        parameters: Names of the parameters that the simulator of each level depends
            on; `None` where all levels share all. Rows have theta in full: a column
            that a level does not know is a draw from the prior that x ignores.
        num_samples: Samples drawn of each posterior, and of each reference.
        has_reference: Whether exact posteriors are known.
    """

    family, metric, paper_epochs = "npe", "c2st", 0
    num_simulations = (10_000, 50)
    parameters: dict[int, tuple[str, ...]] | None = None
    num_samples = 1_000
    has_reference = True

    observations: Tensor
    true_theta: Tensor

    @abstractmethod
    def reference(self, index: int) -> Tensor:
        """Samples of the exact posterior of an observation, shape `(m, d_theta)`.

        Args:
            index: Which of `observations`.
        """

    def build_network(self) -> Callable:
        """The builder of the flow that all posterior tasks share."""
        return build_flow(self.prior)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict[str, list[float]]:
        """Errors of a posterior at each observation.

        Args:
            estimator: A posterior, not a density estimator: anything with sbi's
                `sample((n,), x=x_o, show_progress_bars=False)`; `nltp` is left out
                where it has no `log_prob(theta, x=x_o)`.
            trained_on: Not used; the observations are among no training rows.

        Returns:
            Values at each observation of each metric, the main one first; those of
            `calibration` over 200 fresh rows, one a parameter and one in all.
        """
        drawn = torch.stack([self._draw(estimator, x_o) for x_o in self.observations])
        errors: dict[str, list[float]] = {}
        if self.has_reference:
            exact = [
                self.reference(i)[: self.num_samples]
                for i in range(len(self.observations))
            ]
            pairs = list(zip(drawn, exact))
            errors["c2st"] = [c2st(*pair).item() for pair in pairs]
            errors["mmd"] = [_squared_mmd(*pair) for pair in pairs]
        if getattr(estimator, "log_prob", None) is not None:
            with seeded(1):  # some posteriors draw here, too
                values = nltp(estimator, self.true_theta, self.observations)
            errors["nltp"] = values.tolist()
        errors["nrmse"] = nrmse(drawn, self.true_theta).tolist()
        if hasattr(estimator, "sample_batched"):  # not where it is of one x only
            errors |= calibration(estimator, *self.simulate_high(200, seed=10_000))
        return errors

    def _draw(self, posterior: Any, x_o: Tensor) -> Tensor:
        with seeded(1):
            samples = posterior.sample(
                (self.num_samples,), x=x_o.unsqueeze(0), show_progress_bars=False
            )
        return samples.detach().reshape(self.num_samples, -1)


def sample_density(
    log_density: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    num_samples: int,
    size: int,
    seed: int = 0,
) -> Tensor:
    """Samples of a density in a box of a few dimensions, known up to a constant.

    A grid over the box finds where the mass lies, a second one covers that part. Cells
    of the second are drawn by the density at their centres, points in them evenly;
    twenty points a sample are weighted by the density relative to that of the centre,
    and the samples drawn from these by weight, so no grid is left to see.

    Args:
        log_density: Function of points, shape `(n, d)`, that returns shape `(n,)`.
        low: Lower corner of the box, shape `(d,)`.
        high: Upper corner, shape `(d,)`.
        num_samples: Samples to draw.
        size: Cells along each axis, in each of the two grids.
        seed: Seed of the draws.

    Returns:
        Samples, float32, shape `(num_samples, d)`.

    Raises:
        ValueError: If the weights are so uneven that the grid must be finer.
    """
    low, high = low.double(), high.double()
    corner, centres, weights = low, *_grid(log_density, low, high, size)
    for axis, width in enumerate((high - low) / size):
        others = [a for a in range(len(low)) if a != axis]
        marginal = weights.sum(dim=others) if others else weights
        kept = (marginal > 1e-7).nonzero()
        first, last = kept.min() - 1, kept.max() + 2  # one cell more on each side
        edges = corner[axis] + width * torch.stack((first, last)).clamp(0, size)
        low = torch.where(torch.arange(len(low)) == axis, edges[0], low)
        high = torch.where(torch.arange(len(low)) == axis, edges[1], high)
    centres, weights = _grid(log_density, low, high, size)
    with seeded(seed):
        cells = torch.multinomial(weights.flatten(), 20 * num_samples, True)
        offsets = torch.rand(len(cells), len(low), dtype=torch.float64) - 0.5
        points = centres[cells] + offsets * (high - low) / size
        ratios = log_density(points) - log_density(centres[cells])
        weights = torch.softmax(ratios, dim=0)
        effective = 1 / weights.square().sum()
        if effective < 5 * num_samples:
            raise ValueError(
                f"size={size} is too coarse: {len(cells)} points count as "
                f"{effective:.0f} only. Raise size."
            )
        return points[torch.multinomial(weights, num_samples)].float()


def _grid(
    log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    axes = [a + (b - a) * steps for a, b in zip(low, high)]
    centres = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    weights = torch.softmax(log_density(centres), dim=0)
    return centres, weights.reshape([size] * len(axes))


def _squared_mmd(samples: Tensor, exact: Tensor) -> float:
    # double precision: a difference of sums close to each other, and sbi takes its root
    return biased_mmd(samples.double(), exact.double()).square().item()
