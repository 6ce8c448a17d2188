r"""Synthetic tasks of two levels with exact posterior densities, in two sets.

Methods are developed on the tasks `synthetic-KIND` and validated on `validation-KIND`,
which have other matrices, dimensions and constants (`HALVES`). The levels share theta
and noise; with the option `paired=no`, simulations of level 1 have theta and noise of
their own and no output of level 0.

The high-fidelity simulation is

.. math::

    x = g(A \phi + s\, u), \qquad \phi \sim N(0, I), \; u \sim N(0, I),

with :math:`A_{ij} \sim N(0, 1/d_\theta)`, drawn once. The prior over theta is standard
normal and :math:`\phi = \theta`, but in `half` and `nearly-exact` it is uniform on
:math:`[0, 1]^{d_\theta}` and :math:`\phi = \Phi^{-1}(\theta)`, element by element. g is
the identity, but :math:`g(y) = \sinh^{-1}(c\, y) / c` in `reversed`, `misleading` and
`noisier`. The low-fidelity simulation is, by kind:

* `biased`: :math:`g(a \odot (A \phi + s\, u) + b)`, with a gain a and an offset b of
  each feature, :math:`\log a_i` and :math:`b_i` drawn once from :math:`N(0, \sigma^2)`.
* `reversed`: the same with :math:`b = 0`, and :math:`a_i = -1` for some features and 1
  for others.
* `half`: :math:`g(A M \phi + s\, u)`, where M keeps the first half of the parameters,
  rounded down, and sets the others to 0.
* `heavy`: :math:`g(A \phi + s\, t)`.
* `heavy-both`: :math:`g(a \odot (A \phi + s\, t) + b)`, and the high fidelity is
  :math:`g(A \phi + s\, t)`.
* `misleading`: :math:`g(A \phi^2 + s\, u)`.
* `nearly-exact`: as `biased`, with a small :math:`\sigma`.
* `noisier`: :math:`g(A \phi + 3 s\, u)`.

Here :math:`t = u \sqrt{3 / w}`, :math:`w \sim \chi^2_3`, has a multivariate Student t
distribution with 3 degrees of freedom. The posterior is :math:`p(\theta)\, p(y \mid
\phi) / p(y)` with :math:`y = g^{-1}(x)`,

.. math:: y \mid \phi \sim N(A \phi, s^2 I), \qquad y \sim N(0, A A^\top + s^2 I).

In `heavy-both`, :math:`p(y \mid \phi)` and :math:`p(y)` are integrals over :math:`\log
w` of the densities with :math:`3 s^2 / w` for :math:`s^2`, by the trapezoidal rule. The
module `synthetic_grid` has one more kind.

The metrics at 500 high-fidelity simulations are the negative log density of the true
parameters (`nltp`), that of the exact posterior (`nltp_exact`) and their difference
(`excess`, whose mean estimates the expected KL divergence); SBC and coverage are those
of the first 200.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel.estimators.transformed import unconstrained
from sbi_multilevel_benchmarks.calibration import calibration_inside
from sbi_multilevel_benchmarks.metrics import nlpd
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

DEGREES = 3  # of freedom of Student's t
MAX_FEATURES = 10
_UNIFORM = ("half", "nearly-exact")
_BENT = ("reversed", "misleading", "noisier")


@dataclass(frozen=True)
class LinearLevel:
    """Simulator of a level, with the notation of the module.

    Args:
        matrix: The matrix A, shape `(d_x, d_theta)`.
        scale: Scale s of the noise.
        bend: Constant c of g; 0 if g is the identity.
        gain: Gains a, shape `(d_x,)`.
        offset: Offsets b, shape `(d_x,)`.
        is_uniform: Whether the prior is uniform.
        is_heavy: Whether the noise is t in place of u.
        is_squared: Whether x depends on the squares of phi.
    """

    matrix: Tensor
    scale: float
    bend: float = 0.0
    gain: Tensor | float = 1.0
    offset: Tensor | float = 0.0
    is_uniform: bool = False
    is_heavy: bool = False
    is_squared: bool = False

    def __call__(self, theta: Tensor, noise: Tensor) -> Tensor:
        """Simulate x, shape `(n, d_x)`, at theta `(n, d_theta)` and noise `(n, 13)`."""
        phi, u = self._phi(theta), noise[:, : len(self.matrix)]
        if self.is_squared:
            phi = phi.square()
        if self.is_heavy:
            w = noise[:, MAX_FEATURES:].square().sum(dim=1, keepdim=True)
            u = u * torch.sqrt(DEGREES / w)
        y = self.gain * (phi @ self.matrix.T + self.scale * u) + self.offset
        return torch.asinh(self.bend * y) / self.bend if self.bend else y

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log posterior density at the high fidelity.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
            x: An output for each of them, shape `(n, d_x)`.

        Returns:
            Log densities in double precision, shape `(n,)`.
        """
        matrix, phi, y = self.matrix.double(), self._phi(theta.double()), x.double()
        if self.bend:
            y = torch.sinh(self.bend * y) / self.bend
        variances, basis = torch.linalg.eigh(matrix @ matrix.T)
        likelihood = self._log_density(y - phi @ matrix.T, torch.zeros_like(variances))
        evidence = self._log_density(y @ basis, variances.clamp_min(0))
        if self.is_uniform:
            return likelihood - evidence
        return Normal(0.0, 1.0).log_prob(phi).sum(dim=1) + likelihood - evidence

    def _phi(self, theta: Tensor) -> Tensor:
        if not self.is_uniform:
            return theta
        return torch.special.ndtri(theta.clamp(1e-7, 1 - 1e-7))

    def _log_density(self, values: Tensor, variances: Tensor) -> Tensor:
        """Log density of independent normals plus noise at values `(n, d_x)`."""
        log_w, log_weights = torch.tensor([math.log(DEGREES)]).double(), 0.0
        if self.is_heavy:
            step, half = 0.05, DEGREES / 2
            log_w = torch.arange(-25, 5, step, dtype=torch.float64)
            log_weights = half * log_w - log_w.exp() / 2 + math.log(step)
            log_weights = log_weights - half * math.log(2) - math.lgamma(half)
        noise = self.scale**2 * DEGREES * torch.exp(-log_w)
        scales = (variances + noise.unsqueeze(1)).sqrt()
        parts = Normal(0.0, scales).log_prob(values.unsqueeze(1)).sum(dim=2)
        return torch.logsumexp(parts + log_weights, dim=1)


