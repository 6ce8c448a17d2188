r"""L5PC: channel densities of a pyramidal cell, with 1 and 8 compartments a branch.

A thick-tufted layer-5 pyramidal cell with the channels of Hodgkin and Huxley in all
branches (`neuron.simulate`), driven by a noisy step current into the soma. Level 1 has
8 compartments a branch, level 0 has 1. Both simulate 120 ms in steps of 0.025 ms, and
return four summaries of the voltage at the soma (`neuron.summaries`). Theta is

.. math::  g_\mathrm{Na} \in [0.005, 0.8], \qquad g_\mathrm{K} \in [10^{-6}, 0.15]
    \quad \mathrm{S/cm^2},

with a uniform prior. The task is that of Krouglova et al. (2026), arXiv:2502.08416.
Prior, times, noise (0.01 nA a time step) and channels are those of its code.

*Current.* The paper contradicts itself. Its section 4.2 has 0.3 nA for 100 ms, which is
the default; its appendix F has 0.55 nA for 100 ms; the simulation function of its code
has 0.55 nA for 10 ms, while the summaries have the window of 100 ms. All three are
offered.

*Axial resistivity.* The code leaves it at 5 000 ohm cm, the default of jaxley, which is
kept for comparison. It isolates the soma: the length constant of a branch of radius 0.4
um at rest is about 25 um. Pyramidal cells have about 100 ohm cm (70 to 100 in Stuart
and Spruston, 1998, doi:10.1523/JNEUROSCI.18-10-03501.1998); with 150 ohm cm, more than
half of the prior has no spikes.

*Differences to the code.* The morphology is synthetic (`neuron.morphology`), as none
comes with a license; a file replaces it. Simulations begin at -65 mV with gates in
their steady state, where the code begins at -70 mV with all gates at 0.2. The noise is
shared by the levels. Spikes are counted with a hysteresis.

*Invalid simulations.* The code drops a simulation whose summaries are NaN or infinite,
and simulates another draw from the prior. So does this task, where a voltage is not
finite or not within -150 to 150 mV. The rates of jaxley divide 0 by 0 at two voltages,
which makes such simulations; this is removed here (`neuron.simulate`), and none was
found in the prior.

*Plausibility.* For 60 % of the prior the resting potential is between -75 and -55 mV.
In the rest the cell fires without current, at a large :math:`g_\mathrm{Na}`, or stays
depolarized, at a small :math:`g_\mathrm{K}`, as the equations of Hodgkin and Huxley do.
For 80 % there is at least one spike, and at most nine.

*Fidelity.* Over the prior, summaries of the levels have correlations of 0.99 and more.
But noise changes the mean voltage during the step by 0.002 to 0.05 mV, and the level by
0.1 to 0.3 mV. So the posteriors of the levels are narrow, and far from each other.

The exact posterior is not known; estimates are evaluated by the true theta of 100
simulations of level 1.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel_benchmarks.neuron.morphology import read_swc_file, thick_tufted
from sbi_multilevel_benchmarks.neuron.simulate import (
    DURATION,
    NUM_STEPS,
    START,
    TIME_STEP,
    VERSION,
    CellSimulator,
    StepCurrent,
)
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.stored_task import StoredTask

LOW, HIGH = (0.005, 1e-6), (0.8, 0.15)  # S/cm^2
COMPARTMENTS = (1, 8)  # a branch
CURRENTS = {
    "section-4.2": StepCurrent(0.3, 100.0),
    "appendix-f": StepCurrent(0.55, 100.0),
    "code": StepCurrent(0.55, 10.0),
}
AXIAL_RESISTIVITY = 5_000.0  # ohm cm
MIN_RESISTIVITY = 1_000.0  # in single precision, ohm cm


class L5PC(StoredTask):
    """Posterior of the densities of sodium and potassium channels.

    With a store, simulations are run once and read afterwards (`stored_task`);
    `python -m sbi_multilevel_benchmarks.neuron` runs them in advance.

    Args:
        morphology: An SWC file; `None` for the synthetic morphology.
        current: The current: "section-4.2", "appendix-f" or "code", see the module.
        axial_resistivity: Resistivity of the cytoplasm, ohm cm.
        double_precision: Whether to simulate in double precision.
        num_observations: Number of observations, at least 2.
        folder: Folder in which simulations are kept, see `StoredTask.keep_in`.

    Attributes:
        folder: Folder of the stores of these settings, or `None`.

    Raises:
        ValueError: If jaxley is not installed, or an argument does not fit.
    """

    name = "l5pc"
    num_simulations = (10_000, 100)
    oracle_size = 1_000
    costs = (1.0, 8.0)  # compartments; measured seconds have this ratio
    prior = BoxUniform(torch.tensor(LOW), torch.tensor(HIGH))

    def __init__(
        self,
        morphology: str | os.PathLike | None = None,
        current: str = "section-4.2",
        axial_resistivity: float = AXIAL_RESISTIVITY,
        double_precision: bool = False,
        num_observations: int = 100,
        folder: str | os.PathLike | None = None,
    ):
        if importlib.util.find_spec("jaxley") is None:
            raise ValueError(
                "task='l5pc' runs jaxley, which is not installed. Run `pip install "
                "'sbi_multilevel_benchmarks[neuron]'` or `pip install 'jaxley>=0.14'`."
            )
        if current not in CURRENTS:
            raise ValueError(
                f"current={current!r} must be one of {tuple(CURRENTS)}, the currents "
                "of the paper."
            )
        if not axial_resistivity > 0:
            raise ValueError(
                f"axial_resistivity={axial_resistivity} must be positive; neurons have "
                "70 to 200 ohm cm."
            )
        if axial_resistivity < MIN_RESISTIVITY and not double_precision:
            raise ValueError(
                f"axial_resistivity={axial_resistivity} is too small for single "
                "precision. Pass double_precision=True, which takes three times as "
                "long."
            )
        if num_observations < 2:
            raise ValueError(
                f"num_observations={num_observations} must be at least 2, as NRMSE "
                "needs their range."
            )
        shape = thick_tufted() if morphology is None else read_swc_file(morphology)
        self.simulators = tuple(
            CellSimulator(
                shape,
                n,
                CURRENTS[current],
                float(axial_resistivity),
                double_precision,
            )
            for n in COMPARTMENTS
        )
        self.num_observations = num_observations
        self.keep_in(folder, self.settings)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """Standard normal draws of each time step, shape `(n, num_steps)`."""
        return torch.randn(n, NUM_STEPS, generator=generator)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the simulations depend on, except seeds; plain values."""
        high = self.simulators[-1]
        return {
            "version": VERSION,
            "jaxley": ".".join(version("jaxley").split(".")[:2]),
            "morphology": high.morphology.digest,
            "compartments": list(COMPARTMENTS),
            "current": asdict(high.current),
            "axial_resistivity": high.axial_resistivity,
            "double_precision": high.double_precision,
            "start": START,
            "time_step": TIME_STEP,
            "duration": DURATION,
            "prior": [list(LOW), list(HIGH)],
        }


register_task(
    "l5pc",
    lambda data, *, current="section-4.2", num_observations=100: L5PC(
        data, current, num_observations=num_observations
    ),
)
