"""The tasks of a wave that have no outcome yet.

A task leaves the backlog only through `settle`, with the outcomes of all its
simulations: a batch that failed is replaced by its halves, and a worker that dies only
moves tasks to new groups. So no simulation is lost, however the run of a group ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from itertools import count

from sbi_multilevel.simulation.accounting import LostSimulations
from sbi_multilevel.simulation.tasks import Origin, Outcome, Task


class Backlog:
    """Tasks without an outcome, in groups that run together; the last group is next."""

    def __init__(self, tasks: Iterable[Task]):
        self._numbers = count()
        self._groups = [self._numbered(tasks)]

    def _numbered(self, tasks: Iterable[Task]) -> dict[int, Task]:
        return {next(self._numbers): task for task in tasks}

    def group(self) -> dict[int, Task]:
        """The tasks to run next, by number; none if all simulations have an outcome."""
        while self._groups and not self._groups[-1]:
            self._groups.pop()
        return dict(self._groups[-1]) if self._groups else {}

    def settle(self, number: int, outcome: Outcome) -> tuple[Task, Outcome] | None:
        """The task of the group with its outcome.

        `None` for a batch that failed, whose halves are run with the rest of the group.
        """
        group = self._groups[-1]
        if number not in group:
            raise LostSimulations(
                f"An outcome was returned for task {number}, which is not running: its "
                "simulations would be counted twice."
            )
        task = group.pop(number)
        if outcome.error is None or len(task) == 1:
            return task, outcome
        origin = task.origin or Origin.of(task, outcome)
        group.update(self._numbered(replace(task, origin=origin).halves()))
        return None

    def separate(self, numbers: Set[int]) -> None:
        """Run tasks of the group before the remaining ones, in two new groups.

        If there is only one task, its batch is halved.
        """
        group = self._groups[-1]
        chosen = {n: group.pop(n) for n in list(group) if n in numbers}
        if len(chosen) == 1:
            (task,) = chosen.values()
            chosen = self._numbered(task.halves() if len(task) > 1 else [task])
        items, middle = list(chosen.items()), len(chosen) // 2
        self._groups += [dict(items[:middle]), dict(items[middle:])]