class Synthetic(BenchmarkTask):
    """A task with an exact posterior density.

    Args:
        prior: Prior over theta.
        simulators: Simulator of each level.
        log_posterior: Exact log posterior density, see `LinearLevel.log_posterior`.
    """

    family, metric = "npe", "nltp"
    num_simulations = (5_000, 50)
    paper_epochs = 1_000  # of no paper
    costs = (1.0, 100.0)  # nominal: all take microseconds
    num_test = 500

    def __init__(
        self,
        prior: Any,
        simulators: tuple[Callable, Callable],
        log_posterior: Callable[[Tensor, Tensor], Tensor],
    ):
        self.prior, self.simulators = prior, simulators
        self.log_posterior = log_posterior

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """Standard normals, shape `(n, 13)`: u first, of which w is made last."""
        return torch.randn(n, MAX_FEATURES + DEGREES, generator=generator)

    def build_network(self) -> Callable:
        """The builder of sbi's `maf` without mass outside of the prior."""
        return unconstrained("maf", self.prior)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict[str, list[float]]:
        """The metrics of the module."""
        theta, x = self.simulate_high(self.num_test, seed=10_000)
        values = nlpd(estimator, theta, x).double()
        exact = -self.log_posterior(theta, x)
        return {
            "nltp": values.tolist(),
            "excess": (values - exact).tolist(),
            "nltp_exact": exact.tolist(),
            **calibration_inside(estimator, theta, x),
        }


