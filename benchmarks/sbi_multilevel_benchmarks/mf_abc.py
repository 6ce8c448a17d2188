r"""Multifidelity approximate Bayesian computation, after Prescott and Baker (2020).

arXiv:2001.06256, a baseline of Krouglova et al. (2026). ABC accepts draws of theta
whose output at level 1 is close to the observation. Multifidelity ABC runs level 0
first, and continues to level 1 with probability :math:`\eta_1` if level 0 is close, and
:math:`\eta_2` otherwise. The weight

.. math::  w = 1[\mathrm{low\ close}] + \frac{1[\mathrm{continued}]}{\eta}
    \bigl(1[\mathrm{high\ close}] - 1[\mathrm{low\ close}]\bigr)

has the expectation :math:`1[\mathrm{high\ close}]`, so weighted averages are consistent
estimates of those of ABC, with fewer runs of level 1.

*Budget.* If more draws would be continued than the budget allows, all probabilities are
scaled down by one factor. Systematic sampling then continues each draw with its
probability, and a total equal to their sum. Weights remain unbiased, and are larger.

*Negative weights.* A draw that is close at level 0 and not at level 1 has
:math:`w = 1 - 1/\eta_1 < 0`, which compensates for similar draws that were not
continued. The reference code sets negative weights to 0, which is biased: it keeps what
level 0 accepts wrongly. Here negative weights are offset against the draws nearest in
theta, which leaves the total weight unchanged. With :math:`\eta_1 = 1` no weight is
negative.

Samples are drawn with replacement, so many of them are equal, which a classifier
detects. The draws to continue depend on the observation, as does the budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.utils.seeds import derive_seed, seeded

_BATCH_SIZE = 1_000


def continuation_probabilities(
    low_close: Tensor, etas: tuple[float, float], budget: int | None = None
) -> Tensor:
    """Probability that a draw is run at level 1, shape `(n,)`, double precision.

    Args:
        low_close: Whether level 0 is close, boolean, shape `(n,)`.
        etas: Probabilities if it is close and if it is not, in (0, 1].
        budget: Maximal expected number of runs of level 1.
    """
    eta = torch.where(low_close, etas[0], etas[1]).double()
    return eta if budget is None else eta * min(1.0, budget / float(eta.sum()))


def choose(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic sampling in random order; the total is fixed up to rounding.

    Args:
        probabilities: Probability of each draw, shape `(n,)`.
        generator: Source of randomness.

    Returns:
        Whether each draw is chosen, boolean, shape `(n,)`.
    """
    order = torch.randperm(len(probabilities), generator=generator)
    start = torch.rand((), dtype=torch.float64, generator=generator)
    passed = torch.floor(start + probabilities[order].cumsum(0))
    # rounding must not add a choice
    total = torch.ceil(probabilities.sum() - 1e-6)
    passed = torch.minimum(passed, total)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order] = torch.diff(passed, prepend=passed.new_zeros(1)) > 0
    return chosen


def multifidelity_weights(
    low_close: Tensor, high_close: Tensor, continued: Tensor, probabilities: Tensor
) -> Tensor:
    """Weight of each draw, shape `(n,)`; see the module.

    Args:
        low_close: Whether level 0 is close, boolean, shape `(n,)`.
        high_close: Whether level 1 is; arbitrary where it was not run.
        continued: Whether level 1 was run.
        probabilities: Probability that it was.
    """
    low, high = low_close.double(), high_close.double()
    return low + continued.double() / probabilities * (high - low)


def offset_negative(theta: Tensor, weights: Tensor) -> Tensor:
    """Nonnegative weights of the same total, by offsets between nearest neighbors.

    Each negative weight is summed with those of the draws nearest in standardized
    theta until the sum is not negative. The sum is then divided among these draws in
    proportion to their absolute weights.

    Args:
        theta: Parameters, shape `(n, d)`.
        weights: Their weights, shape `(n,)`.

    Returns:
        New weights, shape `(n,)`; all 0 if the total is not positive.
    """
    weights = weights.clone()
    if weights.sum() <= 0:
        return torch.zeros_like(weights)
    scaled = (theta - theta.mean(dim=0)) / theta.std(dim=0).clamp_min(1e-12)
    for index in (weights < 0).nonzero().flatten().tolist():
        if weights[index] >= 0:
            continue  # already offset with another
        distances = (scaled - scaled[index]).square().sum(dim=1)
        distances[index] = -1.0  # before draws at the same theta
        order = torch.argsort(distances)
        sums = weights[order].cumsum(0)
        enough = int((sums >= 0).nonzero()[0])
        cell, total = order[: enough + 1], sums[enough]
        sizes = weights[cell].abs()
        weights[cell] = sizes * (total / sizes.sum())
    return weights.clamp_min(0)


