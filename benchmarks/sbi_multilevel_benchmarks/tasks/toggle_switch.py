r"""Toggle switch: two genes that repress each other, three levels of time steps.

.. math::

    u_{t+1} \sim N_{\ge 0}\!\left(u_t + \frac{\alpha_1}{1 + v_t^{\beta_1}}
    - (1 + 0.03\, u_t),\; s\right), \qquad
    v_{t+1} \sim N_{\ge 0}\!\left(v_t + \frac{\alpha_2}{1 + u_t^{\beta_2}}
    - (1 + 0.03\, v_t),\; s\right)

for :math:`T` steps from :math:`u_0 = v_0 = 10`, then
:math:`x \sim N_{\ge 0}(\mu + u_T,\; \mu \sigma / u_T^\gamma)`, clipped at 2000.
Levels have :math:`T = 50, 80, 300` steps, and the same noise in their common steps. The
prior is uniform over :math:`(\alpha_1, \alpha_2, \beta_1, \beta_2, \mu, \sigma,
\gamma)`.

As in the code of Hikida et al. (2025), truncated normals are drawn with
:math:`\mathrm{erf}((0 - m)/s)` in place of :math:`\mathrm{erf}((0 - m)/(s \sqrt 2))`,
so that all standard deviations (s = 0.5) are smaller by a factor :math:`\sqrt 2`. This
is kept for comparison with the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.metrics import biased_mmd
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

NUM_STEPS = (50, 80, 300)


def truncated_normal(mean: Tensor, scale: Tensor | float, noise: Tensor) -> Tensor:
    """Quantile `noise` of a normal truncated to positive values (see the module)."""
    below = torch.erf(-mean / scale)
    # double precision and a clamp keep erfinv from returning infinity at 1
    level = (below + noise * (1 - below)).clamp(max=1 - 1e-15)
    return (torch.erfinv(level) * scale + mean).clamp(min=0.0)


def simulate(theta: Tensor, noise: tuple[Tensor, Tensor], num_steps: int) -> Tensor:
    """Run the switch for `num_steps` steps; x has shape `(n, 1)`."""
    alpha_1, alpha_2, beta_1, beta_2, mu, sigma, gamma = theta.double().unbind(dim=1)
    steps, final = noise
    u, v = torch.full_like(mu, 10.0), torch.full_like(mu, 10.0)
    for t in range(num_steps):
        u_mean = u + alpha_1 / (1 + v**beta_1) - (1 + 0.03 * u)
        v_mean = v + alpha_2 / (1 + u**beta_2) - (1 + 0.03 * v)
        u = truncated_normal(u_mean, 0.5, steps[:, t, 0])
        v = truncated_normal(v_mean, 0.5, steps[:, t, 1])
    spread = mu * sigma / u.clamp(min=1e-12) ** gamma
    return truncated_normal(mu + u, spread, final[:, 0]).clamp(max=2000.0).unsqueeze(1)


class ToggleSwitch(BenchmarkTask):
    """Neural likelihood of the expression of one cell."""

    name, family, metric = "toggle-switch", "nle", "mmd_squared"
    num_simulations = (10_000, 500, 100)
    paper_epochs = 2_000
    simulators = tuple(partial(simulate, num_steps=steps) for steps in NUM_STEPS)
    costs = tuple(float(steps) for steps in NUM_STEPS)
    prior = BoxUniform(
        torch.tensor([0.01, 0.01, 0.01, 0.01, 250.0, 0.01, 0.01]),
        torch.tensor([50.0, 50.0, 5.0, 5.0, 450.0, 0.5, 0.4]),
    )
    num_test, num_samples = 500, 500

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = partial(torch.rand, generator=generator, dtype=torch.float64)
        return draw(n, NUM_STEPS[-1], 2), draw(n, 1)

    def build_network(self) -> Callable:
        return likelihood_nn("mdn", hidden_features=20, num_components=2)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        """Squared MMD of simulator and estimator at each theta, as in the paper."""
        thetas, exact = _test_samples(self.num_test, self.num_samples)
        with seeded(0):
            samples = estimator.sample((self.num_samples,), thetas).detach()
        pairs = zip(exact, samples.transpose(0, 1))
        mmd = [biased_mmd(x, y, scale=_median_scale(x)).item() for x, y in pairs]
        return {"mmd_squared": [value**2 for value in mmd]}


@lru_cache(maxsize=1)
def _test_samples(num_test: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """Test parameters and samples of the highest level at each of them."""
    with seeded(0):
        thetas = ToggleSwitch.prior.sample((num_test,))
    generator = torch.Generator().manual_seed(0)
    exact = []
    for theta in thetas:
        noise = ToggleSwitch.noise(num_samples, generator)
        thetas_of_x = theta.expand(num_samples, -1)
        exact.append(ToggleSwitch.simulators[-1](thetas_of_x, noise).float())
    return thetas, torch.stack(exact)


def _median_scale(x: Tensor) -> float:
    """The median heuristic for the length scale of a Gaussian kernel.

    Distances of 0 are excluded: at some theta most samples are clipped at 2000.
    """
    distances = torch.cdist(x, x)
    distances = distances[distances > 0]
    return float(distances.median() / 2**0.5) if len(distances) > 0 else 1.0


register_task("toggle-switch", lambda data: ToggleSwitch())