class UnpairedSynthetic(Synthetic):
    """The same without x of level 0 in simulations of level 1."""

    def simulate(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> MultilevelSimulations:
        low, high = super().simulate(num_simulations, seed)
        return MultilevelSimulations((low, replace(high, x_coarse=None)), self.costs)


def register_synthetic(name: str, parts: Callable[[], tuple]) -> None:
    """Register a task with the option `paired`.

    Args:
        name: Its name.
        parts: Function that returns the arguments of `Synthetic`.
    """
    classes = {"yes": Synthetic, "no": UnpairedSynthetic}

    def build(data: Any, *, paired: str = "yes") -> Synthetic:
        if paired not in classes:
            raise ValueError(f"paired={paired!r} must be 'yes' or 'no'.")
        return classes[paired](*parts())

    register_task(name, build)


@dataclass(frozen=True)
class Constants:
    """Constants of the tasks of a set, with the notation of the module.

    Args:
        seed: Seed of matrices, gains and offsets.
        shape: Dimensions of x and theta.
        scale: The scale s.
        bend: The constant c.
        bias: The standard deviation of log gains and offsets.
        small_bias: The same of `nearly-exact`.
        num_reversed: Number of features that are reversed.
    """

    seed: int
    shape: tuple[int, int]
    scale: float
    bend: float
    bias: float
    small_bias: float
    num_reversed: int


HALVES = {
    "synthetic": Constants(100, (10, 5), 0.5, 0.5, 0.3, 0.02, 3),
    "validation": Constants(200, (8, 4), 0.4, 0.8, 0.5, 0.03, 4),
}
KINDS = ("biased", "reversed", "half", "heavy", "heavy-both")
KINDS += ("misleading", "nearly-exact", "noisier")


def linear_levels(kind: str, constants: Constants) -> tuple[LinearLevel, LinearLevel]:
    """Simulators of the low and of the high fidelity.

    Args:
        kind: One of `KINDS`.
        constants: Constants of a set.
    """
    num_features, num_parameters = constants.shape
    generator = torch.Generator().manual_seed(constants.seed + KINDS.index(kind))
    matrix = torch.randn(constants.shape, generator=generator) / num_parameters**0.5
    log_gain, offset = torch.randn(2, num_features, generator=generator)
    high = LinearLevel(
        matrix,
        constants.scale,
        bend=constants.bend if kind in _BENT else 0.0,
        is_uniform=kind in _UNIFORM,
        is_heavy=kind == "heavy-both",
    )
    is_reversed = torch.arange(num_features) < constants.num_reversed
    is_kept = torch.arange(num_parameters) < num_parameters // 2

    def biased(size: float) -> dict[str, Any]:
        return {"gain": torch.exp(size * log_gain), "offset": size * offset}

    changes: dict[str, dict[str, Any]] = {
        "biased": biased(constants.bias),
        "reversed": {"gain": torch.where(is_reversed, -1.0, 1.0)},
        "half": {"matrix": matrix * is_kept},
        "heavy": {"is_heavy": True},
        "heavy-both": biased(constants.bias),
        "misleading": {"is_squared": True},
        "nearly-exact": biased(constants.small_bias),
        "noisier": {"scale": 3 * constants.scale},
    }
    return replace(high, **changes[kind]), high


def _linear(kind: str, constants: Constants) -> tuple:
    low, high = linear_levels(kind, constants)
    size = constants.shape[1]
    normal = MultivariateNormal(torch.zeros(size), torch.eye(size))
    box = BoxUniform(torch.zeros(size), torch.ones(size))
    return box if high.is_uniform else normal, (low, high), high.log_posterior


for _half, _constants in HALVES.items():
    for _kind in KINDS:
        register_synthetic(f"{_half}-{_kind}", partial(_linear, _kind, _constants))
