"""Runs tasks by joblib, and survives workers that do not.

Tasks go out in waves, so that results which wait to be stored take bounded memory; the
outcomes come back as they are ready. A batch that fails is halved until the bad row is
alone. When a worker dies nobody knows which of the tasks under way killed it: each of
them is run again alone, and halved likewise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from itertools import islice

import joblib
from joblib import Parallel, delayed

from sbi_multilevel.simulation.tasks import Outcome, Status, Task, Work

Result = tuple[Task, Outcome]

_BYTES_UNDER_WAY = 2**27
_MIN_TASKS_PER_WORKER = 8
# beyond two calls of the simulators, for what cannot be interrupted from inside
_GRACE_SECONDS = 30.0


def run_tasks(
    tasks: Iterable[Task], work: Work, num_workers: int | None
) -> Iterator[Result]:
    """Run all tasks, and yield what became of them as they end, in any order.

    Args:
        tasks: What to run; consumed as workers become free.
        work: Runs one task.
        num_workers: Workers of joblib; `None` for what `joblib.parallel_config` says, 1
            otherwise.

    Yields:
        Tasks, or parts of them, with their outcomes. Every row comes once.
    """
    tasks = iter(tasks)
    size = smallest = _MIN_TASKS_PER_WORKER * joblib.effective_n_jobs(num_workers)
    while wave := list(islice(tasks, size)):
        bytes_back = 0
        for task, outcome in _run_wave(wave, work, num_workers):
            bytes_back += sum(
                side.nbytes
                for side in (outcome.x, outcome.x_coarse)
                if side is not None
            )
            yield task, outcome
        size = max(smallest, _BYTES_UNDER_WAY * len(wave) // max(bytes_back, 1))


def _run_wave(
    wave: Sequence[Task], work: Work, num_workers: int | None
) -> Iterator[Result]:
    waiting = list(wave)
    while waiting:
        halves, started, returned = [], set(), set()
        try:
            for index, outcome in _parallel(waiting, work, num_workers, started):
                returned.add(index)
                if outcome.error is not None and len(waiting[index]) > 1:
                    halves.extend(waiting[index].halves())
                else:
                    yield waiting[index], outcome
        except Exception as error:
            if not _is_dead_worker(error):
                raise
            suspects = [waiting[index] for index in sorted(started - returned)]
            yield from _run_alone(suspects, work, num_workers)
            returned |= started
        rest = [task for index, task in enumerate(waiting) if index not in returned]
        waiting = rest + halves


def _run_alone(
    suspects: Sequence[Task], work: Work, num_workers: int | None
) -> Iterator[Result]:
    """Run one task after the other, so that a dead worker tells which one killed it."""
    waiting = list(suspects)
    while waiting:
        task = waiting.pop(0)
        try:
            [(_, outcome)] = _parallel([task], work, num_workers, set())
        except Exception as error:
            if not _is_dead_worker(error):
                raise
            status = Status.FAILED
            if isinstance(error, TimeoutError):
                status = Status.TIMED_OUT
            reason = f"its worker died or did not answer ({type(error).__name__})"
            outcome = Outcome.failed(len(task), status, reason)
        if outcome.error is not None and len(task) > 1:
            waiting = [*task.halves(), *waiting]
        else:
            yield task, outcome


def _parallel(
    tasks: Sequence[Task], work: Work, num_workers: int | None, started: set[int]
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes with the index of their task; notes in `started` what was sent out."""

    def calls() -> Iterator:
        for index, task in enumerate(tasks):
            started.add(index)
            yield delayed(_numbered)(index, task, work)

    limit = None
    if work.timeout is not None and joblib.effective_n_jobs(num_workers) > 1:
        limit = 2 * work.timeout + _GRACE_SECONDS
    parallel = Parallel(
        n_jobs=num_workers,
        batch_size=1,
        return_as="generator_unordered",
        timeout=limit,
    )
    outcomes = parallel(calls())
    try:
        for outcome in outcomes:  # not `yield from`, which would close `outcomes` first
            yield outcome
    finally:
        with warnings.catch_warnings():
            # of joblib, about results that are left over when a run is stopped
            warnings.simplefilter("ignore", UserWarning)
            outcomes.close()


def _numbered(index: int, task: Task, work: Work) -> tuple[int, Outcome]:
    return index, work(task)


def _is_dead_worker(error: Exception) -> bool:
    """Whether a worker died or hangs, in joblib's processes or those of Dask."""
    return isinstance(error, (BrokenExecutor, TimeoutError)) or (
        type(error).__name__ in ("KilledWorker", "CommClosedError")
    )
