r"""Matter power: cosmological parameters from a power spectrum, by CAMB and a formula.

Theta is :math:`(\Omega_m, \sigma_8, h, n_s)` of a flat universe without massive
neutrinos, with a uniform prior on :math:`[0.1, 0.5] \times [0.6, 1] \times [0.5, 0.9]
\times [0.8, 1.2]`, the ranges of the Quijote simulations (Villaescusa-Navarro et al.
2020, arXiv:1909.05273), and :math:`\Omega_b = 0.049`. x is the power of matter at
redshift 0 in 15 bins of equal width in :math:`\ln k`, from 0.02 to 0.5 h/Mpc,

.. math::

    x_j = \ln\!\left(P(k_j) + 1/\bar n\right) + \sqrt{2 / N_j}\, \varepsilon_j,
    \qquad \varepsilon_j \sim N(0, 1),

at the centers of the bins, where :math:`\bar n = 3 \cdot 10^{-4}\,
(h/\mathrm{Mpc})^3` is a density of tracers and :math:`N_j = V (k_{j+1}^3 - k_j^3) / (6
\pi^2)` the number of modes in the bin in a volume :math:`V = 10^9\,
(\mathrm{Mpc}/h)^3`: the Gaussian error of an estimated power spectrum. Levels share
:math:`\varepsilon`.

*Level 1* is the package CAMB (Lewis, Challinor and Lasenby 2000,
arXiv:astro-ph/9911177): the Boltzmann equations, and nonlinear growth by HMcode-2020
(Mead et al. 2021, arXiv:2009.01858).

*Level 0* is linear theory by a formula,

.. math::

    P \propto k^{n_s} T(k / \Gamma)^2, \qquad
    \Gamma = \Omega_m h \exp(-\Omega_b (1 + \sqrt{2 h} / \Omega_m)),

with the transfer function T of Bardeen et al. (1986, Astrophysical Journal 304, 15),
equation G3, and :math:`\Gamma` of Sugiyama (1995, arXiv:astro-ph/9412025). It has
neither acoustic oscillations nor nonlinear growth, and its background radiation has 2.7
K. Both levels have :math:`\sigma_8` as the standard deviation of the linear density in
spheres of 8 Mpc/h,

.. math::

    \sigma_8^2 = \frac1{2 \pi^2} \int P(k)\, W(8 k)^2 k^2\, dk, \qquad
    W(y) = 3 (\sin y - y \cos y) / y^3 .

A simulation of level 1 takes 0.8 s on one core, one of level 0 less than 0.1 ms. The
grid of k of CAMB changes :math:`\ln P` by up to :math:`10^{-3}`; the least error of a
bin is :math:`1.4 \cdot 10^{-3}`. The exact posterior is not evaluated, as it needs CAMB
at each theta. Simulations are run once and read afterwards, if there is a folder for
them (`stored_task`).
"""

from __future__ import annotations

import importlib.util
import math
import os
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.stored_task import StoredTask

LOW, HIGH = (0.1, 0.6, 0.5, 0.8), (0.5, 1.0, 0.9, 1.2)
BARYONS = 0.049
VOLUME, DENSITY = 1e9, 3e-4  # (Mpc/h)^3 and (h/Mpc)^3
NUM_BINS = 15
EDGES = np.geomspace(0.02, 0.5, NUM_BINS + 1)  # h/Mpc
CENTERS = np.sqrt(EDGES[1:] * EDGES[:-1])
NUM_MODES = VOLUME * np.diff(EDGES**3) / (6 * math.pi**2)

VERSION = 1  # of the simulators; kept simulations of another one are not read

_ERRORS = torch.as_tensor(np.sqrt(2 / NUM_MODES))
_AMPLITUDE = 2e-9  # of the first run of CAMB, before sigma8 is known
_MAX_K = 2.0  # 1/Mpc; up to 5, sigma8 changes by less than 1e-4 of it
_HALO_MODEL = "mead2020"
_WAVES = torch.logspace(-5, 2, 2_000, dtype=torch.float64)  # of the integral, h/Mpc


def linear_power(theta: Tensor, waves: Tensor) -> Tensor:
    """Linear power of matter by the formula of level 0, in (Mpc/h)^3.

    Args:
        theta: Parameters, shape `(n, 4)`.
        waves: Wave numbers in h/Mpc, shape `(k,)`.

    Returns:
        Power, shape `(n, k)`, double precision.
    """
    sigma = theta[:, 1:2].double()
    window = _window(8 * _WAVES)
    integrand = _shape(theta, _WAVES) * window**2 * _WAVES**3  # over ln k
    variance = torch.trapezoid(integrand, _WAVES.log()) / (2 * math.pi**2)
    return _shape(theta, waves.double()) * sigma**2 / variance.unsqueeze(1)


