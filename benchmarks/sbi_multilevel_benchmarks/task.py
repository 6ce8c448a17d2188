"""The base class of benchmark tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from sbi_multilevel import LevelSimulations, MultilevelSimulations, simulate_multilevel


class BenchmarkTask(ABC):
    """Simulators of several levels, a prior, a network, and metrics.

    Attributes:
        name: Name on the command line.
        family: Whether the task learns likelihoods (`"nle"`) or posteriors (`"npe"`).
        metric: Name of the main metric; lower is better.
        num_simulations: Default number of simulations of each level.
        paper_epochs: Full-batch epochs of the reference code.
        oracle_size: High-fidelity simulations that the oracle is trained on.
        prior: Prior over theta.
        simulators: Function of theta and noise of each level, lowest fidelity first.
        costs: Cost of a run of each simulator, in any unit.
    """

    name: str
    family: Literal["nle", "npe"]
    metric: str
    num_simulations: tuple[int, ...]
    paper_epochs: int
    oracle_size: int = 10_000

    prior: Any
    simulators: tuple[Callable, ...]
    costs: tuple[float, ...]

    @property
    def highest_level(self) -> int:
        """Number of the highest level, 1 if there are two."""
        return len(self.costs) - 1

    @staticmethod
    @abstractmethod
    def noise(n: int, generator: Any) -> Any:
        """Draw the noise of n simulations, which the levels share.

        Args:
            n: Number of simulations.
            generator: A `torch.Generator`, the source of randomness.
        """

    @abstractmethod
    def build_network(self) -> Callable:
        """The builder of the density estimator, as in the reference code."""

    @abstractmethod
    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict[str, list[float]]:
        """Metrics of a trained estimator at each test point.

        Args:
            estimator: Density estimator in evaluation mode.
            trained_on: The x of the highest level that it was trained on, shape
                `(n, *x_shape)`; excluded from the test points where both come from one
                finite data set.

        Returns:
            Values at the test points by metric, the main one first.
        """

    def simulate(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> MultilevelSimulations:
        """Simulations of all levels, the same for every method.

        Args:
            num_simulations: Number of simulations of each level.
            seed: Root seed.
        """
        return simulate_multilevel(
            self.simulators,
            self.prior,
            num_simulations,
            noise=self.noise,
            seed=seed,
            costs=self.costs,
            show_progress_bars=False,
        )

    def simulate_high(self, num_simulations: int, seed: int) -> tuple[Tensor, Tensor]:
        """Theta and x of the highest level alone, see `simulate_level`.

        Args:
            num_simulations: Number of simulations.
            seed: Root seed.
        """
        return self.simulate_level(self.highest_level, num_simulations, seed)

    def simulate_level(
        self, level: int, num_simulations: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Theta and x of one level alone, independent of `simulate`.

        Args:
            level: The level, 0 for the lowest fidelity.
            num_simulations: Number of simulations.
            seed: Root seed.
        """
        found = self._simulate_alone(level, num_simulations, seed + 1_000_000)
        return found.theta, found.x

    def _simulate_alone(
        self, level: int, num_simulations: int, seed: int
    ) -> LevelSimulations:
        """Simulations of one level in memory, as level 0 of a run of this root seed."""
        return simulate_multilevel(
            self.simulators[level : level + 1],
            self.prior,
            (num_simulations,),
            noise=self.noise,
            seed=seed,
            show_progress_bars=False,
        )[0]
