"""What a benchmark task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation import simulate_multilevel


class BenchmarkTask(ABC):
    """Simulators of several levels, a prior, a network, and how errors are measured.

    Attributes:
        name: Name on the command line.
        family: Whether the task learns likelihoods (`"nle"`) or posteriors (`"npe"`).
        metric: Name of the main metric; lower is better.
        num_simulations: Default rows of each level.
        paper_epochs: Full-batch epochs of the reference code.
        oracle_size: High-fidelity rows of the plain training that serves as oracle.
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

    @staticmethod
    @abstractmethod
    def noise(n: int, generator: Any) -> Any:
        """Draw the noise of rows.

        Args:
            n: How many rows.
            generator: Where its randomness comes from, a `torch.Generator`.
        """

    @abstractmethod
    def build_network(self) -> Callable:
        """The builder of the density estimator, that of the reference code."""

    @abstractmethod
    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict[str, list[float]]:
        """Errors of a trained estimator at each test point.

        Args:
            estimator: Density estimator in evaluation mode.
            trained_on: The x of the highest level it was trained on; where test points
                come from the same finite set of rows, these are left out.

        Returns:
            Values at the test points of each metric, the main one first.
        """

    def simulate(
        self, num_simulations: tuple[int, ...], seed: int
    ) -> MultilevelSimulations:
        """Rows of all levels, the same for every method.

        Args:
            num_simulations: Rows of each level.
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
        """Theta and x of the highest level alone, other rows than `simulate` gives.

        Args:
            num_simulations: How many rows.
            seed: Root seed.
        """
        simulations = simulate_multilevel(
            self.simulators[-1:],
            self.prior,
            (num_simulations,),
            noise=self.noise,
            seed=seed + 1_000_000,
            show_progress_bars=False,
        )
        return simulations[0].theta, simulations[0].x
