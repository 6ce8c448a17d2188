r"""Effective number of high-fidelity simulations of pairs used as a control variate.

The mean of :math:`f_L` (a loss, or a summary) is estimated from :math:`n_L` pairs
:math:`(f_L, f_0)` and :math:`n_0` further, independent values of :math:`f_0`. For any
weight :math:`\beta` the estimate

.. math::

    \hat\mu = \frac1{n_L} \sum_{i=1}^{n_L} (f_{L,i} - \beta f_{0,i})
    + \beta\, \frac1{n_0} \sum_{j=1}^{n_0} f_{0,j}'

is unbiased and has variance

.. math::

    \frac{\sigma_L^2 - 2 \beta \rho \sigma_L \sigma_0 + \beta^2 \sigma_0^2}{n_L}
    + \frac{\beta^2 \sigma_0^2}{n_0} .

The variance is minimal at :math:`\beta^* = \rho\, (\sigma_L / \sigma_0)\, n_0 / (n_0 +
n_L)`, where it equals :math:`(\sigma_L^2 / n_L) (1 - \rho^2 n_0 / (n_0 + n_L))`, the
variance of the mean of

.. math::

    n_\text{eff} = \frac{n_L}{1 - \rho^2\, n_0 / (n_0 + n_L)}

high-fidelity simulations. The limit for :math:`n_0 \to \infty` is :math:`n_L / (1 -
\rho^2)`. Multilevel Monte Carlo uses :math:`\beta = 1`, whose variance is never
smaller, and exceeds that of the :math:`n_L` values of :math:`f_L` alone if the levels
differ strongly.

The two sides of a pair share theta, so part of their correlation is due to theta alone.
This part requires no simulator: :math:`\mathbb{E}[b(\theta)]` is available from draws
of theta for any function b, and :math:`f_L - b(\theta)` has a smaller variance than
:math:`f_L`. The gain from the lower level is therefore computed from the correlation of
the residuals given theta, ideally with :math:`b = \mathbb{E}[f_L \mid \theta]`.
Otherwise a lower level that ignores theta and shares no noise would appear useful
wherever :math:`f_L` varies mainly with theta.

References: Lavenberg and Welch (1981) for known :math:`\mathbb{E} f_0`; Peherstorfer,
Willcox and Gunzburger (2016), *Optimal model management for multifidelity Monte Carlo
estimation*, for weights in a multilevel sum.
"""

from __future__ import annotations


def effective_num_high(correlation: float, num_high: int, num_low: int) -> float:
    r"""Number of high-fidelity simulations with the same variance, at the best weight.

    .. math:: n_L / (1 - \rho^2 n_0 / (n_0 + n_L))

    Args:
        correlation: Correlation :math:`\rho` of the two sides of a pair.
        num_high: Number of pairs :math:`n_L`.
        num_low: Number of further simulations :math:`n_0` of the lower level.

    Returns:
        The effective number of high-fidelity simulations, at least `num_high`.

    Example:
    --------

    ::

        >>> effective_num_high(0.8, num_high=100, num_low=300)  # 100 / (1 - 0.48)
        192.3...
    """
    share = num_low / (num_low + num_high)
    return num_high / (1 - correlation**2 * share)


def best_weight(
    correlation: float, deviation_ratio: float, num_high: int, num_low: int
) -> float:
    r"""Weight :math:`\beta^*` of the lower level that minimizes the variance.

    .. math:: \beta^* = \rho\, \frac{\sigma_L}{\sigma_0}\, \frac{n_0}{n_0 + n_L}

    Args:
        correlation: Correlation :math:`\rho` of the two sides of a pair.
        deviation_ratio: Ratio of standard deviations :math:`\sigma_L / \sigma_0`.
        num_high: Number of pairs :math:`n_L`.
        num_low: Number of further simulations :math:`n_0` of the lower level.

    Returns:
        The weight.

    Example:
    --------

    ::

        >>> best_weight(0.5, 2.0, num_high=100, num_low=300)
        0.75
    """
    return correlation * deviation_ratio * num_low / (num_low + num_high)
