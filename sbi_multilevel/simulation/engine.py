"""Runs tasks by workers, and continues when workers die.

Tasks are submitted in waves, so that waiting tasks and results take bounded memory; the
outcomes are yielded as they finish. A batch that fails is halved until the failing
simulation is alone. When a worker dies, it is unknown which of the running tasks caused
it: they are run again in two groups, and a group in which a worker dies is halved
again. Each simulation ends with exactly one outcome: simulations leave the `Backlog`
only with an outcome, however the run of a group ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from itertools import count, islice

import joblib

from sbi_multilevel.errors import SbiMultilevelError
from sbi_multilevel.simulation.independence import Watched
from sbi_multilevel.simulation.tasks import Origin, Outcome, Status, Task, Work
from sbi_multilevel.simulation.workers import Numbered, WorkerDied, in_workers

Result = tuple[Task, Outcome]
# from numbered tasks, taken as workers need them, to outcomes by number, in any order
Executor = Callable[
    [Iterator[Numbered], Watched, int | None], Iterator[tuple[int, Outcome]]
]

_MIN_TASKS, _MAX_TASKS = 2, 64  # of a wave, per worker
_BYTES_UNDER_WAY = 2**27
REMEDY = (
    "The simulators are not the cause: please report this error. Run again to simulate "
    "the missing ones; with a store finished ones are kept."
)


class LostSimulations(SbiMultilevelError, RuntimeError):
    """A simulation has no outcome, or more than one: an error of the executor."""


def run_tasks(
    tasks: Iterable[Task],
    work: Work,
    num_workers: int | None,
    executor: Executor = in_workers,
) -> Iterator[Result]:
    """Run all tasks, and yield their outcomes as they finish, in any order.

    Args:
        tasks: The tasks; consumed wave by wave.
        work: Runs one task.
        num_workers: Workers of joblib; `None` for the number of
            `joblib.parallel_config`, or 1.
        executor: Runs the tasks of a group; raises `WorkerDied` if a worker does.

    Yields:
        Tasks, or parts of them, with their outcomes; each simulation once.
    """
    watched = Watched(work)
    tasks, bytes_a_task = iter(tasks), 1.0
    while True:
        # read for each wave: a cluster may have grown
        workers = max(1, joblib.effective_n_jobs(num_workers))
        size = min(_MAX_TASKS * workers, int(_BYTES_UNDER_WAY / bytes_a_task))
        wave = list(islice(tasks, max(_MIN_TASKS * workers, size)))
        if not wave:
            return
        num_bytes = 0
        for task, outcome in _run_wave(wave, watched, num_workers, executor):
            watched.check(task, outcome)
            num_bytes += sum(side.nbytes for side in outcome.sides)
            yield task, outcome
        bytes_a_task = max(1.0, num_bytes / len(wave))


def _run_wave(
    wave: Iterable[Task], work: Watched, num_workers: int | None, executor: Executor
) -> Iterator[Result]:
    backlog = Backlog(wave)
    while group := backlog.group():
        sent: set[int] = set()
        try:
            outcomes = executor(_recorded(group, sent), work, num_workers)
            with contextlib.closing(outcomes):
                for number, outcome in outcomes:
                    yield from backlog.settle(number, outcome)
        except WorkerDied as death:
            # copied, as a thread of the executor may still take tasks
            yield from backlog.divide(death, sent.copy())
        if backlog.group() == group:
            raise LostSimulations(
                f"{len(group)} tasks of {sum(map(len, group.values()))} simulations "
                f"were submitted to workers, and none returned. {REMEDY}"
            )
    backlog.close()


def _recorded(group: Mapping[int, Task], sent: set[int]) -> Iterator[Numbered]:
    """The tasks of a group; adds the numbers of those taken to `sent`."""
    for number, task in group.items():
        sent.add(number)
        yield number, task


class Backlog:
    """Tasks without an outcome, in groups that run together; the last group is next.

    A task leaves only with the outcomes of all its simulations: a batch that failed is
    replaced by its halves, and a worker that dies only moves tasks to new groups.
    """

    def __init__(self, tasks: Iterable[Task]):
        self._numbers = count()
        self._groups = [self._numbered(tasks)]
        self._missing = {
            (task.level, row)
            for task in self._groups[0].values()
            for row in task.rows.tolist()
        }
        self._num_sent = len(self._missing)

    def _numbered(self, tasks: Iterable[Task]) -> dict[int, Task]:
        return {next(self._numbers): task for task in tasks}

    def group(self) -> dict[int, Task]:
        """The tasks to run next, by number; none if all simulations have an outcome."""
        while self._groups and not self._groups[-1]:
            self._groups.pop()
        return dict(self._groups[-1]) if self._groups else {}

    def settle(self, number: int, outcome: Outcome) -> list[Result]:
        """The task of the group with its outcome, as the only entry.

        Empty for a batch that failed, whose halves are run with the rest of the group.
        """
        group = self._groups[-1]
        if number not in group:
            raise LostSimulations(
                f"An outcome was returned for task {number}, which is not running: its "
                "simulations would be counted twice."
            )
        task = group.pop(number)
        if outcome.error is not None and len(task) > 1:
            origin = task.origin or Origin.of(task, outcome)
            group.update(self._numbered(replace(task, origin=origin).halves()))
            return []
        num_ended = int((outcome.status != Status.PENDING).sum())
        if not num_ended == len(outcome.status) == len(task):
            raise LostSimulations(
                f"{len(task)} simulations of level {task.level} returned, but only "
                f"{num_ended} of them with a status. {REMEDY}"
            )
        self._missing.difference_update((task.level, row) for row in task.rows.tolist())
        return [(task, outcome)]

    def divide(self, death: WorkerDied, sent: Set[int]) -> list[Result]:
        """Run the tasks that may have killed a worker first, in two new groups.

        If there is only one, its batch is halved. A simulation that ran alone is the
        cause: it is returned with this outcome. Otherwise empty.
        """
        group = self._groups[-1]
        suspects = group.keys() & (sent if death.suspects is None else death.suspects)
        if len(sent) == len(suspects) == 1:
            (number,) = suspects
            if len(group[number]) == 1:
                return self.settle(number, Outcome.failed(1, death.status, str(death)))
        chosen = {n: group.pop(n) for n in list(group) if n in suspects}
        if len(chosen) == 1:
            (task,) = chosen.values()
            chosen = self._numbered(task.halves() if len(task) > 1 else [task])
        items, middle = list(chosen.items()), len(chosen) // 2
        self._groups += [dict(items[:middle]), dict(items[middle:])]
        return []

    def close(self) -> None:
        """Raise unless all simulations that were submitted have an outcome."""
        if self._missing:
            level, index = min(self._missing)
            raise LostSimulations(
                f"{self._num_sent} simulations were submitted, and "
                f"{len(self._missing)} did not return, e.g. number {index} of level "
                f"{level}. {REMEDY}"
            )
