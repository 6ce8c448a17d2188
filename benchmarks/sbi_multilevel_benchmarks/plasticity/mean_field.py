r"""The low level: rates at which the mean weights do not change.

*Drift.* For independent Poisson spikes of rates :math:`r_\mathrm{pre}` and
:math:`r_\mathrm{post}`, traces have means :math:`r \tau`. A presynaptic spike changes a
weight by :math:`\eta(\alpha + \kappa r_\mathrm{post} \tau_\mathrm{post})` in the mean,
a postsynaptic one by :math:`\eta(\beta + \gamma r_\mathrm{pre} \tau_\mathrm{pre})`, so

.. math::

    \langle \dot w \rangle = \eta \left[\alpha r_\mathrm{pre} + \beta r_\mathrm{post}
    + \lambda r_\mathrm{pre} r_\mathrm{post}\right], \qquad
    \lambda = \kappa \tau_\mathrm{post} + \gamma \tau_\mathrm{pre} .

*Fixed point.* The drifts of EE and EI are 0 at

.. math::

    r_E = -\frac{\alpha_{EE} + \beta_{EE}}{\lambda_{EE}}, \qquad
    r_I = -\frac{\alpha_{EI}\, r_E}{\beta_{EI} + \lambda_{EI}\, r_E} ,

equations 14 and 15 of Krouglova et al. (2026), arXiv:2502.08416. (In equation 15 as
printed, :math:`\tau` is missing in the last term; their code has it.) The rules IE and
II also fix rates, :math:`r_E = -\alpha_{IE} r_I / (\beta_{IE} + \lambda_{IE} r_I)` and
:math:`r_I = -(\alpha_{II} + \beta_{II}) / \lambda_{II}`. Four equations for two rates
have no common solution in general: some weights end at their bounds, which is one
reason why the mean field is a rough approximation.

*Stability.* With :math:`s = (\alpha + \beta)_{EE}`, :math:`k = -(\beta + \lambda
r_E)_{EI}` and :math:`m = -\beta_{EI} r_I / r_E`, the drifts of the two weights have
derivatives M by the rates at the fixed point, and rates follow weights with derivatives
J,

.. math::

    M = \begin{pmatrix} -s & 0 \\ m & -k \end{pmatrix}, \qquad
    J = \begin{pmatrix} a & -b \\ c & d \end{pmatrix}, \qquad a, b, c, d > 0,

as E neurons excite both populations and I neurons inhibit E. (The drift of EE is
:math:`r_E (s + \lambda r_E)`, of derivative :math:`\lambda r_E = -s` at its zero.)
Weights return to the fixed point if and only if

.. math::  \det MJ = s k \det J > 0 \quad \text{and} \quad
    \operatorname{tr} MJ = -(s a + m b + k d) < 0 .

Hence s and k have the same sign, and both must be positive unless m is large. With
:math:`s, k > 0`, positive rates require :math:`\lambda_{EE} < 0` and :math:`\alpha_{EI}
> 0`; the signs :math:`\alpha + \beta > 0` and :math:`\lambda < 0` of EI are neither
needed nor enough.
Synapses of I neurons lower rates, so all signs are reversed: II is stable if
:math:`\alpha + \beta < 0` and :math:`\lambda > 0`, and IE if :math:`\beta + \lambda r_I
> 0` and :math:`\alpha < 0`. The rule of Vogels et al. (2011), :math:`\alpha_{IE} = -2
\rho \tau`, :math:`\beta_{IE} = 0`, :math:`\gamma_{IE} = \kappa_{IE} = 1`, is of this
kind, with :math:`r_E = \rho`.

The paper contradicts itself: appendix G.2 has :math:`-\alpha - \beta > 0` and
:math:`\lambda > 0` for all types, the values of G.3 have :math:`\alpha + \beta = 1` and
:math:`\lambda = -0.07`. The latter are those derived here.

*Level 0.* The rates are those that the drifts reach from 1 Hz, first of E and then of I
neurons, within [1, 50] Hz: the fixed point if it is stable and in this range, and
otherwise a bound. The prior is restricted to theta with both rates inside, and with the
signs above for IE, at these rates, and II (`is_plausible`). Of levels with 3 or 6
parameters, the first ones of EE are free and the others have the values of appendix
G.3; which ones the paper leaves free it does not say. Their rates may be at the bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_multilevel_benchmarks.plasticity.parameters import FIXED, NAMES, RATES, RULES


def by_rule(theta: Tensor) -> dict[str, Tensor]:
    """Each parameter of the four rules, shape `(n, 4)`, double precision.

    Args:
        theta: Parameters, shape `(n, 24)`.
    """
    columns = theta.double().reshape(len(theta), len(RULES), len(NAMES))
    return dict(zip(NAMES, columns.unbind(dim=2)))


def slopes(theta: Tensor) -> Tensor:
    r"""The factor :math:`\lambda` of each rule, shape `(n, 4)`."""
    p = by_rule(theta)
    return p["kappa"] * p["tau_post"] + p["gamma"] * p["tau_pre"]


def drifts(theta: Tensor, rates: Tensor) -> Tensor:
    """Mean change of a weight of each rule per second, over the learning rate.

    Args:
        theta: Parameters, shape `(n, 24)`.
        rates: Rates of E and I neurons in Hz, shape `(n, 2)`.

    Returns:
        Drifts in the order of `RULES`, shape `(n, 4)`.
    """
    p = by_rule(theta)
    pre, post = rates.double()[:, [0, 0, 1, 1]], rates.double()[:, [0, 1, 0, 1]]
    return p["alpha"] * pre + p["beta"] * post + slopes(theta) * pre * post


def fixed_point(theta: Tensor) -> Tensor:
    """Rates at which the drifts of EE and EI are 0, stable or not; shape `(n, 2)`."""
    p, slope = by_rule(theta), slopes(theta)
    r_e = -(p["alpha"] + p["beta"])[:, 0] / slope[:, 0]
    r_i = -p["alpha"][:, 1] * r_e / (p["beta"][:, 1] + slope[:, 1] * r_e)
    return torch.stack((r_e, r_i), dim=1)


def is_stable(theta: Tensor, rates: Tensor) -> Tensor:
    """Whether each rule alone opposes changes of the rate that it controls.

    Args:
        theta: Parameters, shape `(n, 24)`.
        rates: Rates of E and I neurons in Hz, shape `(n, 2)`.

    Returns:
        Booleans in the order of `RULES`, shape `(n, 4)`: EE and IE control the rate of
        E neurons, EI and II that of I neurons.
    """
    p, slope = by_rule(theta), slopes(theta)
    r_e, r_i = rates.double().unbind(dim=1)
    return torch.stack(
        (
            slope[:, 0] < 0,
            p["beta"][:, 1] + slope[:, 1] * r_e < 0,
            p["beta"][:, 2] + slope[:, 2] * r_i > 0,
            slope[:, 3] > 0,
        ),
        dim=1,
    )


def with_fixed(theta: Tensor, num_free: int) -> Tensor:
    """Theta with all but the first parameters at the values of appendix G.3.

    Args:
        theta: Parameters, shape `(n, 24)`.
        num_free: Number of parameters that are kept.
    """
    fixed = torch.tensor(FIXED * len(RULES), dtype=theta.dtype)
    return torch.cat((theta[:, :num_free], fixed[num_free:].expand(len(theta), -1)), 1)


def steady_rates(theta: Tensor, num_free: int = 12) -> Tensor:
    """Rates of E and I neurons in Hz, within [1, 50]; see the module.

    Args:
        theta: Parameters, shape `(n, 24)`; those of IE and II are not used.
        num_free: Number of parameters that the rates depend on, the first ones.

    Returns:
        Rates, shape `(n, 2)`, double precision.
    """
    theta = with_fixed(theta, num_free)
    p, slope = by_rule(theta), slopes(theta)
    r_e = _reached((p["alpha"] + p["beta"])[:, 0], slope[:, 0])
    r_i = _reached(p["alpha"][:, 1] * r_e, p["beta"][:, 1] + slope[:, 1] * r_e)
    return torch.stack((r_e, r_i), dim=1)


def _reached(constant: Tensor, slope: Tensor) -> Tensor:
    """Where a rate with the drift `constant + slope * rate` comes to rest from 1 Hz."""
    lowest, highest = RATES
    zero = torch.where(slope < 0, -constant / slope, highest)
    grows = constant + slope * lowest > 0
    return torch.where(grows, zero.clamp(lowest, highest), lowest)


def is_plausible(theta: Tensor) -> Tensor:
    """Whether all rules are stable and the rates inside 1 to 50 Hz, shape `(n,)`."""
    p, rates = by_rule(theta), steady_rates(theta)
    inside = ((rates > RATES[0]) & (rates < RATES[1])).all(dim=1)  # hence EE and EI
    sums = p["alpha"] + p["beta"]
    have_zeros = (p["alpha"][:, 2] < 0) & (sums[:, 3] < 0)
    return inside & have_zeros & is_stable(theta, rates)[:, 2:].all(dim=1)
