"""The state of sequential rounds: what changes, and what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import (
    check_columns,
    check_inside,
    check_same_shapes,
    has_support,
)
from sbi_multilevel.methods.sequential.checkpoint import SUMMARY
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.utils.seeds import seeded


@dataclass(eq=False)
class RoundState:
    """Where a run stands.

    Args:
        x_o: The observation, shape `(1, *x_shape)`.
        networks: The network of each member; `None` before pre-training.
        is_pretrained: Whether they were pre-trained here, not elsewhere.
        simulations: High-fidelity simulations, in the order they were appended.
        num_new: How many were appended since the last training.
        pending: Proposals of the current round; `None` where there are none yet.
        index: The current round, from 0.
        num_draws: How often proposals were drawn in the current round.
        low_weights: Weights of the low-fidelity simulations, by which levels are
            aligned; `None` without alignment.
        low_sums: What identifies the low-fidelity simulations, see `sums_of`.
        summary: Lists with an entry per round, see `MFTSNPE`.
    """

    x_o: Tensor
    networks: list[ConditionalDensityEstimator] | None = None
    is_pretrained: bool = False
    simulations: list[LevelSimulations] = field(default_factory=list)
    num_new: int = 0
    pending: Proposals | None = None
    index: int = 0
    num_draws: int = 0
    low_weights: Tensor | None = None
    low_sums: tuple[float, ...] | None = None
    summary: dict[str, list] = field(
        default_factory=lambda: {name: [] for name in SUMMARY}
    )

    @property
    def new_simulations(self) -> list[LevelSimulations]:
        """High-fidelity simulations that were appended since the last training."""
        first, missing = len(self.simulations), self.num_new
        while missing > 0:
            first -= 1
            missing -= len(self.simulations[first])
        return self.simulations[first:]

    def end_round(
        self, networks: list[ConditionalDensityEstimator], coverage: list[float]
    ) -> None:
        """Keep what was trained, and begin the next round."""
        pending = self.pending
        entries = {
            "num_simulations": self.num_new,
            "acceptance_rate": pending.acceptance if pending else 1.0,
            "num_active": int(pending.is_active.sum()) if pending else 0,
            "failures": list(pending.failures.values()) if pending else [],
            "coverage": coverage,
        }
        for name, value in entries.items():
            self.summary[name].append(value)
        self.networks = networks
        self.num_new, self.pending, self.num_draws = 0, None, 0
        self.index += 1

    def check_simulations(
        self, simulations: LevelSimulations, first: LevelSimulations, prior: Any
    ) -> None:
        """Raise unless simulations fit the observation, the prior and the first ones.

        Raises:
            ValueError: If they do not.
        """
        self.check_x(simulations.x)
        check_theta(simulations.theta, prior)
        if has_support(prior):
            check_inside(prior, simulations)
        check_same_shapes(simulations, first)

    def check_x(self, x: Tensor) -> None:
        """Raise unless outputs have the shape of the observation.

        An observation without the channel that the outputs have gets it.

        Raises:
            ValueError: If the shapes differ.
        """
        self.x_o = matching_observation(x, self.x_o)

    def check_low_fidelity(self, low: LevelSimulations | None) -> None:
        """Raise unless low-fidelity simulations are those of earlier rounds.

        Raises:
            ValueError: If levels were aligned by others.
        """
        if self.low_weights is not None and self.low_sums != sums_of(low):
            raise ValueError(
                "The low-fidelity simulations are not those that this run began with, "
                "by which levels are aligned. Call `append_lowfidelity_simulations` "
                "with the same ones before resuming."
            )


def matching_observation(x: Tensor, x_o: Tensor) -> Tensor:
    """The observation, with the channel that outputs have if it lacks one.

    Args:
        x: Outputs, shape `(n, *x_shape)`.
        x_o: The observation, shape `(1, *x_shape)`.

    Raises:
        ValueError: If the shapes differ.
    """
    check_columns({"x": x}, 0)
    if x.shape[1:] == x_o.shape:
        x_o = x_o.unsqueeze(0)
    if x.shape[1:] != x_o.shape[1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape[1:])} per simulation, but the observation "
            f"x_o has {tuple(x_o.shape[1:])}. Summarise both in the same way."
        )
    return x_o


def check_theta(theta: Tensor, prior: Any) -> None:
    """Raise unless parameters have the shape of draws from the prior.

    Raises:
        ValueError: If the shapes differ.
    """
    with seeded(0):
        expected = prior.sample((1,)).shape[1:]
    if theta.shape[1:] != expected:
        raise ValueError(
            f"theta has shape {tuple(theta.shape[1:])} per simulation, but the prior "
            f"draws {tuple(expected)}. Pass parameters of `propose()`."
        )


def sums_of(low: LevelSimulations | None) -> tuple[float, ...] | None:
    """What identifies low-fidelity simulations: their number and sums."""
    if low is None:
        return None
    return float(len(low)), *(float(c.double().sum()) for c in (low.theta, low.x))
