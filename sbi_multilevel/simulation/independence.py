"""Tells simulators whose rows depend on the other rows of their batch.

A row is a function of its own theta and noise, whatever batch it is simulated in. The
usual mistake is noise of shape `(n,)` beside theta of shape `(n, d)`: torch refuses to
add them unless n is d (or d is 1), and then gives rows the noise of other rows. So two
kinds of batches are suspect: parts of a batch that has failed as a whole, and those
with an output of as many features as rows. The first suspect of each kind has one row
simulated again, alone; a passing kind is trusted from then on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np

from sbi_multilevel.simulation.tasks import Origin, Outcome, Status, Task, Work

# of a value, and of the largest one of its feature in the batch
_RELATIVE, _ROUNDING = 1e-4, 1e-5
_REMEDY = (
    "Does the simulator combine rows, or add noise of shape (n,) to theta of shape "
    "(n, d_theta)? Check it (e.g. `noise.unsqueeze(1)`), or wrap a simulator of one "
    "row by `vectorize_simulator`"
)


@dataclass
class Watched:
    """Work that simulates a row of a suspect batch again, alone.

    Args:
        work: Runs a task.
        trusted: Kinds of suspects that were found to be fine.
    """

    work: Work
    trusted: set[str] = field(default_factory=set)

    @property
    def timeout(self) -> float | None:
        """Seconds that one call of a simulator may take, if limited."""
        return self.work.timeout

    def __call__(self, task: Task) -> Outcome:
        outcome = self.work(task)
        if _kind(task, outcome) in {None, *self.trusted}:
            return outcome
        return replace(outcome, is_mixed=_is_mixed(self.work, task, outcome))

    def judge(self, task: Task, outcome: Outcome) -> None:
        """Take note of what became of a suspect.

        Raises:
            ValueError: If its rows are mixed up.
        """
        if outcome.is_mixed is None:
            return
        if not outcome.is_mixed:
            self.trusted.add(str(_kind(task, outcome)))
            return
        origin = task.origin
        before = "" if origin is None else f" Before, {origin.text}."
        if self.work.noise is None:
            before += " noise was not passed: simulators are given int64 seeds."
        raise ValueError(
            f"Rows of level {task.level} are mixed up: row {task.rows[0]}, simulated "
            f"alone, differs from the same row in a batch of {len(task)}.{before} "
            f"{_REMEDY}; simulation_batch_size=1 simulates each row alone. The batch "
            "was not kept; a store may hold rows of earlier batches, which are run "
            "again by retry=('ok', 'invalid')."
        )


@dataclass
class FailedTogether:
    """Warns, once, of a batch that failed though none of its rows does."""

    _left: dict[Origin, int] = field(default_factory=dict)
    _is_told: bool = False

    def note(self, task: Task, outcome: Outcome) -> None:
        """Count the rows of an outcome."""
        origin = task.origin
        if origin is None or self._is_told:
            return
        # a failing row explains why the batch failed: below zero for good
        used = len(task) if outcome.error is None else np.inf
        self._left[origin] = self._left.get(origin, origin.num_rows) - used
        if self._left[origin] == 0:
            self._is_told = True
            warnings.warn(
                f"{origin.text}, but all of them worked in smaller batches. {_REMEDY}.",
                stacklevel=4,
            )


def _kind(task: Task, outcome: Outcome) -> str | None:
    """Why the rows of a batch may be mixed up; `None` if nothing says so."""
    if outcome.x is None or len(task) == 1:
        return None
    if len(task) in outcome.x.shape[1:]:
        return "as many features as rows"
    return None if task.origin is None else "failed as a whole"


def _is_mixed(work: Work, task: Task, outcome: Outcome) -> bool | None:
    """Whether the first row differs alone; `None` if that cannot be told."""
    if outcome.status[0] != Status.OK:
        return None
    alone = work(task.part(slice(1)))
    if alone.error is not None:
        return None
    if _is_same(outcome, alone):
        return False
    # a simulator with randomness of its own repeats nothing, in no batch
    return True if _is_same(outcome, work(task)) else None


def _is_same(batch: Outcome, other: Outcome) -> bool:
    """Whether the first rows are the same, but for rounding."""
    for x, again in ((batch.x, other.x), (batch.x_coarse, other.x_coarse)):
        if x is None and again is None:
            continue
        if x is None or again is None or x.shape[1:] != again.shape[1:]:
            return False
        scale = np.nanmax(np.where(np.isfinite(x), np.abs(x), 0.0), axis=0)
        close = np.abs(x[0] - again[0]) <= _RELATIVE * np.abs(x[0]) + _ROUNDING * scale
        if not close.all():
            return False
    return True
