r"""The voltage of a cell that is driven by a noisy step current.

All branches have the channels of Hodgkin and Huxley, with the same densities
:math:`g_\mathrm{Na}` and :math:`g_\mathrm{K}`, in S/cm^2. The voltage V of a
compartment with neighbors j follows

.. math::

    C \dot V = -g_\mathrm{Na} m^3 h (V - 50) - g_\mathrm{K} n^4 (V + 77)
    - 3 \cdot 10^{-4} (V + 54.3) + \textstyle\sum_j g_j (V_j - V) + I(t) / A

with V in mV, conductances in S/cm^2, :math:`C = 1` uF/cm^2, and the rates of the gates
m, h, n of Hodgkin and Huxley (1952) in the form of Sterratt et al. (2011), the channel
`HH` of jaxley. It is solved by implicit Euler steps of 0.025 ms, from -65 mV and gates
in their steady state.

Single precision, the default of jax, has errors of mean voltages of about 0.001 mV at
5 000 ohm cm. They grow as the resistivity falls, to 0.2 mV at 50 ohm cm. Double
precision takes three times as long.

The rates :math:`\alpha_m` and :math:`\alpha_n` have the form :math:`u / (1 - e^{-u})`,
which is 0 / 0 at -40 mV and -55 mV. jaxley 0.14 returns NaN there; in single precision
2 to 6 % of simulations with 8 compartments a branch meet it. Here the ratio is 1 at
:math:`u = 0`, and accurate around it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel_benchmarks.neuron.morphology import Morphology
from sbi_multilevel_benchmarks.neuron.summaries import ONSET, summarize

TIME_STEP, DURATION = 0.025, 120.0  # ms
NUM_STEPS = round(DURATION / TIME_STEP)
START = -65.0  # mV
VERSION = 1  # of the equations and summaries; stored simulations depend on it


@dataclass(frozen=True)
class StepCurrent:
    """A step current into the soma, from 10 ms on, with noise at all times.

    Args:
        amplitude: Current, nA.
        duration: Duration, ms.
        noise: Standard deviation of the normal noise of each time step, nA.
    """

    amplitude: float
    duration: float
    noise: float = 0.01

    def values(self, noise: np.ndarray) -> np.ndarray:
        """The current of each time step, nA.

        Args:
            noise: Standard normal draws, shape `(n, num_steps)`.
        """
        times = np.arange(noise.shape[1]) * TIME_STEP
        is_on = (times >= ONSET) & (times < ONSET + self.duration)
        return self.amplitude * is_on + self.noise * noise


@dataclass(frozen=True)
class CellSimulator:
    """Runs a cell with a number of compartments a branch, in batches of a fixed size.

    The function is compiled once a process. The last batch is padded by repeating its
    last simulation, so simulations do not depend on their number.

    Args:
        morphology: Shape of the cell.
        num_compartments: Compartments a branch.
        current: The current.
        axial_resistivity: Resistivity of the cytoplasm, ohm cm.
        double_precision: Whether to compute in double precision.
        batch_size: Simulations of a batch; 8 is the fastest on one core.
    """

    morphology: Morphology
    num_compartments: int
    current: StepCurrent
    axial_resistivity: float
    double_precision: bool = False
    batch_size: int = 8

    def __call__(self, theta: Tensor, noise: Tensor) -> Tensor:
        """Summaries, shape `(n, 4)`, see `summaries`; arguments as of `voltages`."""
        return summarize(self.voltages(theta, noise), TIME_STEP)

    def voltages(self, theta: Tensor, noise: Tensor) -> Tensor:
        """Voltages at the soma, mV.

        Args:
            theta: Densities of sodium and potassium channels, S/cm^2, shape `(n, 2)`.
            noise: Standard normal draws, shape `(n, num_steps)`.

        Returns:
            Voltages from time 0 on, shape `(n, num_steps + 1)`.
        """
        dtype = np.float64 if self.double_precision else np.float32
        parameters = theta.numpy().astype(dtype)
        currents = self.current.values(noise.numpy()).astype(dtype)
        size, parts = self.batch_size, []
        with _precision(self.double_precision):
            run = _compiled(self)
            for start in range(0, len(parameters), size):
                # beyond the last simulation, the last is repeated
                rows = np.arange(start, start + size).clip(max=len(parameters) - 1)
                parts.append(np.array(run(parameters[rows], currents[rows])))
        return torch.from_numpy(np.concatenate(parts)[: len(parameters)])


def _precision(is_double: bool) -> AbstractContextManager:
    """Double or single precision of jax within the block."""
    jax = import_module("jax")
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(is_double)
    return import_module("jax.experimental").enable_x64(is_double)  # before 0.8


def _stable_channel() -> Any:
    """The channel `HH` of jaxley, without its 0 / 0."""
    numpy, jaxley = import_module("jax.numpy"), import_module("jaxley.channels")

    def ratio(u):  # u / (1 - exp(-u))
        is_zero = u == 0
        safe = numpy.where(is_zero, 1.0, u)
        return numpy.where(is_zero, 1.0, -safe / numpy.expm1(-safe))

    class StableHH(jaxley.HH):
        @staticmethod
        def m_gate(v):
            return ratio((v + 40) / 10), 4.0 * numpy.exp(-(v + 65) / 18)

        @staticmethod
        def n_gate(v):
            return 0.1 * ratio((v + 55) / 10), 0.125 * numpy.exp(-(v + 65) / 80)

    return StableHH(name="HH")


@lru_cache(maxsize=8)
def _compiled(simulator: CellSimulator) -> Callable:
    """Function of densities and currents of a batch; compiled in its first call."""
    jax, jaxley = import_module("jax"), import_module("jaxley")
    cell = simulator.morphology.build(simulator.num_compartments)
    cell.set("axial_resistivity", simulator.axial_resistivity)
    cell.set("v", START)
    cell.insert(_stable_channel())
    cell.init_states()
    soma = cell.soma.branch(0).comp(0)
    soma.record(verbose=False)

    def voltage(theta, current):
        parameters = cell.data_set("HH_gNa", theta[0], None)
        parameters = cell.data_set("HH_gK", theta[1], parameters)
        return jaxley.integrate(
            cell,
            param_state=parameters,
            data_stimuli=soma.data_stimulate(current, None),
            delta_t=TIME_STEP,
        )[0]

    return jax.jit(jax.vmap(voltage))
