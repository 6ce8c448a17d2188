"""The state of rounds of fine-tuning, and its file; see `MFTSNPE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.state import RoundState
from sbi_multilevel.utils.files import check_state_dict, expect


@dataclass(eq=False)
class FineTuningState(RoundState):
    """Where a run of fine-tuning stands; all simulations are of level 1.

    Args:
        networks: The network of each member; `None` before pre-training.
        is_pretrained: Whether they were pre-trained here, not elsewhere.
        low_weights: Weights of the low-fidelity simulations, by which levels are
            aligned; `None` without alignment.
        low_sums: What identifies the low-fidelity simulations, see `sums_of`.
    """

    SUMMARY: ClassVar[Mapping[str, type]] = {
        "num_simulations": int,
        "acceptance_rate": float,
        "num_active": int,
        "failures": list,
        "coverage": list,
    }
    # names are those of the first version
    KINDS: ClassVar[Mapping[str, Any]] = {
        "settings": dict,
        "members": (list, NoneType),
        "rows": list,
        "pending": (dict, NoneType),
        "low_weights": (Tensor, NoneType),
        "low_sums": (tuple, NoneType),
        "counters": tuple,
        "summary": dict,
    }

    networks: list[ConditionalDensityEstimator] | None = None
    is_pretrained: bool = False
    low_weights: Tensor | None = None
    low_sums: tuple[float, ...] | None = None

    @property
    def new_simulations(self) -> list[LevelSimulations]:
        """High-fidelity simulations that were appended since the last training."""
        first, missing = len(self.parts), self.num_appended
        while missing > 0:
            first -= 1
            missing -= len(self.parts[first])
        return self.parts[first:]

    @property
    def num_appended(self) -> int:
        """How many they are."""
        return self.num_new.get(1, 0)

    @property
    def proposals(self) -> Proposals | None:
        """Proposals of the current round; `None` where there are none yet."""
        return self.pending.get(1)

    def content(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        common, networks = super().content(), self.networks
        return {
            "members": None if networks is None else [n.state_dict() for n in networks],
            "rows": common["parts"],
            "pending": common["pending"].get(1),
            "low_weights": self.low_weights,
            "low_sums": self.low_sums,
            "counters": (self.num_appended, self.index, self.num_draws),
            "summary": self.summary,
        }

    def filled_from(self, content: Mapping[str, Any], prior: Any) -> FineTuningState:
        """A state with all of a file but the networks, of which it checks the weights.

        Args:
            content: The content of the file.
            prior: The prior.

        Raises:
            ValueError: If an entry is not valid; others if it has another form.
        """
        for weights in content["members"] or ():
            check_state_dict(weights)
        weights, sums = content["low_weights"], content["low_sums"]
        is_valid = sums is None or all(type(number) is float for number in sums)
        expect(is_valid, f"low_sums are {sums!r:.60}")
        if weights is not None:
            is_valid = sums is not None and weights.shape == sums[:1]
            is_valid = is_valid and weights.is_floating_point()
            expect(is_valid, f"low_weights have the shape {tuple(weights.shape)}")
        counters, summary = content["counters"], content["summary"]
        is_valid = len(counters) == 3
        is_valid = is_valid and all(type(n) is int and n >= 0 for n in counters)
        expect(is_valid, f"counters are {counters!r:.60}")
        # earlier versions did not compute coverage
        rounds = len(summary.get("failures", ()))
        fields = {
            "parts": content["rows"],
            "pending": {} if content["pending"] is None else {1: content["pending"]},
            "num_new": {1: counters[0]},
            "num_draws": counters[2],
            "summary": {"coverage": [[] for _ in range(rounds)], **summary},
        }
        state = self.filled(fields, counters[1], prior)
        for part in state.parts:
            expect(part.level == 1, f"it has simulations of level {part.level}, not 1")
        state.low_weights, state.low_sums = weights, sums
        return state


def sums_of(low: LevelSimulations | None) -> tuple[float, ...] | None:
    """What identifies low-fidelity simulations: their number and sums."""
    if low is None:
        return None
    return float(len(low)), *(float(c.double().sum()) for c in (low.theta, low.x))
