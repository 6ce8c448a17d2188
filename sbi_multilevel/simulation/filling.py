"""Runs the pending rows of tables, whether these are in memory or on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from sbi_multilevel.simulation.accounting import (
    FailureLimit,
    check_none_pending,
    summary,
)
from sbi_multilevel.simulation.arguments import check_num_costs
from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.progress import Progress
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Status, Work


@dataclass(frozen=True)
class Effort:
    """How a run is carried out; none of it changes a row.

    Args:
        batch_sizes: Rows that a simulator of each level is given at once.
        num_workers: Workers of joblib; `None` leaves it to `joblib.parallel_config`.
        max_failure_share: Share of failed rows above which the run stops.
        show_progress_bars: Whether to show bars, and a summary at the end.

    Raises:
        ValueError: If an argument is out of its range.
    """

    batch_sizes: tuple[int, ...]
    num_workers: int | None = None
    max_failure_share: float = 0.2
    show_progress_bars: bool = True

    def __post_init__(self) -> None:
        if min(self.batch_sizes) < 1:
            raise ValueError(
                f"simulation_batch_size must be >= 1, but is {self.batch_sizes}."
            )
        if self.num_workers == 0:
            raise ValueError("num_workers must be >= 1, or -1 for all cores, but is 0.")
        if not 0 <= self.max_failure_share <= 1:
            raise ValueError(
                "max_failure_share must be between 0 and 1, but is "
                f"{self.max_failure_share}."
            )


def fill(
    tables: Sequence[LevelTable],
    num_rows: Sequence[int],
    work: Work,
    effort: Effort,
    costs: Sequence[float] | None = None,
) -> None:
    """Run the pending rows among the first `num_rows[l]` of each level l.

    None of them is pending when it returns.

    Raises:
        ValueError: If there is not one cost a level, or rows of a batch are mixed up.
        TooManyFailures: If more fail than allowed.
        LostRows: If rows are pending at the end.
    """
    check_num_costs(costs, len(tables))
    remaining = [
        len(table.rows_with(Status.PENDING, stop=stop))
        for table, stop in zip(tables, num_rows)
    ]
    with Progress(remaining, costs, effort.show_progress_bars) as progress:
        for table, stop, size in zip(tables, num_rows, effort.batch_sizes):
            limit = FailureLimit(table, effort.max_failure_share)
            results = run_tasks(table.tasks(stop, size), work, effort.num_workers)
            with contextlib.closing(results):
                for task, outcome in results:
                    outcome = table.write(task.rows, outcome)
                    progress.update(table.level, outcome)
                    limit.check(outcome)
            check_none_pending(table, stop)
    if effort.show_progress_bars:
        print(summary(tables, num_rows))
