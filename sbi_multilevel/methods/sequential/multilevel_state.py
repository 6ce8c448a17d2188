"""The state of rounds of several levels: what changes, and what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_inside, check_same_shapes
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.state import check_theta, matching_observation
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior

# what is kept of each round
SUMMARY = {
    "num_simulations": list,
    "num_inside": list,
    "acceptance_rate": float,
    "log_score": float,
    "failures": list,
}


@dataclass(eq=False)
class MultilevelState:
    """Where a run stands.

    Args:
        x_o: The observation, shape `(1, *x_shape)`.
        prior: The prior in the region of the current round.
        fits: What each round learned.
        parts: Simulations of all levels, in the order they were appended.
        num_new: How many simulations of each level were appended since the last
            training.
        pending: Proposals of the current round, by level.
        num_draws: How often proposals were drawn in the current round.
        summary: Lists with an entry per round.
        stopped: Why further rounds are not needed; empty if they may be.
    """

    x_o: Tensor
    prior: TruncatedPrior
    fits: list[MixtureEstimator] = field(default_factory=list)
    parts: list[LevelSimulations] = field(default_factory=list)
    num_new: dict[int, int] = field(default_factory=dict)
    pending: dict[int, Proposals] = field(default_factory=dict)
    num_draws: int = 0
    summary: dict[str, list] = field(
        default_factory=lambda: {name: [] for name in SUMMARY}
    )
    stopped: str = ""
    # whether the simulations of each part are in the region, computed once a state
    _inside: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @property
    def index(self) -> int:
        """The current round, from 0."""
        return len(self.fits)

    @property
    def highest(self) -> int:
        """The highest level that was appended; -1 before any."""
        return max((part.level for part in self.parts), default=-1)

    def append(self, new: LevelSimulations) -> None:
        """Store simulations of one level.

        Raises:
            ValueError: If they do not fit the observation, the prior or those before;
                nothing is stored then.
        """
        self.x_o = matching_observation(new.x, self.x_o)
        check_theta(new.theta, self.prior.whole)
        check_inside(self.prior.whole, new)
        if self.parts:
            check_same_shapes(new, self.parts[0])
        self.parts.append(new)
        self.num_new[new.level] = self.num_new.get(new.level, 0) + len(new)

    def parts_inside(self) -> list[LevelSimulations]:
        """The simulations inside the region of the current round."""
        chosen = (part[mask] for part, mask in zip(self.parts, self._masks()))
        return [part for part in chosen if len(part) > 0]

    def parts_outside(self) -> list[LevelSimulations]:
        """The simulations of earlier rounds outside of the region."""
        chosen = (part[~mask] for part, mask in zip(self.parts, self._masks()))
        return [part for part in chosen if len(part) > 0]

    def num_inside(self) -> tuple[int, ...]:
        """Their number at each level, the lowest first."""
        counts = [0] * (self.highest + 1)
        for part, mask in zip(self.parts, self._masks()):
            counts[part.level] += int(mask.sum())
        return tuple(counts)

    def _masks(self) -> list[Tensor]:
        """For each part, whether its simulations are in the region."""
        new = self.parts[len(self._inside) :]
        self._inside += [self.prior.contains(part.theta) for part in new]
        return self._inside

    def ended(
        self, fit: MixtureEstimator, log_score: float, prior: TruncatedPrior
    ) -> MultilevelState:
        """The state at the beginning of the next round.

        Args:
            fit: What the current round learned.
            log_score: Its score, see `RoundFit`.
            prior: The prior in the region of the next round.
        """
        failures = [
            text for each in self.pending.values() for text in each.failures.values()
        ]
        new = [self.num_new.get(level, 0) for level in range(self.highest + 1)]
        entries = {
            "num_simulations": new,
            "num_inside": list(self.num_inside()),
            "acceptance_rate": self.prior.acceptance,
            "log_score": log_score,
            "failures": failures,
        }
        summary = {name: [*self.summary[name], entries[name]] for name in SUMMARY}
        return replace(
            self,
            prior=prior,
            fits=[*self.fits, fit],
            num_new={},
            pending={},
            num_draws=0,
            summary=summary,
        )


def settings_of(method: Any, seed: int, x_o: Tensor) -> dict[str, Any]:
    """The settings that must be the same to resume a run, as plain values."""
    return {
        "x_o": x_o,
        "seed": seed,
        "method": method.trainer_type.__name__,
        "config": repr(method.config),
        "truncation": repr(method.truncation),
        "acquisition": repr(method.acquisition),
        "train_options": repr(sorted(method.train_options.items())),
    }
