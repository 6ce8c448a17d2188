r"""How many high-fidelity rows pairs and cheap rows stand for, as a control variate.

The mean of :math:`f_L` (a loss, or a summary) is to be known from :math:`n_L` pairs
:math:`(f_L, f_0)` and :math:`n_0` further, independent rows of :math:`f_0`. For any
weight :math:`\beta` the estimate

.. math::

    \hat\mu = \frac1{n_L} \sum_{\text{pairs}} (f_L - \beta f_0)
    + \beta\, \frac1{n_0} \sum_{\text{cheap}} f_0

is unbiased, of variance

.. math::

    \frac{\sigma_L^2 - 2 \beta \rho \sigma_L \sigma_0 + \beta^2 \sigma_0^2}{n_L}
    + \frac{\beta^2 \sigma_0^2}{n_0} .

It is least at :math:`\beta^* = \rho\, (\sigma_L / \sigma_0)\, n_0 / (n_0 + n_L)`, where
it is :math:`(\sigma_L^2 / n_L) (1 - \rho^2 n_0 / (n_0 + n_L))`: that of

.. math::

    n_\text{eff} = \frac{n_L}{1 - \rho^2\, n_0 / (n_0 + n_L)}

high-fidelity rows. With cheap rows without end this is :math:`n_L / (1 - \rho^2)`; they
can replace so many, and no more. Plain multilevel Monte Carlo has :math:`\beta = 1`,
never better, and worse than :math:`n_L` rows alone where the levels differ much.

Pairs share theta, and so does whatever :math:`f_L` owes to theta alone. That part needs
no simulator: draws of theta are free, and :math:`f_L - b(\theta)`, with any function b
whose mean is known from them, is the better starting point. What the level *below*
saves is therefore counted with the correlation beyond theta, best with :math:`b =
\mathbb{E}[f_L \mid \theta]`. Otherwise a level below that ignores theta and shares no
noise would seem worth a lot, wherever :math:`f_L` varies mostly with theta.

With a known mean of :math:`f_0` this is the classical control variate (Lavenberg and
Welch 1981); as a weight in a multilevel sum see Peherstorfer, Willcox, Gunzburger
(2016), *Optimal model management for multifidelity Monte Carlo estimation*.
"""

from __future__ import annotations


def effective_num_high(correlation: float, num_high: int, num_low: int) -> float:
    r"""High-fidelity rows of the same variance, at the best weight.

    .. math:: n_L / (1 - \rho^2 n_0 / (n_0 + n_L))

    Args:
        correlation: :math:`\rho` of the two sides of a pair.
        num_high: Pairs :math:`n_L`.
        num_low: Further rows :math:`n_0` of the level below.

    Example:
    --------

    ::

        >>> effective_num_high(0.8, num_high=100, num_low=300)  # 100 / (1 - 0.64 * 0.75)
        192.3...
    """
    share = num_low / (num_low + num_high)
    return num_high / (1 - correlation**2 * share)


def best_weight(
    correlation: float, deviation_ratio: float, num_high: int, num_low: int
) -> float:
    r"""The weight :math:`\beta^*` of the level below.

    Args:
        correlation: :math:`\rho` of the two sides of a pair.
        deviation_ratio: :math:`\sigma_L / \sigma_0`.
        num_high: Pairs :math:`n_L`.
        num_low: Further rows :math:`n_0` of the level below.

    Example:
    --------

    ::

        >>> best_weight(0.5, 2.0, num_high=100, num_low=300)
        0.75
    """
    return correlation * deviation_ratio * num_low / (num_low + num_high)
