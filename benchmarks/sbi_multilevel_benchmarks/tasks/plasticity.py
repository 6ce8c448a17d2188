r"""Plastic spiking network: rates of E and I neurons from four plasticity rules.

Level 1 is a network of excitatory (E) and inhibitory (I) neurons, whose synapses change
by a rule of six parameters for each of the types EE, EI, IE and II
(`sbi_multilevel_benchmarks.plasticity.network`), so that theta has 24 parameters
(`plasticity.parameters`). Level 0 is the mean field of the rules EE and EI
(`plasticity.mean_field`), with 12 parameters, or 3 or 6 as in appendix G.3. Both are
those of Krouglova et al. (2026), arXiv:2502.08416, after Confavreux et al. (2023). x
has the mean rates of both populations in Hz.

*Prior.* Theta is uniform on the box of Confavreux et al. where the mean field has a
fixed point inside 1 to 50 Hz and all four rules are stable: a share of 0.0024 of the
box. Networks with a rate outside of 1 to 50 Hz are not plausible, and are replaced, as
in the paper: with 512 + 128 neurons, about half of the draws from this prior are
plausible. As the filter of networks depends on x alone, it leaves the posterior at
plausible x as it is:

.. math::  p(\theta \mid x, x \in A) = p(\theta \mid x) \quad \text{for } x \in A .

The paper filters the mean field by its rates only, without stability, and the theta of
both levels are those that earlier rounds of fSBI have proposed, which are not uniform.
The prior is that of all levels, also of those with 3 and 6 parameters.

*Noise.* A seed of the connections and of the input of the network. The mean field has
no noise, so the levels share theta only.

*Observations.* The paper evaluates 262 008 simulations of fSBI; here, plausible
networks at draws from the prior, simulated when they are first read. Weights settle in
20 s and rates are counted in 5 s by default, where the paper has 120 s (60 s in the
configuration of Confavreux et al.) and 10 s. Networks are simulated once and read
afterwards, if there is a folder for them (`stored_task`).

*Evaluation.* A network trained on few simulations has little mass in the prior's small
share of the box, so that rejection may not end. Posteriors are evaluated in the box, as
in the paper, and `inside` is the share of their samples in the support of the prior.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from sbi.inference import DirectPosterior
from sbi.utils import BoxUniform
from sbi.utils.sbiutils import within_support
from torch import Tensor

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.utils.seeds import derive_seed
from sbi_multilevel_benchmarks.plasticity.config import FULL_SIZE, NetworkConfig
from sbi_multilevel_benchmarks.plasticity.mean_field import is_plausible, steady_rates
from sbi_multilevel_benchmarks.plasticity.parameters import (
    HIGH,
    LOW,
    PARAMETERS,
    RATES,
    RestrictedUniform,
)
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.stored_task import StoredTask

# share of the box; 6e7 draws, standard error 6.3e-6
SHARE = 0.00238
VERSION = 1  # of networks and prior; kept networks of another one are not read
_NUM_INSIDE = 50  # samples of each posterior
_FEWEST = 16  # networks at first, of which some are plausible


def mean_field(theta: Tensor, noise: Tensor, num_low: int) -> Tensor:
    """Level 0: rates of the mean field in Hz, shape `(n, 2)`."""
    return steady_rates(theta, num_low).float()


def network(theta: Tensor, noise: Tensor, config: NetworkConfig) -> Tensor:
    """Level 1: rates of the network in Hz, `(n, 2)`; NaN outside of 1 to 50 Hz."""
    rates = spiking_rates(theta, noise, config)
    inside = ((rates >= RATES[0]) & (rates <= RATES[1])).all(dim=1, keepdim=True)
    return rates.masked_fill(~inside, torch.nan)


def spiking_rates(theta: Tensor, seeds: Tensor, config: NetworkConfig) -> Tensor:
    """Rates of the network in Hz, `(n, 2)`; NaN where E neurons exceed 100 Hz.

    Args:
        theta: Parameters, shape `(n, 24)`.
        seeds: Seeds of the networks, shape `(n,)`.
        config: Size and duration.
    """
    # numba, which not every installation has, takes seconds to import
    from sbi_multilevel_benchmarks.plasticity.network import network_rates

    rows = zip(theta.double().numpy(), seeds.tolist())
    rates = [network_rates(row, seed, config) for row, seed in rows]
    return torch.as_tensor(np.stack(rates), dtype=torch.float32)


class PlasticityTask(StoredTask):
    """Posterior of the parameters of four plasticity rules.

    Networks at draws from the prior are simulated until enough are plausible.

    Args:
        num_low: Parameters that level 0 depends on: 3, 6 or 12.
        config: Size and duration of the network of level 1.
        num_observations: Number of observations.
        folder: Folder in which networks are kept, see `StoredTask.keep_in`.

    Raises:
        ValueError: If numba is not installed, or `num_low` is another number.
    """

    name = "plasticity"
    num_simulations = (10_000, 50)
    batch_size = 8
    num_samples = 200  # 1.5 ms each, in 24 dimensions
    prior = RestrictedUniform(LOW, HIGH, is_plausible, SHARE)

    def __init__(
        self,
        num_low: int = 12,
        config: NetworkConfig = NetworkConfig(),
        num_observations: int = 100,
        folder: str | os.PathLike | None = None,
    ):
        if importlib.util.find_spec("numba") is None:
            raise ValueError(
                "task='plasticity' simulates networks by numba, which is not "
                "installed. Run `pip install 'sbi_multilevel_benchmarks[plasticity]'` "
                "or `pip install numba`."
            )
        if num_low not in (3, 6, 12):
            raise ValueError(
                f"num_low={num_low} must be 3, 6 or 12, the first parameters of EE and "
                "EI. Pass one of these."
            )
        self.config = config
        settings = {"version": VERSION, "rates": list(RATES), **asdict(config)}
        self.keep_in(folder, settings)
        self.num_observations = num_observations
        self.parameters = {0: PARAMETERS[:num_low], 1: PARAMETERS}
        self.simulators = (
            partial(mean_field, num_low=num_low),
            partial(network, config=config),
        )
        seconds = config.settle_seconds + config.record_seconds
        # seconds, measured: the network takes 0.1 s a second of 512 + 128 neurons
        self.costs = (1e-6, 0.1 * seconds * config.num_excitatory / 512)
        self._networks: dict[int, LevelSimulations] = {}

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """Seeds of the networks, shape `(n,)`."""
        return torch.randint(2**62, (n,), generator=generator)

    def simulate(
        self,
        num_simulations: tuple[int, ...],
        seed: int,
        show_progress_bars: bool = False,
    ) -> MultilevelSimulations:
        """Simulations of the mean field, and pairs of plausible networks.

        Args:
            num_simulations: Number of simulations of each level.
            seed: Root seed.
            show_progress_bars: Whether to show the progress of new networks.
        """
        # another seed, as both simulators are the first level of their runs
        low = self._simulate_alone(0, num_simulations[0], derive_seed(seed, 0))
        theta, x = self._plausible(num_simulations[1], seed, show_progress_bars)
        x_coarse = self.simulators[0](theta, torch.empty(0))
        high = LevelSimulations(1, theta, x, x_coarse)
        return MultilevelSimulations((low, high), self.costs)

    def simulate_level(
        self, level: int, num_simulations: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Theta and x of mean fields or plausible networks, independent of `simulate`.

        Args:
            level: The level.
            num_simulations: Number of simulations.
            seed: Root seed.
        """
        if level == 0:  # takes no time, and is not kept
            low = self._simulate_alone(level, num_simulations, seed + 1_000_000)
            return low.theta, low.x
        return self._plausible(num_simulations, seed + 1_000_000)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict[str, list[float]]:
        """Errors of a posterior in the box, see the module, and `inside`."""
        estimator = self.in_box(estimator)
        errors = super().evaluate(estimator, trained_on)
        few = (self._draw(estimator, x_o, _NUM_INSIDE) for x_o in self.observations)
        inside = [within_support(self.prior, each).float().mean() for each in few]
        return errors | {"inside": [share.item() for share in inside]}

    @staticmethod
    def in_box(posterior: Any) -> Any:
        """A direct posterior without rejection outside the support of the prior."""
        if not isinstance(posterior, DirectPosterior):
            return posterior
        return DirectPosterior(posterior.posterior_estimator, BoxUniform(LOW, HIGH))

    def _plausible(
        self, n: int, seed: int, show_progress_bars: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Theta and x of the first n plausible networks of a seed."""
        if len(self._networks.get(seed, ())) < n:
            runs = self._runs(slice(1, 2), show_progress_bars)
            store = self._store(f"high-{seed}")
            with warnings.catch_warnings():
                # the filter of networks leaves the posterior as it is, see the module
                warnings.filterwarnings("ignore", "Dropped")
                self._networks[seed] = runs.first((max(n, _FEWEST),), seed, store)[0]
        kept = self._networks[seed]
        return kept.theta[:n], kept.x[:n]

    def plausible_share(self, theta: Tensor, seed: int = 0) -> float:
        """Share of theta, e.g. posterior samples, whose networks are plausible.

        Args:
            theta: Parameters, shape `(n, 24)`.
            seed: Seed of the networks.
        """
        noise = self.noise(len(theta), torch.Generator().manual_seed(seed))
        x = self.simulators[1](theta, noise)
        return x.isfinite().all(dim=1).float().mean().item()


def _register(name: str, **options: Any) -> None:
    register_task(name, lambda data: PlasticityTask(**options))


_register("plasticity")
_register("plasticity-low-3", num_low=3)
_register("plasticity-low-6", num_low=6)
_register("plasticity-full", config=NetworkConfig(FULL_SIZE, 120.0, 10.0))