def _shape(theta: Tensor, waves: Tensor) -> Tensor:
    """The power up to a factor."""
    matter, _, hubble, index = theta.double().unsqueeze(2).unbind(dim=1)
    suppression = torch.exp(-BARYONS * (1 + (2 * hubble).sqrt() / matter))
    q = waves / (matter * hubble * suppression)
    series = 1 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4
    transfer = torch.log1p(2.34 * q) / (2.34 * q) * series**-0.25
    return waves**index * transfer**2


def _window(y: Tensor) -> Tensor:
    """Fourier transform of a sphere; a series where the formula cancels."""
    exact = 3 * (y.sin() - y * y.cos()) / y**3
    return torch.where(y < 1e-2, 1 - y**2 / 10, exact)


def nonlinear_power(theta: Tensor, waves: np.ndarray) -> Tensor:
    """Power of matter by CAMB in (Mpc/h)^3, shape `(n, k)`; see `linear_power`."""
    rows = [_camb(*row, waves) for row in theta.double().tolist()]
    return torch.as_tensor(np.stack(rows))


def _camb(
    matter: float, sigma: float, hubble: float, index: float, waves: np.ndarray
) -> np.ndarray:
    camb = import_module("camb")  # not every installation has it
    parameters = camb.CAMBparams(WantCls=False, WantTransfer=True)
    parameters.set_cosmology(
        H0=100 * hubble,
        ombh2=BARYONS * hubble**2,
        omch2=(matter - BARYONS) * hubble**2,
        mnu=0.0,
        num_massive_neutrinos=0,
    )
    parameters.InitPower.set_params(As=_AMPLITUDE, ns=index)
    parameters.set_matter_power(kmax=_MAX_K, nonlinear=False, silent=True)
    results = camb.get_transfer_functions(parameters)
    results.calc_power_spectra()
    # the amplitude is that of the linear power; the second run has a finer grid of k
    factor = (sigma / results.get_sigma8_0()) ** 2
    parameters.InitPower.set_params(As=factor * _AMPLITUDE, ns=index)
    parameters.NonLinear = camb.model.NonLinear_both
    parameters.NonLinearModel.set_params(halofit_version=_HALO_MODEL)
    results.calc_power_spectra(parameters)
    k, _, power = results.get_nonlinear_matter_power_spectrum()
    return np.exp(np.interp(np.log(waves), np.log(k), np.log(power[0])))


def _measured(power: Tensor, noise: Tensor) -> Tensor:
    return ((power + 1 / DENSITY).log() + _ERRORS * noise).float()


def linear_theory(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0: x, shape `(n, 15)`."""
    return _measured(linear_power(theta, torch.as_tensor(CENTERS)), noise)


def boltzmann(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: x, shape `(n, 15)`."""
    return _measured(nonlinear_power(theta, CENTERS), noise)


class MatterPower(StoredTask):
    """Posterior of four cosmological parameters.

    Args:
        folder: Folder in which simulations are kept, see `StoredTask.keep_in`.

    Raises:
        ValueError: If camb is not installed.
    """

    name = "matter-power"
    num_simulations = (10_000, 50)
    oracle_size = 1_000
    simulators = (linear_theory, boltzmann)
    costs = (1e-4, 0.8)  # seconds, measured
    prior = BoxUniform(torch.tensor(LOW), torch.tensor(HIGH))

    def __init__(self, folder: str | os.PathLike | None = None):
        if importlib.util.find_spec("camb") is None:
            raise ValueError(
                "task='matter-power' runs CAMB, which is not installed. Run `pip "
                "install 'sbi_multilevel_benchmarks[cosmology]'` or `pip install camb`."
            )
        settings = {
            "version": VERSION,
            "camb": ".".join(version("camb").split(".")[:2]),
            "halo_model": _HALO_MODEL,
            "max_k": _MAX_K,
            "prior": [LOW, HIGH],
            "baryons": BARYONS,
            "volume": VOLUME,
            "density": DENSITY,
            "edges": EDGES.tolist(),
        }
        self.keep_in(folder, settings)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """Standard normal errors of the bins, shape `(n, 15)`."""
        return torch.randn(n, NUM_BINS, generator=generator)


register_task("matter-power", lambda data: MatterPower())
