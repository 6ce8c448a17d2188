"""Runs the pending simulations of tables, in memory or on disk, with progress bars."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom
from tqdm.auto import tqdm

from sbi_multilevel.errors import SbiMultilevelError
from sbi_multilevel.simulation.arguments import check_num_costs
from sbi_multilevel.simulation.engine import REMEDY, LostSimulations, run_tasks
from sbi_multilevel.simulation.reading import summary
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Outcome, Status, Work

_CHANCE = 1e-3  # of so many failures at the allowed share, see `FailureLimit`


class TooManyFailures(SbiMultilevelError, RuntimeError):
    """More simulations failed than `max_failure_share` allows.

    Finished simulations are kept in the store, if there is one.
    """


@dataclass(frozen=True)
class RunOptions:
    """How simulations are run; the options do not change the simulations themselves.

    Args:
        batch_sizes: Simulations per call of the simulator of each level.
        num_workers: Workers of joblib; `None` leaves it to `joblib.parallel_config`.
        max_failure_share: Share of failed simulations above which the run stops.
        show_progress_bars: Whether to show bars, and a summary at the end.
        timeout: Seconds that one call of a simulator may take, if limited.
        costs: Cost of one run of each simulator, if given.
    """

    batch_sizes: tuple[int, ...]
    num_workers: int | None = None
    max_failure_share: float = 0.2
    show_progress_bars: bool = True
    timeout: float | None = None
    costs: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.num_workers == 0:
            raise ValueError("num_workers must be >= 1, or -1 for all cores, but is 0.")
        if not 0 <= self.max_failure_share <= 1:
            raise ValueError(
                "max_failure_share must be between 0 and 1, but is "
                f"{self.max_failure_share}."
            )
        check_num_costs(self.costs, len(self.batch_sizes))
        if self.costs is not None:
            object.__setattr__(self, "costs", tuple(self.costs))


def fill(
    tables: Sequence[LevelTable],
    num_simulations: Sequence[int],
    work: Work,
    options: RunOptions,
) -> None:
    """Run the pending ones of the first `num_simulations[l]` simulations of each level.

    None of them is pending when it returns.

    Raises:
        LostSimulations: If some are nevertheless, with their number.
        TooManyFailures: If more fail than allowed.
    """
    remaining = [
        len(table.rows_with(Status.PENDING, stop=stop))
        for table, stop in zip(tables, num_simulations)
    ]
    with contextlib.closing(_Progress(remaining, options)) as progress:
        for table, stop, size in zip(tables, num_simulations, options.batch_sizes):
            limit = FailureLimit(table, options.max_failure_share)
            results = run_tasks(table.tasks(stop, size), work, options.num_workers)
            with contextlib.closing(results):
                for task, outcome in results:
                    outcome = table.write(task.rows, outcome)
                    progress.update(table.level, outcome)
                    limit.check(outcome)
            pending = table.rows_with(Status.PENDING, stop=stop)
            if len(pending):
                raise LostSimulations(
                    f"{len(pending)} of {stop} simulations of level {table.level} are "
                    f"pending after the run, e.g. number {pending[0]}. {REMEDY}"
                )
    if options.show_progress_bars:
        print(summary(tables, num_simulations))


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


class _Progress:
    """One bar of simulations per level, and one of cost with the remaining time."""

    def __init__(self, remaining: Sequence[int], options: RunOptions):
        show = options.show_progress_bars
        self._bars = [
            tqdm(
                total=number,
                desc=f"Level {level}",
                unit="sim",
                disable=not (show and number),
            )
            for level, number in enumerate(remaining)
        ]
        costs = np.array(options.costs or [0.0] * len(remaining), float)
        self._costs = costs + np.append(0.0, costs[:-1])  # with the level below
        total = float(np.dot(remaining, self._costs))
        self._cost_bar = tqdm(
            total=total,
            desc="Cost",
            disable=not (show and total),
            bar_format="{l_bar}{bar}| {n:.4g}/{total:.4g} [{elapsed}<{remaining}]",
        )
        self._bad: Counter[int] = Counter()

    def close(self) -> None:
        """Stop updating the bars, which stay visible."""
        for bar in (*self._bars, self._cost_bar):
            bar.close()

    def update(self, level: int, outcome: Outcome) -> None:
        """Count the simulations of an outcome."""
        number, bar = len(outcome.status), self._bars[level]
        self._bad[level] += int((outcome.status != Status.OK).sum())
        if self._bad[level]:
            bar.set_postfix(bad=self._bad[level], refresh=False)
        bar.update(number)
        self._cost_bar.update(number * self._costs[level])
