r"""Effective sample size of training with lower fidelities.

Training on n high-fidelity simulations alone has the expected loss

.. math::  \ell(n) \approx \ell_\infty + \frac{a}{n},

which is the asymptotic law of maximum likelihood in a well-specified model, and an
approximation for flexible networks with early stopping. Its two parameters are
identified by training on n and on n/2 simulations and evaluating both on held-out
simulations. Training with the lower fidelities, at held-out loss :math:`\ell`, has the
effective sample size

.. math::  n_\text{eff} = \frac{a}{\ell - \ell_\infty}, \qquad
    a = n\, (\ell(n/2) - \ell(n)), \quad \ell_\infty = 2\,\ell(n) - \ell(n/2).

The estimate extrapolates beyond n and is rough when few simulations are held out; the
interval quantifies this. It is infinite if the loss is at or below
:math:`\ell_\infty`, in which case only a lower bound is available.

The interval and the error of the gain account for the sampling of held-out simulations
*given the trained networks*. They exclude the randomness of training: training again on
the same simulations after another `torch.manual_seed` can change the gain by several of
its errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NUM_BOOTSTRAPS, _INTERVAL = 1_000, (5, 95)


@dataclass(frozen=True)
class EffectiveSampleSize:
    """Effective sample size, and gain in log score, of training with lower fidelities.

    Args:
        num_high: Number of high-fidelity simulations.
        estimate: Number of high-fidelity simulations with which training without lower
            fidelities reaches the same held-out loss. Infinite if the loss is at or
            below the limit of that law; NaN if training without lower fidelities does
            not improve with the number of simulations.
        interval: 5th and 95th percentile of the estimate over bootstrap draws of the
            held-out simulations, given the networks.
        gain: Mean difference in held-out log score per simulation, in nats, to training
            without lower fidelities.
        gain_error: Standard error of the gain over held-out simulations. It excludes
            the randomness of training.

    Example:
    --------

    ::

        >>> print(EffectiveSampleSize(40, 55.0, (30, float("inf")), 0.35, 0.2))
        effective sample size of the 40 high-fidelity simulations: 55 (30 or more); \
log score +0.35 ± 0.20 nats per simulation relative to training without lower fidelities
    """

    num_high: int
    estimate: float
    interval: tuple[float, float]
    gain: float
    gain_error: float

    def __str__(self) -> str:
        low, high = self.interval
        size, limits = f"{self.estimate:.0f}", f" ({low:.0f} to {high:.0f})"
        if np.isinf(self.estimate):
            size = "too large to be estimated"
        if np.isinf(high):
            limits = "" if np.isinf(low) else f" ({low:.0f} or more)"
        if np.isnan(self.estimate):
            size, limits = "not identified", ""
        return (
            f"effective sample size of the {self.num_high} high-fidelity simulations: "
            f"{size}{limits}; log score {self.gain:+.2f} ± {self.gain_error:.2f} nats "
            "per simulation relative to training without lower fidelities"
        )


def effective_sample_size(
    loss: np.ndarray, plain: np.ndarray, plain_on_half: np.ndarray, num_high: int
) -> EffectiveSampleSize:
    """Estimate the effective sample size from held-out losses.

    Args:
        loss: Held-out loss of each simulation after training with the lower fidelities,
            shape `(n,)`, in nats.
        plain: Held-out loss after training on the high-fidelity simulations alone,
            shape `(n,)`.
        plain_on_half: Held-out loss after training on half of these, shape `(n,)`.
        num_high: Number of high-fidelity simulations.

    Returns:
        The effective sample size with its interval, and the gain in log score.

    Example:
    --------

    ::

        >>> import numpy as np
        >>> n = 100  # a loss of 1 + 50 / n, and that of n = 400 with lower fidelities
        >>> losses = [np.full(n, 1 + 50 / size) for size in (400, n, n / 2)]
        >>> effective_sample_size(*losses, num_high=n).estimate
        400.0
    """
    table = np.stack([loss, plain, plain_on_half])
    generator = np.random.default_rng(0)
    draws = generator.integers(len(loss), size=(_NUM_BOOTSTRAPS, len(loss)))
    ratios = [_ratio(*table[:, draw].mean(axis=1)) for draw in draws]
    known = [value for value in ratios if not np.isnan(value)] or [np.nan]
    # interpolation between a number and infinity would give NaN
    low, high = num_high * np.percentile(known, _INTERVAL, method="lower")
    gain = plain - loss
    return EffectiveSampleSize(
        num_high,
        round(float(num_high * _ratio(*table.mean(axis=1))), 6),
        (float(low), float(high)),
        float(gain.mean()),
        float(gain.std(ddof=1) / np.sqrt(len(gain))),
    )


def _ratio(loss: float, plain: float, plain_on_half: float) -> float:
    """Ratio of the effective to the actual sample size."""
    slope = plain_on_half - plain
    if slope <= 0:
        return np.nan
    excess = loss - (plain - slope)
    return slope / excess if excess > 0 else np.inf
