"""What a run has cost so far, what became of its rows, and when it must stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Outcome, Status

_CHANCE = 1e-3


class TooManyFailures(RuntimeError):
    """More simulations failed than `max_failure_share` allows.

    What was simulated before is kept in the store, if there is one.
    """


class FailureLimit:
    """Stops a run once clearly more than a share of the rows of a level fail.

    Clearly: had each row failed with probability `max_share`, so many failures would
    come about once in a thousand times.

    Args:
        table: The level; rows that are done already count.
        max_share: The share.
    """

    def __init__(self, table: LevelTable, max_share: float):
        self._level = table.level
        self._max_share = max_share
        self._done = len(table.rows_with(Status.OK, Status.INVALID))
        self._reasons: Counter[str] = Counter()

    def check(self, outcome: Outcome) -> None:
        """Count the rows of an outcome.

        Raises:
            TooManyFailures: If too many have failed; says how many, and why.
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
            f"than max_failure_share={self._max_share:g} allows: {reasons}. Mend the "
            "simulator and run again, with `retry=('failed', 'timed out')` if there is "
            "a store, or allow a larger share."
        )


def measured_costs(tables: Sequence[LevelTable]) -> tuple[float, ...] | None:
    r"""Mean seconds :math:`C_l` of a run of each simulator, on both sides of pairs.

    `None` if that of some level is not known.
    """
    seconds, runs = np.zeros(len(tables)), np.zeros(len(tables))
    for level, table in enumerate(tables):
        spent, known = table.seconds()
        seconds[level] += spent[0]
        runs[level] += known[0]
        if level > 0:
            seconds[level - 1] += spent[1]
            runs[level - 1] += known[1]
    return tuple((seconds / runs).tolist()) if runs.all() else None


def summary(tables: Sequence[LevelTable], num_rows: Sequence[int]) -> str:
    """One line: what became of the first `num_rows[l]` rows of each level, and cost."""
    parts = []
    for table, stop in zip(tables, num_rows):
        counts = table.counts(stop)
        states = [
            f"{count} {status.label}"
            for status, count in counts.items()
            if count > 0 or status is Status.OK
        ]
        seconds = table.total_seconds()
        parts.append(f"level {table.level}: {', '.join(states)}, {seconds:.3g} s")
    return "; ".join(parts)


def failure_text(table: LevelTable, num_rows: int) -> str | None:
    """How many of the first rows failed, and why; `None` if none did."""
    reasons = Counter(f.error for f in table.failures() if f.row < num_rows)
    if not reasons:
        return None
    text, _ = reasons.most_common(1)[0]
    return (
        f"{reasons.total()} of {num_rows} rows of level {table.level} failed and were "
        f"left out, most often by: {text}"
    )
