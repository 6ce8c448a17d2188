"""Costs, outcomes and failure limits of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from sbi_multilevel.errors import SbiMultilevelError
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Outcome, Status

_CHANCE = 1e-3
REMEDY = (
    "The simulators are not the cause: please report this error. Run again to simulate "
    "the missing ones; with a store finished ones are kept."
)


class TooManyFailures(SbiMultilevelError, RuntimeError):
    """More simulations failed than `max_failure_share` allows.

    Finished simulations are kept in the store, if there is one.
    """


class LostSimulations(SbiMultilevelError, RuntimeError):
    """A simulation has no outcome, or more than one: an error of the executor."""


def check_none_pending(table: LevelTable, num_simulations: int) -> None:
    """Check that each of the first `num_simulations` simulations has a status.

    Raises:
        LostSimulations: If not, with their number.
    """
    pending = table.rows_with(Status.PENDING, stop=num_simulations)
    if len(pending):
        raise LostSimulations(
            f"{len(pending)} of {num_simulations} simulations of level {table.level} "
            f"are pending after the run, e.g. number {pending[0]}. {REMEDY}"
        )


class FailureLimit:
    """Stops a run once significantly more than a share of a level's simulations fail.

    If each simulation failed with probability `max_share`, so many failures would occur
    in fewer than one of a thousand runs.

    Args:
        table: The level; finished simulations count.
        max_share: The share.
    """

    def __init__(self, table: LevelTable, max_share: float):
        self._level = table.level
        self._max_share = max_share
        self._done = len(table.finished())
        self._reasons: Counter[str] = Counter()

    def check(self, outcome: Outcome) -> None:
        """Count the simulations of an outcome.

        Raises:
            TooManyFailures: If too many have failed, with their number and the reasons.
        """
        self._done += len(outcome.status)
        if outcome.error is None:
            return
        self._reasons[outcome.error] += len(outcome.status)
        failed = self._reasons.total()
        if binom.sf(failed - 1, self._done, self._max_share) > _CHANCE:
            return
        reasons = "; ".join(
            f"{number} x {text}" for text, number in self._reasons.most_common(3)
        )
        raise TooManyFailures(
            f"{failed} of {self._done} simulations of level {self._level} failed, more "
            f"than max_failure_share={self._max_share:g} allows: {reasons}. Fix the "
            "simulator and run again, with `retry=('failed', 'timed out')` if there is "
            "a store, or allow a larger share."
        )


def measured_costs(tables: Sequence[LevelTable]) -> tuple[float, ...] | None:
    r"""Mean seconds :math:`C_l` of a run of each simulator, on both sides of pairs.

    `None` if the cost of some level is unknown.
    """
    # the last entry is that of the level below level 0
    seconds, runs = np.zeros(len(tables) + 1), np.zeros(len(tables) + 1)
    for level, table in enumerate(tables):
        rows = table.finished()
        spent = table.read("seconds", rows)
        seconds[[level, level - 1]] += np.nansum(spent, axis=0)
        runs[[level, level - 1]] += np.isfinite(spent).sum(axis=0)
    seconds, runs = seconds[:-1], runs[:-1]
    return tuple((seconds / runs).tolist()) if runs.all() else None


def summary(tables: Sequence[LevelTable], num_simulations: Sequence[int]) -> str:
    """One line: statuses of the first simulations of each level, and their seconds."""
    parts = []
    for table, stop in zip(tables, num_simulations):
        states = [
            f"{count} {status.label}"
            for status, count in table.counts(stop).items()
            if count > 0 or status is Status.OK
        ]
        seconds = np.nansum(table.read("seconds"))  # including those that failed
        parts.append(f"level {table.level}: {', '.join(states)}, {seconds:.3g} s")
    return "; ".join(parts)


def failure_text(table: LevelTable, num_simulations: int) -> str | None:
    """Number and reason of failures of the first simulations; `None` if none failed."""
    reasons = Counter(f.error for f in table.failures() if f.index < num_simulations)
    if not reasons:
        return None
    text, _ = reasons.most_common(1)[0]
    return (
        f"{reasons.total()} of {num_simulations} simulations of level {table.level} "
        f"failed and were left out, most often due to: {text}"
    )
