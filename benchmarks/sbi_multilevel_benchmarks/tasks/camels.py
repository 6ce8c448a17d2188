r"""CAMELS: :math:`\sigma_8` from matter power spectra; level 0 is N-body simulations.

The file released with Hikida et al. (2025) has 1 000 simulations with the same seeds
and parameters, `x_low` (N-body) and `x_high` (IllustrisTNG, hydrodynamical), at 39 wave
numbers. It is not part of this package: name it by `--data` or `SBI_MULTILEVEL_CAMELS`.

As in the code of the paper, the first :math:`n_1` simulations are the pairs and the
next :math:`n_0` those of level 0; all but the pairs are the test set at high fidelity.
`camels-shuffled` permutes the simulations first, by the seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.utils.files import expect, read_arrays, tensor_of, understood
from sbi_multilevel_benchmarks.calibration import calibration_of_network
from sbi_multilevel_benchmarks.metrics import posterior_density
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

DATA_VARIABLE = "SBI_MULTILEVEL_CAMELS"


class Camels(BenchmarkTask):
    """Neural posterior of one cosmological parameter.

    Args:
        path: File of spectra; taken from the environment if `None`.
        shuffle: Whether the seed permutes the simulations.

    Raises:
        ValueError: If no file is named, or an array is missing.
    """

    family, metric = "npe", "nlpd"
    num_simulations = (980, 20)
    paper_epochs = 500
    oracle_size = 900
    simulators = ()
    prior = BoxUniform(torch.tensor([0.6]), torch.tensor([1.0]))
    costs = (1.0, 100.0)  # nominal

    def __init__(self, path: str | os.PathLike | None = None, shuffle: bool = False):
        path = path or os.environ.get(DATA_VARIABLE)
        if not path or not Path(path).is_file():
            raise ValueError(
                f"path={path!r} is no file. Name the file of CAMELS power spectra by "
                f"`--data FILE` or the environment variable {DATA_VARIABLE}."
            )
        self.name = "camels-shuffled" if shuffle else "camels"
        self._shuffle = shuffle
        remedy = "Name the file of CAMELS power spectra of the reference code."
        with understood("path", path, "CAMELS power spectra", remedy):
            arrays = read_arrays(path)
            theta, self._low, self._high = (
                tensor_of(arrays, name).float() for name in ("theta", "x_low", "x_high")
            )
            names = arrays["theta_names"].tolist()
            self._theta = theta[:, [names.index("sigma_8")]]
            expect(
                self._low.shape == self._high.shape and len(theta) == len(self._low),
                f"theta, x_low and x_high have the shapes {tuple(theta.shape)}, "
                f"{tuple(self._low.shape)} and {tuple(self._high.shape)}",
            )

    @staticmethod
    def noise(n: int, generator: Any) -> Any:
        raise TypeError(
            "CAMELS simulations are read from a file; no simulator can be run."
        )

    def build_network(self) -> Callable:
        return posterior_nn(
            "nsf", num_transforms=3, num_bins=3, hidden_features=30, tail_bound=3.0
        )

    def simulate(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> MultilevelSimulations:
        """The first `n_1` simulations as pairs, the next `n_0` at low fidelity."""
        n_0, n_1 = num_simulations
        if n_0 + n_1 > len(self._theta):
            raise ValueError(
                f"num_simulations={num_simulations} needs {n_0 + n_1} simulations, but "
                f"the file has {len(self._theta)}. Choose smaller numbers."
            )
        order = self._order(seed)
        pairs, low = order[:n_1], order[n_1 : n_1 + n_0]
        theta, x_low, x_high = self._theta, self._low, self._high
        return MultilevelSimulations(
            (
                LevelSimulations(0, theta[low], x_low[low]),
                LevelSimulations(1, theta[pairs], x_high[pairs], x_low[pairs]),
            ),
            self.costs,
        )

    def simulate_level(
        self, level: int, num_simulations: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The last simulations, so that the first are left for the test set."""
        if num_simulations > len(self._theta):
            raise ValueError(
                f"num_simulations={num_simulations} of level {level} are more than the "
                f"{len(self._theta)} of the file. Choose smaller numbers."
            )
        last = self._order(seed).flip(0)[:num_simulations]
        return self._theta[last], (self._low, self._high)[level][last]

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        """NLPD at all simulations not trained on."""
        test = ~(self._high[:, None] == trained_on[None]).all(dim=-1).any(dim=1)
        tests = self._theta[test], self._high[test]
        return {
            **posterior_density(estimator, self.prior, *tests),
            **calibration_of_network(estimator, self.prior, *tests),
        }

    def _order(self, seed: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._theta))
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self._theta), generator=generator)


register_task("camels", lambda data: Camels(data))
register_task("camels-shuffled", lambda data: Camels(data, shuffle=True))
