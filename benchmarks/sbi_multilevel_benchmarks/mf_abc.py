r"""Multifidelity approximate Bayesian computation, after Prescott and Baker (2020).

Arxiv:2001.06256; the baseline of Krouglova et al. (2026). Plain ABC keeps the draws of
theta whose output at level 1 lies close to the observation. Here level 0 is run first,
and level 1 only with probability :math:`\eta_1` where level 0 is close, :math:`\eta_2`
where it is not. The weight

.. math::  w = 1[\mathrm{low\ close}] + \frac{1[\mathrm{continued}]}{\eta}
    \bigl(1[\mathrm{high\ close}] - 1[\mathrm{low\ close}]\bigr)

has the expectation :math:`1[\mathrm{high\ close}]`, so weighted averages estimate those
of plain ABC without bias (up to that of a ratio), at fewer runs of level 1.

*Budget.* Where more rows would be continued than may be, all probabilities are scaled
down together, and rows taken by systematic sampling: each with its own probability, as
many in total as their sum. So weights stay unbiased, but the fewer the runs the larger.

*Negative weights.* A row that is close at level 0 and not at level 1 has
:math:`w = 1 - 1/\eta_1 < 0`, and stands for the rows like it that were not continued.
Samples cannot have negative weight. Setting it to 0, as in the reference code, is
biased: what level 0 accepts wrongly is then never taken back. Here each negative weight
is instead offset against the rows nearest in theta, which leaves the total weight
unchanged, and moves none of it further than between neighbours. With
:math:`\eta_1 = 1` no weight is negative.

Samples are drawn with replacement, so many are the same, which a classifier notices.
The rows to continue depend on the observation, so the budget is one per observation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    derive_seed,
    seeded,
)

BLOCK = 1_000  # rows simulated at once


def continuation_probabilities(
    low_close: Tensor, etas: tuple[float, float], budget: int | None = None
) -> Tensor:
    """Probability that a row is run at level 1, shape `(n,)`, double precision.

    Args:
        low_close: Whether level 0 is close, boolean, shape `(n,)`.
        etas: Probabilities where it is and where it is not, in (0, 1].
        budget: Runs of level 1 at most; the probabilities are scaled to add up to it.
    """
    eta = torch.where(low_close, etas[0], etas[1]).double()
    return eta if budget is None else eta * min(1.0, budget / float(eta.sum()))


def choose_rows(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Rows chosen with the given probabilities, their number fixed (up to rounding).

    Systematic sampling of rows in random order.

    Args:
        probabilities: Probability of each row, shape `(n,)`.
        generator: Source of randomness.

    Returns:
        Whether each row is chosen, boolean, shape `(n,)`.
    """
    order = torch.randperm(len(probabilities), generator=generator)
    start = torch.rand((), dtype=torch.float64, generator=generator)
    passed = torch.floor(start + probabilities[order].cumsum(0))
    # rounding must not add a row to a whole number of them
    total = torch.ceil(probabilities.sum() - 1e-6)
    passed = torch.minimum(passed, total)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order] = torch.diff(passed, prepend=passed.new_zeros(1)) > 0
    return chosen


def multifidelity_weights(
    low_close: Tensor, high_close: Tensor, continued: Tensor, probabilities: Tensor
) -> Tensor:
    """Weight of each row, shape `(n,)`; see the module.

    Args:
        low_close: Whether level 0 is close, boolean, shape `(n,)`.
        high_close: Whether level 1 is; any value where it was not run.
        continued: Whether level 1 was run.
        probabilities: Probability that it was.
    """
    low, high = low_close.double(), high_close.double()
    return low + continued.double() / probabilities * (high - low)


