"""What a run has cost so far, what became of its rows, and when it must stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Outcome, Status, Task

_CHANCE = 1e-3
REMEDY = (
    "This is no fault of a simulator: please report it. Run again to simulate the rows "
    "that are missing; with a store the others are kept."
)


class TooManyFailures(RuntimeError):
    """More simulations failed than `max_failure_share` allows.

    What was simulated before is kept in the store, if there is one.
    """


class LostRows(RuntimeError):
    """A row has no outcome, or more than one: a fault of what runs the simulators."""


class Account:
    """Rows that were sent out against those that come back: each once, with a status.

    Args:
        tasks: What is sent out.
    """

    def __init__(self, tasks: Sequence[Task]):
        self._missing = Counter(key for task in tasks for key in _rows(task))
        self._num_sent = self._missing.total()

    def settle(self, task: Task, outcome: Outcome) -> None:
        """Strike off rows that came back.

        Raises:
            LostRows: If one has no status, was not sent, or came back before.
        """
        num_ended = int((outcome.status != Status.PENDING).sum())
        if not num_ended == len(outcome.status) == len(task):
            raise LostRows(
                f"{len(task)} rows of level {task.level} came back, but {num_ended} of "
                f"them with a status. {REMEDY}"
            )
        self._missing.subtract(_rows(task))
        twice = [row for level, row in _rows(task) if self._missing[level, row] < 0]
        if twice:
            raise LostRows(
                f"{len(twice)} rows of level {task.level} came back more than once, "
                f"row {twice[0]} among them. {REMEDY}"
            )

    def close(self) -> None:
        """Check that all rows came back.

        Raises:
            LostRows: If not; says how many.
        """
        missing = +self._missing
        if missing:
            level, row = min(missing)
            raise LostRows(
                f"{self._num_sent} rows were sent out, and {missing.total()} did not "
                f"come back, row {row} of level {level} among them. {REMEDY}"
            )


def _rows(task: Task) -> list[tuple[int, int]]:
    return [(task.level, row) for row in task.rows.tolist()]


def check_none_pending(table: LevelTable, num_rows: int) -> None:
    """Check that each of the first `num_rows` rows has a status.

    Raises:
        LostRows: If not; says how many.
    """
    pending = table.rows_with(Status.PENDING, stop=num_rows)
    if len(pending):
        raise LostRows(
            f"{len(pending)} of {num_rows} rows of level {table.level} are pending "
            f"after the run, row {pending[0]} among them. {REMEDY}"
        )


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
