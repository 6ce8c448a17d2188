r"""Ornstein-Uhlenbeck process with two to four parameters, and worse lower levels.

Level 1 is the Euler scheme of :math:`dx = \gamma(\mu - x) dt + \sigma dW` with
:math:`dt = 0.1` from :math:`x_0 \sim N(\mu + \delta, 1)`, every tenth of the first 100
points observed. Level 0 draws the 10 points independently from :math:`N(\mu, \sigma)`,
without :math:`\gamma` and :math:`\delta`. Both levels use the same Brownian increments.
The prior is uniform on :math:`\mu \in [0.1, 3]`, :math:`\sigma \in [0.1, 0.6]`,
:math:`\gamma \in [0.1, 1]`, :math:`\delta \in [0, 4]`; with two or three parameters the
last ones are fixed at 0.5 and 3. As in Krouglova et al. (2026), arXiv:2502.08416.

The observed points of the Euler scheme are a Gaussian Markov chain, so the exact
posterior is known up to a constant, and sampled on a grid. The reference code has the
likelihood of the stochastic differential equation instead: between observed points, the
deviation from :math:`\mu` is multiplied by :math:`e^{-\gamma}` rather than
:math:`(1 - 0.1\gamma)^{10}`, a difference of 5 % at :math:`\gamma = 1`, and the
variances differ by 7 %.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Normal

from sbi_multilevel import (
    LevelSimulations,
    MultilevelSimulations,
    simulate_multilevel,
)
from sbi_multilevel.utils.files import expect, read_arrays, tensor_of, understood
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask, sample_density
from sbi_multilevel_benchmarks.registry import register_task

NAMES = ("mu", "sigma", "gamma", "offset")
LOW, HIGH = (0.1, 0.1, 0.1, 0.0), (3.0, 0.6, 1.0, 4.0)
FIXED = {2: (0.5, 3.0), 3: (3.0,), 4: ()}
STEP, STRIDE, NUM_OBSERVED = 0.1, 10, 10
NUM_STEPS = STRIDE * (NUM_OBSERVED - 1)
GRID_SIZES = {2: 200, 3: 60, 4: 28}
DATA_VARIABLE = "SBI_MULTILEVEL_OU2"


def prior(num_parameters: int) -> BoxUniform:
    """Uniform prior over the first parameters."""
    low, high = LOW[:num_parameters], HIGH[:num_parameters]
    return BoxUniform(torch.tensor(low), torch.tensor(high))


def columns(theta: Tensor) -> tuple[Tensor, ...]:
    """The four parameters, fixed ones included, each of shape `(n,)`."""
    fixed = theta.new_tensor(FIXED[theta.shape[1]]).expand(len(theta), -1)
    return torch.cat((theta, fixed), dim=1).unbind(dim=1)


def independent(theta: Tensor, noise: Tensor) -> Tensor:
    """Independent draws, from the increments of the process between observed points."""
    mu, sigma = theta[:, :2, None].unbind(dim=1)
    sums = noise[:, 1 : NUM_STEPS + 1].unflatten(1, (-1, STRIDE)).sum(dim=2)
    return mu + sigma * torch.cat((noise[:, :1], sums / STRIDE**0.5), dim=1)


def process(theta: Tensor, noise: Tensor) -> Tensor:
    """Euler steps."""
    mu, sigma, gamma, offset = columns(theta)
    x = mu + offset + noise[:, 0]
    path = [x]
    for t in range(1, NUM_STEPS + 1):
        x = x + gamma * (mu - x) * STEP + sigma * STEP**0.5 * noise[:, t]
        path.append(x)
    return torch.stack(path[::STRIDE], dim=1)


def independent_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """Log likelihood of an output `x`, shape `(10,)`, of independent draws."""
    mu, sigma = theta[:, :2, None].unbind(dim=1)
    return Normal(mu, sigma).log_prob(x).sum(dim=1)


def process_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """Exact log likelihood of an output `x`, shape `(10,)`, of the Euler scheme."""
    mu, sigma, gamma, offset = columns(theta)
    decay = 1 - gamma * STEP
    shrink = decay**STRIDE
    scale = sigma * torch.sqrt(STEP * (1 - shrink**2) / (1 - decay**2))
    total = Normal(mu + offset, 1.0).log_prob(x[0])
    for previous, value in zip(x[:-1], x[1:]):
        total = total + Normal(mu + (previous - mu) * shrink, scale).log_prob(value)
    return total


class OUTransfer(PosteriorTask):
    """Posterior of the process, with independent draws at level 0.

    Args:
        num_parameters: Parameters to infer, 2 to 4, in the order of `NAMES`.

    Raises:
        ValueError: If the number of parameters is not 2, 3 or 4.
    """

    simulators = (independent, process)
    costs = (float(NUM_OBSERVED), float(NUM_STEPS))
    log_likelihood = staticmethod(process_log_likelihood)

    def __init__(self, num_parameters: int = 2):
        if num_parameters not in FIXED:
            raise ValueError(f"num_parameters={num_parameters} must be 2, 3 or 4.")
        self.name = f"ou{num_parameters}"
        self.prior = prior(num_parameters)
        if num_parameters > 2:
            self.parameters = {0: NAMES[:2], 1: NAMES[:num_parameters]}
        self.true_theta, self.observations = self.simulate_high(10, seed=10_000)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, NUM_STEPS + 1, generator=generator)

    def reference(self, index: int) -> Tensor:
        return self.exact_posterior(self.observations[index], self.num_samples)

    def exact_posterior(self, x_o: Tensor, num_samples: int, seed: int = 0) -> Tensor:
        """Samples of the exact posterior of an observation `x_o`, shape `(10,)`."""
        support = self.prior.support.base_constraint
        return sample_density(
            lambda theta: self.log_likelihood(theta, x_o.double()),
            support.lower_bound,
            support.upper_bound,
            num_samples,
            GRID_SIZES[len(support.lower_bound)],
            seed,
        )


class OUPerturbed(OUTransfer):
    r"""Level 0 is the process with sigma shifted.

    Args:
        delta: Shift of sigma at level 0.
        reversed_order: Whether level 0 also returns its points in reverse order.

    Raises:
        ValueError: If the shift is negative.
    """

    costs = (1.0, 10.0)  # nominal: both levels take the same steps

    def __init__(self, delta: float = 0.1, reversed_order: bool = False):
        if delta < 0:
            raise ValueError(f"delta={delta} must be >= 0: sigma must stay positive.")
        super().__init__(2)
        self.name = f"ou2-delta{delta:g}" + ("-reversed" if reversed_order else "")
        self._shift, self._reversed = torch.tensor([0.0, delta]), reversed_order
        self.simulators = (self._perturbed, process)

    def _perturbed(self, theta: Tensor, noise: Tensor) -> Tensor:
        x = process(theta + self._shift, noise)
        return x.flip(1) if self._reversed else x


class OUUseless(OUTransfer):
    """Level 0 is independent of theta, with the mean and variance of the process.

    Mean and variance of each point are those over prior and noise, in closed form. The
    noise is not shared by the levels.
    """

    def __init__(self):
        super().__init__(2)
        self.name = "ou2-useless"
        decay = (1 - FIXED[2][0] * STEP) ** (STRIDE * torch.arange(NUM_OBSERVED))
        step_decay = 1 - FIXED[2][0] * STEP
        mean, variance = self.prior.mean, self.prior.variance
        second_moment = variance[1] + mean[1] ** 2
        stationary = second_moment * STEP / (1 - step_decay**2)
        self._mean = mean[0] + FIXED[2][1] * decay
        spread = variance[0] + decay**2 + stationary * (1 - decay**2)
        self._scale = spread.sqrt()
        self.simulators = (self._useless, process)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, NUM_STEPS + 1 + NUM_OBSERVED, generator=generator)

    def _useless(self, theta: Tensor, noise: Tensor) -> Tensor:
        return self._mean + self._scale * noise[:, -NUM_OBSERVED:]


class OUReverse(OUTransfer):
    """Level 0 is the process with three parameters, level 1 independent draws with two.

    The levels have different theta, each from its own prior, and are not paired.
    """

    parameters = {0: NAMES[:3], 1: NAMES[:2]}
    costs = (1.0, 10.0)  # nominal; the true costs are in reverse order
    simulators = (process, independent)
    log_likelihood = staticmethod(independent_log_likelihood)

    def __init__(self):
        super().__init__(2)
        self.name = "ou-reverse"

    def simulate_levels(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> tuple[LevelSimulations, ...]:
        """Simulations of each level; theta of level 0 has one column more."""
        levels = []
        for level, (simulator, n) in enumerate(zip(self.simulators, num_simulations)):
            simulations = simulate_multilevel(
                [simulator],
                prior(3 - level),
                (n,),
                noise=self.noise,
                seed=seed + 500_000 * level,
                show_progress_bars=False,
            )
            theta, x = simulations[0].theta, simulations[0].x
            levels.append(LevelSimulations(level, theta, x))
        return tuple(levels)

    def simulate(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> MultilevelSimulations:
        """The same without gamma, as all levels must have the same columns."""
        low, high = self.simulate_levels(num_simulations, seed)
        low = LevelSimulations(0, low.theta[:, :2], low.x)
        return MultilevelSimulations((low, high), self.costs)

    def simulate_level(
        self, level: int, num_simulations: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        if level == 1:
            return super().simulate_level(level, num_simulations, seed)
        (low,) = self.simulate_levels((num_simulations,), seed + 1_000_000)
        return low.theta[:, :2], low.x


class OUPublished(OUTransfer):
    """Two parameters, with the simulations and posterior samples of the paper.

    The simulations are not paired, and do not depend on the seed. The posterior samples
    are those of the reference code, with its likelihood (see the module) and an offset
    of 2, where simulations and observations have 3. This shifts mu by a quarter of its
    posterior standard deviation. `exact_posterior` is the posterior of the simulator.

    Args:
        path: File of simulations (npz); taken from the environment if `None`.

    Raises:
        ValueError: If no file is named.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        path = path or os.environ.get(DATA_VARIABLE)
        if not path or not Path(path).is_file():
            raise ValueError(
                f"path={path!r} is no file. Name the file of the published simulations "
                f"by `--data FILE` or the environment variable {DATA_VARIABLE}."
            )
        super().__init__(2)
        self.name = "ou2-published"
        remedy = "Name the file of the published simulations."
        with understood("path", path, "published simulations of OU2", remedy):
            arrays = read_arrays(path)
            self._arrays = {name: tensor_of(arrays, name).float() for name in arrays}
            needed = ("x_o", "theta_o", "posterior_samples")
            missing = [name for name in needed if name not in arrays]
            expect(not missing, f"{missing} are missing, and it has {sorted(arrays)}")
        self.observations = self._arrays["x_o"]
        self.true_theta = self._arrays["theta_o"]

    def reference(self, index: int) -> Tensor:
        return self._arrays["posterior_samples"][index]

    def simulate(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> MultilevelSimulations:
        """The published simulations, of which there are some numbers only."""
        levels: list[Any] = []
        for level, (kind, n) in enumerate(zip(("lf", "hf"), num_simulations)):
            if f"{kind}{n}_theta" not in self._arrays:
                names = [name.split("_")[0] for name in self._arrays]
                sizes = {int(s[2:]) for s in names if s[:2] == kind}
                raise ValueError(
                    f"num_simulations={num_simulations} needs {n} simulations of "
                    f"level {level}, but the file has {sorted(sizes)}. Choose one of "
                    "these numbers."
                )
            theta = self._arrays[f"{kind}{n}_theta"]
            levels.append(LevelSimulations(level, theta, self._arrays[f"{kind}{n}_x"]))
        return MultilevelSimulations(tuple(levels), self.costs)


register_task("ou2", lambda data: OUTransfer(2))
register_task("ou3", lambda data: OUTransfer(3))
register_task("ou4", lambda data: OUTransfer(4))
register_task("ou2-published", lambda data: OUPublished(data))
register_task("ou-reverse", lambda data: OUReverse())
register_task(
    "ou2-delta",
    lambda data, *, delta=0.5, reversed_order=False: OUPerturbed(delta, reversed_order),
)
register_task("ou2-delta0.1", lambda data: OUPerturbed(0.1))
register_task("ou2-delta1", lambda data: OUPerturbed(1.0))
register_task("ou2-delta1-reversed", lambda data: OUPerturbed(1.0, reversed_order=True))
register_task("ou2-useless", lambda data: OUUseless())
