r"""How many high-fidelity rows the lower levels stood in for.

Plain training on n high-fidelity rows has the expected loss

.. math::  \ell(n) \approx \ell_\infty + \frac{a}{n},

the law of a well-specified model by maximum likelihood; a flexible network that stops
early follows it roughly. Its two numbers are known from plain training on n and on n/2
rows, both judged by rows held out. Training with the lower levels, at loss
:math:`\ell`, is then worth

.. math::  n_\text{eff} = \frac{a}{\ell - \ell_\infty}, \qquad
    a = n\, (\ell(n/2) - \ell(n)), \quad \ell_\infty = 2\,\ell(n) - \ell(n/2).

With few rows held out this is a rough figure, and extrapolates beyond n: the interval
says how rough. It is infinite where the loss is at or below the limit, which only says
"many more".

The interval, and the error of the gain, are over held-out rows *for the networks at
hand*. They leave out the randomness of training: the same rows trained on again, from
another `torch.manual_seed`, can give a gain that differs by several of its errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NUM_BOOTSTRAPS, _INTERVAL = 1_000, (5, 95)


@dataclass(frozen=True)
class EffectiveSampleSize:
    """What the lower levels are worth.

    Args:
        num_rows: High-fidelity rows there are.
        estimate: High-fidelity rows that plain training would need to do as well;
            infinite for "many more", NaN where plain training does not improve with
            rows, so that nothing can be said.
        interval: 5th and 95th percentile of the estimate, over draws of held-out rows;
            training again varies beyond it.
        gain: Held-out log score a row, in nats, beyond plain training on the same rows.
        gain_error: Its standard error over rows. The randomness of training is not in
            it: train with several `torch.manual_seed` to see that.

    Example:
    --------

    ::

        >>> print(EffectiveSampleSize(40, float("inf"), (45, float("inf")), 0.35, 0.2))
        40 high-fidelity rows count as many more than there are (45 or more); log \
score +0.35 ± 0.20 nats a row beside training without lower levels
    """

    num_rows: int
    estimate: float
    interval: tuple[float, float]
    gain: float
    gain_error: float

    def __str__(self) -> str:
        return (
            f"{self.num_rows} high-fidelity rows {self._count}; log score "
            f"{self.gain:+.2f} ± {self.gain_error:.2f} nats a row beside training "
            "without lower levels"
        )

    @property
    def _count(self) -> str:
        if np.isnan(self.estimate):
            return "count for a number too noisy to tell"
        low, high = self.interval
        limits = f" ({low:.0f} to {high:.0f})"
        if np.isinf(high):
            limits = "" if np.isinf(low) else f" ({low:.0f} or more)"
        if np.isinf(self.estimate):
            return f"count as many more than there are{limits}"
        return f"count as about {self.estimate:.0f}{limits}"


def effective_sample_size(
    loss: np.ndarray, plain: np.ndarray, plain_on_half: np.ndarray, num_rows: int
) -> EffectiveSampleSize:
    """Estimate the effective number of high-fidelity rows.

    Args:
        loss: Held-out loss of each row with the lower levels, shape `(n,)`.
        plain: The same of plain training on the high-fidelity rows alone.
        plain_on_half: The same of plain training on half of these.
        num_rows: High-fidelity rows.

    Example:
    --------

    ::

        >>> import numpy as np
        >>> n = 100  # a loss of 1 + 50 / n, and of 400 rows with the lower levels
        >>> losses = [np.full(n, 1 + 50 / rows) for rows in (400, n, n / 2)]
        >>> effective_sample_size(*losses, num_rows=n).estimate
        400.0
    """
    table = np.stack([loss, plain, plain_on_half])
    generator = np.random.default_rng(0)
    draws = generator.integers(len(loss), size=(_NUM_BOOTSTRAPS, len(loss)))
    spread = [_ratio(*table[:, draw].mean(axis=1)) for draw in draws]
    known = [value for value in spread if not np.isnan(value)]
    # a percentile between numbers and infinity would be NaN
    interval = (
        np.percentile(known, _INTERVAL, method="lower") if known else (np.nan, np.nan)
    )
    gain = plain - loss
    return EffectiveSampleSize(
        num_rows,
        round(float(num_rows * _ratio(*table.mean(axis=1))), 6),
        (float(num_rows * interval[0]), float(num_rows * interval[1])),
        float(gain.mean()),
        float(gain.std(ddof=1) / np.sqrt(len(gain))),
    )


def _ratio(loss: float, plain: float, plain_on_half: float) -> float:
    """Effective over actual rows."""
    slope = plain_on_half - plain
    if slope <= 0:
        return np.nan
    excess = loss - (plain - slope)
    return slope / excess if excess > 0 else np.inf
