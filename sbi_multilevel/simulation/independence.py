"""Detects simulators that mix the simulations of a batch.

A simulation is a function of its own theta and noise, in any batch. A common mistake is
noise of shape `(n,)` with theta of shape `(n, d)`: torch cannot add them unless n is d
(or d is 1), and then combines each theta with the noise of other simulations. So two
kinds of batches are checked: parts of a batch that failed as a whole, and batches whose
x has as many features as simulations. For the first batch of each kind one simulation
is repeated alone; if it agrees, that kind is not checked again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np

from sbi_multilevel.simulation.tasks import Outcome, Status, Task, Work

# tolerances relative to a value, and to the largest value of its feature in the batch
_RELATIVE, _ROUNDING = 1e-4, 1e-5
_REMEDY = (
    "Check whether the simulator combines simulations, or adds noise of shape (n,) to "
    "theta of shape (n, d_theta) (use e.g. `noise.unsqueeze(1)`), or wrap a simulator "
    "of one theta by `vectorize_simulator`"
)


@dataclass
class Watched:
    """Work that repeats one simulation of a suspect batch alone.

    Args:
        work: Runs a task.
        trusted: Kinds of suspect batches that were found to be correct.
        has_warned: Whether a warning was given of a batch that failed without reason.
    """

    work: Work
    trusted: set[str] = field(default_factory=set)
    has_warned: bool = False

    def __call__(self, task: Task) -> Outcome:
        outcome = self.work(task)
        if _kind(task, outcome) in {None, *self.trusted}:
            return outcome
        return replace(outcome, is_mixed=_is_mixed(self.work, task, outcome))

    def check(self, task: Task, outcome: Outcome) -> None:
        """Raise if the simulations of a suspect batch are mixed.

        Warns, once, of a batch that failed although each of its simulations works.
        """
        origin = task.origin
        if outcome.is_mixed:
            before = "" if origin is None else f" Before, {origin.text}."
            if self.work.noise is None:
                before += " noise was not passed: simulators receive int64 seeds."
            raise ValueError(
                f"The simulator of level {task.level} mixes the simulations of a "
                f"batch: number {task.rows[0]}, simulated alone, differs from its "
                f"result in a batch of {len(task)}.{before} {_REMEDY}; "
                "simulation_batch_size=1 simulates each theta alone. The batch was not "
                "kept; a store may hold earlier batches, which retry=('ok', 'invalid') "
                "runs again."
            )
        if outcome.is_mixed is False:
            self.trusted.add(str(_kind(task, outcome)))
        if origin is None or self.has_warned:
            return
        # a failing simulation explains why the batch failed: never zero again
        origin.num_left -= len(task) if outcome.error is None else np.inf
        if origin.num_left == 0:
            self.has_warned = True
            warnings.warn(
                f"{origin.text}, but all of them worked in smaller batches. {_REMEDY}.",
                stacklevel=4,
            )


def _kind(task: Task, outcome: Outcome) -> str | None:
    """Why the simulations of a batch may be mixed; `None` without a reason."""
    if outcome.x is None or len(task) == 1:
        return None
    if len(task) in outcome.x.shape[1:]:
        return "as many features as simulations"
    return None if task.origin is None else "failed as a whole"


def _is_mixed(work: Work, task: Task, outcome: Outcome) -> bool | None:
    """Whether the first simulation differs alone; `None` if that is unknown."""
    if outcome.status[0] != Status.OK:
        return None
    alone = work(task.part(slice(1)))
    if alone.error is not None:
        return None
    if _is_same(outcome, alone):
        return False
    # a simulator with its own randomness does not repeat results in any batch
    return True if _is_same(outcome, work(task)) else None


def _is_same(batch: Outcome, other: Outcome) -> bool:
    """Whether the first simulations agree up to rounding."""
    if len(batch.sides) != len(other.sides):
        return False
    for x, again in zip(batch.sides, other.sides):
        if x.shape[1:] != again.shape[1:]:
            return False
        scale = np.nanmax(np.where(np.isfinite(x), np.abs(x), 0.0), axis=0)
        close = np.abs(x[0] - again[0]) <= _RELATIVE * np.abs(x[0]) + _ROUNDING * scale
        if not close.all():
            return False
    return True
