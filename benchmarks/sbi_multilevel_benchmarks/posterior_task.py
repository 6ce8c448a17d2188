r"""Tasks that evaluate posteriors at a few observations.

At each observation :math:`x_o`, drawn from :math:`\theta^* \sim p(\theta)`, samples of
the estimated posterior q are compared with reference samples of the exact posterior:

* `c2st`: accuracy of a classifier of the two, 0.5 at best. A random forest with the
  defaults of scikit-learn, five folds and seed 1, z-scored by the estimate, as in the
  code of Krouglova et al. (2026), arXiv:2502.08416. The neural classifier of sbibm
  gives different values.
* `mmd`: *squared* maximum mean discrepancy with a Gaussian kernel, whose width is the
  median distance of the pooled samples. Biased: positive for the exact posterior.
* `nltp`: :math:`-\log q(\theta^* \mid x_o)`.
* `nrmse`: distance of the samples to :math:`\theta^*`, see `metrics.nrmse`.

The network is that of the same paper: a neural spline flow on the logit of theta within
the box of the prior (the log of positive parameters), so q has no mass outside.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn

from sbi_multilevel.estimators.transformed import unconstrained
from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.calibration import calibration
from sbi_multilevel_benchmarks.metrics import biased_mmd, c2st, nltp, nrmse
from sbi_multilevel_benchmarks.task import BenchmarkTask

TEST_SEED = 10_000  # of test simulations, apart from the seeds of training


def build_flow(prior: Any, embedding_net: nn.Module | None = None) -> Callable:
    """The builder of the neural spline flow of posterior tasks.

    Args:
        prior: Prior over theta; its support bounds the flow.
        embedding_net: Untrained embedding net of x, or `None`.
    """
    build = posterior_nn(
        "zuko_nsf",
        num_transforms=5,
        hidden_features=50,
        num_bins=8,
        embedding_net=nn.Identity() if embedding_net is None else embedding_net,
    )
    # sbi's transform of theta excludes z-scoring
    return unconstrained(build, prior)


class PosteriorTask(BenchmarkTask):
    """A task with a few observations, and samples of their exact posteriors.

    Attributes:
        observations: Observations of the highest level, shape `(k, *x_shape)`.
        true_theta: Parameters of the observations, shape `(k, d_theta)`.
        parameters: Names of the parameters that the simulator of each level depends
            on; `None` if all levels have all. Simulations have all columns of theta;
            those that a level does not depend on are draws from the prior.
        num_samples: Samples of each posterior and of each reference.
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
            index: Index of the observation.
        """

    def build_network(self) -> Callable:
        """The builder of the flow, see `build_flow`."""
        return build_flow(self.prior)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict[str, list[float]]:
        """Errors of a posterior at each observation.

        Args:
            estimator: A posterior, not a density estimator: an object with sbi's
                `sample((n,), x=x_o, show_progress_bars=False)`; without
                `log_prob(theta, x=x_o)`, there is no `nltp`.
            trained_on: Not used; the observations are not trained on.

        Returns:
            Values at each observation by metric, the main one first; if the posterior
            is amortized, also those of `calibration` over 200 simulations.
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
            with seeded(1):  # some posteriors sample here
                values = nltp(estimator, self.true_theta, self.observations)
            errors["nltp"] = values.tolist()
        errors["nrmse"] = nrmse(drawn, self.true_theta).tolist()
        if hasattr(estimator, "sample_batched"):  # amortized posteriors
            errors |= calibration(estimator, *self.simulate_high(200, seed=TEST_SEED))
        return errors

    def _draw(self, posterior: Any, x_o: Tensor, num: int | None = None) -> Tensor:
        shape = (num or self.num_samples,)
        with seeded(1):
            samples = posterior.sample(
                shape, x=x_o.unsqueeze(0), show_progress_bars=False
            )
        return samples.detach().reshape(*shape, -1)


def sample_density(
    log_density: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    num_samples: int,
    size: int,
    seed: int = 0,
) -> Tensor:
    """Samples of an unnormalized density in a box of a few dimensions.

    A grid over the box finds the region of the mass, which a second grid covers. Cells
    of the second are drawn by the density at their centers, and points within a cell
    uniformly. Twenty points per sample are weighted by the density relative to the
    center, and samples are drawn by weight, so that they do not lie on a grid.

    Args:
        log_density: Log density of points of shape `(n, d)`, shape `(n,)`.
        low: Lower corner of the box, shape `(d,)`.
        high: Upper corner, shape `(d,)`.
        num_samples: Samples to draw.
        size: Cells along each axis of both grids.
        seed: Seed of the draws.

    Returns:
        Samples, float32, shape `(num_samples, d)`.

    Raises:
        ValueError: If the effective sample size of the weights is too small.
    """
    low, high = low.double(), high.double()
    corner, centers, weights = low, *_grid(log_density, low, high, size)
    for axis, width in enumerate((high - low) / size):
        others = [a for a in range(len(low)) if a != axis]
        marginal = weights.sum(dim=others) if others else weights
        kept = (marginal > 1e-7).nonzero()
        first, last = kept.min() - 1, kept.max() + 2  # one cell more on each side
        edges = corner[axis] + width * torch.stack((first, last)).clamp(0, size)
        low = torch.where(torch.arange(len(low)) == axis, edges[0], low)
        high = torch.where(torch.arange(len(low)) == axis, edges[1], high)
    centers, weights = _grid(log_density, low, high, size)
    with seeded(seed):
        cells = torch.multinomial(weights.flatten(), 20 * num_samples, True)
        offsets = torch.rand(len(cells), len(low), dtype=torch.float64) - 0.5
        points = centers[cells] + offsets * (high - low) / size
        ratios = log_density(points) - log_density(centers[cells])
        weights = torch.softmax(ratios, dim=0)
        effective = 1 / weights.square().sum()
        if effective < 5 * num_samples:
            raise ValueError(
                f"size={size} is too coarse: {len(cells)} points have an effective "
                f"sample size of {effective:.0f}. Raise size."
            )
        return points[torch.multinomial(weights, num_samples)].float()


def _grid(
    log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    axes = [a + (b - a) * steps for a, b in zip(low, high)]
    centers = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    weights = torch.softmax(log_density(centers), dim=0)
    return centers, weights.reshape([size] * len(axes))


def _squared_mmd(samples: Tensor, exact: Tensor) -> float:
    # in double precision, as it is a small difference of sums
    return biased_mmd(samples.double(), exact.double()).square().item()