def offset_negative(theta: Tensor, weights: Tensor) -> Tensor:
    """Weights >= 0 of the same total, negative ones offset against nearest neighbours.

    Each negative weight is joined by the rows nearest in standardised theta, until
    their sum is not negative; the sum is then shared among them in proportion to the
    size of their weights.

    Args:
        theta: Parameters, shape `(n, d)`.
        weights: Their weights, shape `(n,)`.

    Returns:
        New weights; all 0 if the total is not positive.
    """
    weights = weights.clone()
    if weights.sum() <= 0:
        return torch.zeros_like(weights)
    scaled = (theta - theta.mean(dim=0)) / theta.std(dim=0).clamp_min(1e-12)
    for row in (weights < 0).nonzero().flatten().tolist():
        if weights[row] >= 0:
            continue  # offset with one before
        distances = (scaled - scaled[row]).square().sum(dim=1)
        distances[row] = -1.0  # before rows at the same theta
        order = torch.argsort(distances)
        sums = weights[order].cumsum(0)
        enough = int((sums >= 0).nonzero()[0])
        cell, total = order[: enough + 1], sums[enough]
        sizes = weights[cell].abs()
        weights[cell] = sizes * (total / sizes.sum())
    return weights.clamp_min(0)


class MFABCPosterior:
    """Stands in for a posterior of sbi; ABC runs when samples are asked for.

    Args:
        prior: Prior over theta.
        simulators: Those of level 0 and level 1, of the same theta.
        noise: Function `(n, generator)` that draws the noise of n rows, which the
            levels share.
        num_low: Runs of level 0, used for all observations.
        num_high: Runs of level 1 at most, for each observation.
        epsilons: Distances below which level 0 and level 1 are close. The distance is
            the root mean square over features, z-scored by the rows of level 0.
        etas: Probabilities to run level 1 where level 0 is close, and where not. With
            these and the distances, the defaults are those of the reference code.
        negative: What becomes of negative weights: `"offset"` against neighbours, or
            `"clamp"` to 0, biased, as in the reference code.
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
                f"simulators has {len(simulators)} levels. Pass two, the cheaper first."
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
        # another stream than that of theta, or normal noise would be equal to it
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        with seeded(seed):
            self.theta = prior.sample((num_low,)).float()
        self._noise = noise(num_low, generator)
        self._low = self._run(0, torch.arange(num_low))
        # a row of level 1 is the same for all observations, so it is run once
        self._high = torch.full_like(self._low, torch.nan)
        self._scale = self._low.std(dim=0).clamp_min(1e-12)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of each row of theta at an observation, and whether it ran level 1.

        Args:
            x: The observation, shape `(1, *x_shape)`.

        Returns:
            Weights, negative ones included, and flags, both of shape `(n,)`.
        """
        generator = torch.Generator().manual_seed(self._seed + 1)
        low_close = self._distance(self._low, x) < self._epsilons[0]
        eta = continuation_probabilities(low_close, self._etas, self._num_high)
        continued = choose_rows(eta, generator)
        rows = continued.nonzero().flatten()
        high_close = torch.zeros_like(low_close)
        new = rows[self._high[rows, 0].isnan()]
        if len(new) > 0:
            self._high[new] = self._run(1, new)
        high_close[rows] = self._distance(self._high[rows], x) < self._epsilons[1]
        return multifidelity_weights(low_close, high_close, continued, eta), continued

    def sample(
        self, sample_shape: tuple[int, ...], x: Tensor, show_progress_bars: bool = False
    ) -> Tensor:
        """Draw rows of theta by their weights, with replacement.

        Where the total weight is not positive, rows are drawn from the prior, as in the
        reference code, with a warning.

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
                f"No weight is left of {len(self.theta)} rows at epsilons="
                f"{self._epsilons}; samples are those of the prior. Raise epsilons or "
                "num_high.",
                stacklevel=2,
            )
            weights = torch.ones_like(weights)
        generator = torch.Generator().manual_seed(self._seed + 2)
        n = torch.Size(sample_shape).numel()
        rows = torch.multinomial(weights, n, replacement=True, generator=generator)
        return self.theta[rows].reshape(*sample_shape, -1)

    def _run(self, level: int, rows: Tensor) -> Tensor:
        parts = []
        for block in rows.split(BLOCK):
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
