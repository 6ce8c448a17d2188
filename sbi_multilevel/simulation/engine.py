"""Runs tasks by workers, and continues when workers die.

Tasks are submitted in waves, so that waiting tasks and results take bounded memory; the
outcomes are yielded as they finish. A batch that fails is halved until the failing
simulation is alone. When a worker dies, it is unknown which of the running tasks caused
it: they are run again in two groups, and a group in which a worker dies is halved
again. Each simulation ends with exactly one outcome: simulations leave the `Backlog`
only with an outcome, which is checked against an `Account` of the wave.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice

import joblib

from sbi_multilevel.simulation.accounting import REMEDY, Account, LostSimulations
from sbi_multilevel.simulation.backlog import Backlog
from sbi_multilevel.simulation.independence import FailedTogether, Watched
from sbi_multilevel.simulation.tasks import Outcome, Task, Work
from sbi_multilevel.simulation.workers import Numbered, WorkerDied, in_workers

Result = tuple[Task, Outcome]
# from numbered tasks, taken as workers need them, to outcomes by number, in any order
Executor = Callable[
    [Iterator[Numbered], Watched, int | None], Iterator[tuple[int, Outcome]]
]

_TASKS_PER_WORKER = 64
_BYTES_UNDER_WAY = 2**27


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
    watched, together = Watched(work), FailedTogether()
    tasks, bytes_a_task = iter(tasks), 0.0
    while True:
        # read for each wave: a cluster may have grown
        workers = max(1, joblib.effective_n_jobs(num_workers))
        size = _TASKS_PER_WORKER * workers
        if bytes_a_task > 0:
            size = max(2 * workers, min(size, int(_BYTES_UNDER_WAY / bytes_a_task)))
        wave = list(islice(tasks, size))
        if not wave:
            return
        account, bytes_back = Account(wave), 0
        for task, outcome in _run_wave(wave, watched, num_workers, executor):
            account.settle(task, outcome)
            watched.check(task, outcome)
            together.note(task, outcome)
            bytes_back += outcome.nbytes
            yield task, outcome
        account.close()
        bytes_a_task = bytes_back / len(wave)


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
                    result = backlog.settle(number, outcome)
                    if result is not None:
                        yield result
        except WorkerDied as death:
            # copied, as a thread of the executor may still take tasks
            result = _blamed(backlog, death, sent.copy())
            if result is not None:
                yield result
        if backlog.group() == group:
            raise LostSimulations(
                f"{len(group)} tasks of {sum(map(len, group.values()))} simulations "
                f"were submitted to workers, and none returned. {REMEDY}"
            )


def _recorded(group: Mapping[int, Task], sent: set[int]) -> Iterator[Numbered]:
    """The tasks of a group; adds the numbers of those taken to `sent`."""
    for number, task in group.items():
        sent.add(number)
        yield number, task


def _blamed(backlog: Backlog, death: WorkerDied, sent: Set[int]) -> Result | None:
    """The simulation that killed its worker, if alone; else separates the suspects."""
    group = backlog.group()
    suspects = group.keys() & (sent if death.suspects is None else death.suspects)
    if len(sent) == len(suspects) == 1:
        (number,) = suspects
        if len(group[number]) == 1:
            return backlog.settle(number, Outcome.failed(1, death.status, str(death)))
    backlog.separate(suspects)
    return None
