"""How a run is pickled, written to disk and gone on with."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import cloudpickle
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.npe import MFNPE
from sbi_multilevel.methods.sequential import checkpoint
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.rounds import Proposals
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.ensemble import trainer_state
from sbi_multilevel.utils.files import expect

# what files of versions without these settings were written under
_EARLIER = {"shared_pretraining": False, "all_rounds": True, "num_coverage_rows": 0}


class StateMixin(ABC):
    """The state of truncated rounds, and its ways out of memory and back."""

    x_o: Tensor
    summary: dict[str, list]
    _prior: Any
    _density_estimator: Any
    _config: TransferConfig
    _num_members: int
    _acquisition: Acquisition | None
    _shared_pretraining: bool
    _all_rounds: bool
    _truncation: Truncation
    _num_coverage_rows: int
    _seed: int
    _train_options: dict[str, Any]
    _low: MFNPE  # holds the low-fidelity rows
    _members: list[ConditionalDensityEstimator] | None
    _pretrained_here: bool  # on rows that were appended
    _rows: list[LevelSimulations]
    _parameters: Any
    _low_weights: Tensor | None  # of the low-fidelity rows, for alignment
    _low_sums: tuple[float, ...] | None  # what they were
    _pending: Proposals | None  # the simulations of this round
    _new_rows: int  # appended since the last training
    _round: int
    _num_drawn: int  # proposals drawn in this round

    @abstractmethod
    def build_posterior(self) -> Any: ...

    @abstractmethod
    def _trainer(self, config: TransferConfig, parameters: Any = None) -> MFNPE: ...

    @abstractmethod
    def _check_theta(self, theta: Tensor) -> None: ...

    @abstractmethod
    def _check_rows(self, rows: LevelSimulations, first: LevelSimulations) -> None: ...

    @abstractmethod
    def _take_over(self, source: Any) -> ConditionalDensityEstimator: ...

    def save(self, path: str | os.PathLike) -> None:
        """Write where the run stands: networks, high-fidelity rows, the open round.

        The low-fidelity rows are not written: append the same ones to go on.

        Args:
            path: The file; it is replaced as a whole.
        """
        members = self._members
        state = {
            "settings": self._settings,
            "members": None if members is None else [m.state_dict() for m in members],
            "rows": [vars(rows) for rows in self._rows if len(rows) > 0],
            "pending": None if self._pending is None else vars(self._pending),
            "low_weights": self._low_weights,
            "low_sums": self._low_sums,
            "counters": (self._new_rows, self._round, self._num_drawn),
            "summary": self.summary,
        }
        checkpoint.write(path, state)

    def load(self, path: str | os.PathLike) -> Self:
        """Go on from a state that `save` wrote.

        Args:
            path: The file. It is read without unpickling.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If it was written under other settings, or by another network,
                or holds something else; the object stays as it was then.
            OSError: If it cannot be read.
        """
        state = checkpoint.read(path)
        settings = {**_EARLIER, **state["settings"]}
        checkpoint.check_settings(settings, self._settings, path)
        members, rows, pending = state["members"], state["rows"], state["pending"]
        with checkpoint.explained(path):
            if members is not None:
                is_right = len(members) == self._num_members
                expect(is_right, f"it has {len(members)} networks")
                members = [self._take_over(weights) for weights in members]
            for part in rows:
                self._check_rows(part, rows[0])
            if pending is not None:
                self._check_theta(pending.theta)
        self._members, self._rows, self._pending = members, rows, pending
        self._low_weights, self._low_sums = state["low_weights"], state["low_sums"]
        self._new_rows, self._round, self._num_drawn = state["counters"]
        self.summary = state["summary"]
        return self

    @property
    def _settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return {
            "x_o": self.x_o,
            "num_members": self._num_members,
            "seed": self._seed,
            "acquisition": repr(self._acquisition),
            "shared_pretraining": self._shared_pretraining,
            "all_rounds": self._all_rounds,
            "num_coverage_rows": self._num_coverage_rows,
            "truncation": repr(self._truncation),
            "config": repr(self._config),
            "parameters": repr(self._parameters),
            "train_options": repr(sorted(self._train_options.items())),
        }

    def __getstate__(self) -> dict[str, Any]:
        """All there is; builders go by cloudpickle, being functions in functions."""
        state = dict(vars(self))
        state["_density_estimator"] = cloudpickle.dumps(self._density_estimator)
        state["_low"] = trainer_state(self._low)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        low = state.pop("_low")
        builder = cloudpickle.loads(state.pop("_density_estimator"))
        vars(self).update(state, _density_estimator=builder)
        self._low = self._trainer(self._config)
        vars(self._low).update(low)
