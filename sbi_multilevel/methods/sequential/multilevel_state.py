"""The state of rounds of several levels, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.methods.sequential.state import RoundState
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior


@dataclass(eq=False, kw_only=True)
class MultilevelState(RoundState):
    """Where a run of rounds of several levels stands.

    Args:
        prior: The prior in the region of the current round.
        fits: What each round learned.
        stopped: Why further rounds are not needed; empty if they may be.
    """

    SUMMARY: ClassVar[Mapping[str, type]] = {
        "num_simulations": list,
        "num_inside": list,
        "acceptance_rate": float,
        "log_score": float,
        "failures": list,
    }
    KINDS: ClassVar[Mapping[str, Any]] = {
        "settings": dict,
        "fits": list,
        "cuts": list,
        "parts": list,
        "pending": dict,
        "num_new": dict,
        "num_draws": int,
        "summary": dict,
        "stopped": str,
    }

    prior: TruncatedPrior
    fits: list[MixtureEstimator] = field(default_factory=list)
    stopped: str = ""
    # whether the simulations of each part are in the region, computed once a state
    _inside: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def parts_inside(self, is_inside: bool = True) -> list[LevelSimulations]:
        """The simulations inside the region of the current round, or outside of it."""
        pairs = zip(self.parts, self._masks())
        chosen = (part[mask == is_inside] for part, mask in pairs)
        return [part for part in chosen if len(part) > 0]

    def parts_outside(self) -> list[LevelSimulations]:
        """The simulations of earlier rounds outside of the region."""
        return self.parts_inside(False)

    def num_inside(self) -> tuple[int, ...]:
        """Simulations in the region at each level, the lowest first."""
        counts = [0] * self._num_levels
        for part, mask in zip(self.parts, self._masks()):
            counts[part.level] += int(mask.sum())
        return tuple(counts)

    @property
    def _num_levels(self) -> int:
        return max((part.level + 1 for part in self.parts), default=0)

    def _masks(self) -> list[Tensor]:
        """For each part, whether its simulations are in the region."""
        new = self.parts[len(self._inside) :]
        self._inside += [self.prior.contains(part.theta) for part in new]
        return self._inside

    def entries(self, log_score: float) -> dict[str, Any]:
        """What the summary keeps of this round, see `ended`."""
        levels = range(self._num_levels)
        return {
            "num_simulations": [self.num_new.get(level, 0) for level in levels],
            "num_inside": list(self.num_inside()),
            "acceptance_rate": self.prior.acceptance,
            "log_score": log_score,
        }

    def content(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            **super().content(),
            "fits": [_saved_as(fit) for fit in self.fits],
            "cuts": [(cut.threshold, cut.low, cut.high) for cut in self.prior.cuts],
            "stopped": self.stopped,
        }


def _saved_as(estimator: MixtureEstimator) -> dict[str, Any]:
    """A mixture as tensors and plain values."""
    tails = estimator.tails
    columns = None if tails is None else (tails.center, tails.scale, tails.delta)
    return {
        "members": [member.state_dict() for member in estimator.members],
        "weights": estimator.weights,
        "tails": columns,
        "has_prior": estimator.prior is not None,
    }