class MFABCPosterior:
    """Posterior with the `sample` method of sbi; ABC is run when it is called.

    Args:
        prior: Prior over theta.
        simulators: Those of level 0 and level 1, of the same theta.
        noise: Function `(n, generator)` that draws the noise of n simulations, which
            the levels share.
        num_low: Runs of level 0, used for all observations.
        num_high: Runs of level 1 at most, for each observation.
        epsilons: Distances below which level 0 and level 1 are close. The distance is
            the root mean square over features, z-scored by the outputs of level 0.
        etas: Probabilities to run level 1 if level 0 is close, and if it is not. The
            defaults of `epsilons` and `etas` are those of the reference code.
        negative: Treatment of negative weights: `"offset"` against neighbors, or
            `"clamp"` to 0 as in the reference code, which is biased.
        seed: Seed of theta, noise and choices.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: Any,
        simulators: Sequence[Simulator],
        noise: NoiseSampler,
        num_low: int,
        num_high: int,
        *,
        epsilons: tuple[float, float] = (1.0, 1.0),
        etas: tuple[float, float] = (0.9, 0.3),
        negative: Literal["offset", "clamp"] = "offset",
        seed: int = 0,
    ):
        if len(simulators) != 2:
            raise ValueError(
                f"simulators has {len(simulators)} levels. Pass two, level 0 first."
            )
        if not all(0 < eta <= 1 for eta in etas):
            raise ValueError(f"etas={etas} must be in (0, 1]: weights divide by them.")
        if min(num_low, num_high) < 2:
            raise ValueError(
                f"num_low={num_low} and num_high={num_high} must be at least 2."
            )
        if negative not in ("offset", "clamp"):
            raise ValueError(f"negative={negative!r} must be 'offset' or 'clamp'.")
        self._simulators, self._num_high = tuple(simulators), num_high
        self._epsilons, self._etas, self._negative = epsilons, etas, negative
        self._seed = seed
        # not the stream of theta, to which normal noise would be equal
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        with seeded(seed):
            self.theta = prior.sample((num_low,)).float()
        self._noise = noise(num_low, generator)
        self._low = self._run(0, torch.arange(num_low))
        # level 1 is run once for all observations
        self._high = torch.full_like(self._low, torch.nan)
        self._scale = self._low.std(dim=0).clamp_min(1e-12)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of each draw at an observation, and whether level 1 was run for it.

        Args:
            x: The observation, shape `(1, *x_shape)`.

        Returns:
            Weights, negative ones included, and flags, both of shape `(n,)`.
        """
        generator = torch.Generator().manual_seed(self._seed + 1)
        low_close = self._distance(self._low, x) < self._epsilons[0]
        eta = continuation_probabilities(low_close, self._etas, self._num_high)
        continued = choose(eta, generator)
        chosen = continued.nonzero().flatten()
        high_close = torch.zeros_like(low_close)
        new = chosen[self._high[chosen, 0].isnan()]
        if len(new) > 0:
            self._high[new] = self._run(1, new)
        high_close[chosen] = self._distance(self._high[chosen], x) < self._epsilons[1]
        return multifidelity_weights(low_close, high_close, continued, eta), continued

    def sample(
        self, sample_shape: tuple[int, ...], x: Tensor, show_progress_bars: bool = False
    ) -> Tensor:
        """Resample theta by weight, with replacement.

        If the total weight is not positive, samples are those of the prior, as in the
        reference code, and a warning is issued.

        Args:
            sample_shape: Number of samples, `(n,)`.
            x: The observation, shape `(1, *x_shape)`.
            show_progress_bars: Ignored.
        """
        weights, _ = self.weights(x)
        if self._negative == "offset":
            weights = offset_negative(self.theta, weights)
        weights = weights.clamp_min(0)
        if weights.sum() <= 0:
            warnings.warn(
                f"The total weight of {len(self.theta)} simulations is not positive at "
                f"epsilons={self._epsilons}; samples are those of the prior. Raise "
                "epsilons or num_high.",
                stacklevel=2,
            )
            weights = torch.ones_like(weights)
        generator = torch.Generator().manual_seed(self._seed + 2)
        n = torch.Size(sample_shape).numel()
        drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
        return self.theta[drawn].reshape(*sample_shape, -1)

    def _run(self, level: int, indices: Tensor) -> Tensor:
        parts = []
        for block in indices.split(_BATCH_SIZE):
            noise = (
                type(self._noise)(part[block] for part in self._noise)
                if isinstance(self._noise, (tuple, list))
                else self._noise[block]
            )
            x = self._simulators[level](self.theta[block], noise)
            parts.append(torch.as_tensor(x, dtype=torch.float32).flatten(1))
        return torch.cat(parts)

    def _distance(self, x: Tensor, observation: Tensor) -> Tensor:
        gap = (x - observation.reshape(1, -1)) / self._scale
        return gap.square().mean(dim=1).sqrt()
