"""What a run has cost so far, what became of its rows, and when it must stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Outcome, Status

_FAILURES = (Status.FAILED, Status.TIMED_OUT)
# below so many rows a share of failures says little
_MIN_ROWS = 20


class TooManyFailures(RuntimeError):
    """More simulations failed than `max_failure_share` allows.

    What was simulated before is kept in the store, if there is one.
    """


class FailureLimit:
    """Stops a run once more than a share of the rows of a level have failed.

    Args:
        level: The level.
        max_share: The share, of all rows done in this run, 20 at least.
    """

    def __init__(self, level: int, max_share: float):
        self._level = level
        self._max_share = max_share
        self._done = 0
        self._reasons: Counter[str] = Counter()

    def check(self, outcome: Outcome) -> None:
        """Count the rows of an outcome.

        Raises:
            TooManyFailures: If too many have failed; says how many, and why.
        """
        self._done += len(outcome.status)
        if outcome.error is not None:
            self._reasons[outcome.error] += len(outcome.status)
        failed = self._reasons.total()
        if failed <= self._max_share * max(self._done, _MIN_ROWS):
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


def measured_costs(tables: Sequence[LevelTable]) -> tuple[float, ...]:
    r"""Mean seconds :math:`C_l` of a run of each simulator, on both sides of pairs."""
    seconds, runs = np.zeros(len(tables)), np.zeros(len(tables))
    for level, table in enumerate(tables):
        spent, rows = table.seconds()
        seconds[level] += spent[0]
        runs[level] += rows
        if level > 0:
            seconds[level - 1] += spent[1]
            runs[level - 1] += rows
    return tuple((seconds / np.maximum(runs, 1)).tolist())


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
