"""The tasks of a wave that have no outcome yet.

A task leaves the backlog with the outcome of all its rows, in `settle`, and in no other
way: a batch that failed leaves its halves in its place, and a worker that dies only
moves tasks to groups of their own. So no row is lost, whatever ends a run of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from itertools import count

from sbi_multilevel.simulation.accounting import LostRows
from sbi_multilevel.simulation.tasks import Origin, Outcome, Task


class Backlog:
    """Tasks without an outcome, in groups that run together; the last group is next.

    Args:
        tasks: All tasks, the first group.
    """

    def __init__(self, tasks: Iterable[Task]):
        self._numbers = count()
        self._groups = [self._numbered(tasks)]

    def _numbered(self, tasks: Iterable[Task]) -> dict[int, Task]:
        return {next(self._numbers): task for task in tasks}

    def group(self) -> dict[int, Task]:
        """The tasks to run next, by number; none if all rows have an outcome."""
        while self._groups and not self._groups[-1]:
            self._groups.pop()
        return dict(self._groups[-1]) if self._groups else {}

    def settle(self, number: int, outcome: Outcome) -> tuple[Task, Outcome] | None:
        """Take note of the outcome of a task of the group.

        Returns:
            The task and its outcome; `None` for a batch that failed, whose halves are
            run with what is left of the group.

        Raises:
            LostRows: If the task has its outcome already, or is none of the group.
        """
        group = self._groups[-1]
        if number not in group:
            raise LostRows(
                f"An outcome came for task {number}, which is not under way: its rows "
                "would come twice."
            )
        task = group[number]
        is_final = outcome.error is None or len(task) == 1
        if not is_final:
            origin = task.origin or Origin.of(task, outcome)
            group.update(self._numbered(replace(task, origin=origin).halves()))
        del group[number]
        return (task, outcome) if is_final else None

    def separate(self, numbers: Set[int]) -> None:
        """Run tasks of the group before the others, in two groups of their own.

        A batch that is the only one is halved.
        """
        group = self._groups[-1]
        chosen = {n: task for n, task in group.items() if n in numbers}
        for number in chosen:
            del group[number]
        if len(chosen) == 1:
            (task,) = chosen.values()
            chosen = self._numbered(task.halves() if len(task) > 1 else [task])
        items, middle = list(chosen.items()), len(chosen) // 2
        self._groups += [dict(items[:middle]), dict(items[middle:])]
