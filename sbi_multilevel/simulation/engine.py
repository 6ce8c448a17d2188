"""Runs tasks by joblib, and survives workers that do not.

Tasks go out in waves, so that those that wait, and results that wait to be stored, take
bounded memory; the outcomes come back as they are ready. A batch that fails is halved
until the bad row is alone. When a worker dies nobody knows which of the tasks under way
killed it: they are run again in two groups, and a group in which a worker dies is
halved likewise.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import joblib
from joblib import Parallel, delayed

from sbi_multilevel.simulation.independence import FailedTogether, Watched
from sbi_multilevel.simulation.tasks import Origin, Outcome, Status, Task, Work

Result = tuple[Task, Outcome]

_TASKS_PER_WORKER = 64
_BYTES_UNDER_WAY = 2**27
# of the simulators on both sides, of the batch, of a row alone and of the batch again
_CALLS_A_TASK = 6
# beyond these calls, for what cannot be interrupted from inside: where
# files are far away, workers may take minutes to start
_GRACE_SECONDS = 300.0


class _WorkerDied(Exception):
    """A worker died or does not answer."""

    def __init__(self, status: Status, reason: str):
        super().__init__(reason)
        self.status = status


def run_tasks(
    tasks: Iterable[Task], work: Work, num_workers: int | None
) -> Iterator[Result]:
    """Run all tasks, and yield what became of them as they end, in any order.

    Args:
        tasks: What to run; consumed wave by wave.
        work: Runs one task.
        num_workers: Workers of joblib; `None` for what `joblib.parallel_config` says, 1
            otherwise.

    Yields:
        Tasks, or parts of them, with their outcomes. Every row comes once.

    Raises:
        ValueError: If rows of a batch are mixed up (see `independence`).
    """
    watched, together = Watched(work), FailedTogether()
    tasks, bytes_a_task = iter(tasks), 0.0
    while True:
        # asked anew each time: a cluster may have grown
        workers = max(1, joblib.effective_n_jobs(num_workers))
        size = _TASKS_PER_WORKER * workers
        if bytes_a_task > 0:
            size = max(2 * workers, min(size, int(_BYTES_UNDER_WAY / bytes_a_task)))
        wave = list(islice(tasks, size))
        if not wave:
            return
        bytes_back = 0
        for task, outcome in _run_wave(wave, watched, num_workers):
            watched.judge(task, outcome)
            together.note(task, outcome)
            bytes_back += outcome.nbytes
            yield task, outcome
        bytes_a_task = bytes_back / len(wave)


def _run_wave(
    wave: Sequence[Task], work: Watched, num_workers: int | None
) -> Iterator[Result]:
    groups = [list(wave)]
    while groups:
        group = groups.pop()
        started: set[int] = set()
        finished: set[int] = set()
        try:
            halves = yield from _run_group(group, work, num_workers, started, finished)
            groups += [halves] if halves else []
        except _WorkerDied as death:
            suspects = [group[index] for index in sorted(started - finished)]
            rest = [task for i, task in enumerate(group) if i not in started]
            groups += [rest] if rest else []
            if len(suspects) == 1 and len(suspects[0]) == 1:
                outcome = Outcome.failed(1, death.status, str(death))
                yield suspects[0], outcome
                continue
            if len(suspects) == 1:
                suspects = list(suspects[0].halves())
            middle = len(suspects) // 2
            groups += [suspects[:middle], suspects[middle:]]


def _run_group(
    group: Sequence[Task],
    work: Watched,
    num_workers: int | None,
    started: set[int],
    finished: set[int],
) -> Generator[Result, None, list[Task]]:
    """Run tasks in parallel; returns the halves of those that failed as a batch.

    Notes in `started` what was sent out, and in `finished` what came back.

    Raises:
        _WorkerDied: If a worker died, or does not answer.
    """
    halves: list[Task] = []
    try:
        for index, outcome in _parallel(group, work, num_workers, started):
            finished.add(index)
            if outcome.error is not None and len(group[index]) > 1:
                halves.extend(_taken_apart(group[index], outcome))
            else:
                yield group[index], outcome
    except Exception as error:
        status = _end_of_worker(error)
        if status is None or not started - finished:
            raise
        reason = f"its worker died or did not answer ({type(error).__name__})"
        raise _WorkerDied(status, reason) from error
    return halves


def _taken_apart(task: Task, outcome: Outcome) -> tuple[Task, Task]:
    """The halves of a task that failed; they know it, and so does what they become."""
    origin = task.origin or Origin.of(task, outcome)
    return replace(task, origin=origin).halves()


def _parallel(
    tasks: Sequence[Task], work: Watched, num_workers: int | None, started: set[int]
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes with the index of their task, in any order."""

    def calls() -> Iterator:
        for index, task in enumerate(tasks):
            started.add(index)
            yield delayed(_numbered)(index, task, work)

    parallel = Parallel(
        n_jobs=num_workers,
        batch_size=1,
        return_as="generator_unordered",
        timeout=_limit(work, num_workers),
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


def _limit(work: Watched, num_workers: int | None) -> float | None:
    """Seconds after which a worker that does not answer is killed.

    Only joblib's own processes can be; on a cluster, a task may wait for hours.
    """
    if work.timeout is None or joblib.effective_n_jobs(num_workers) == 1:
        return None
    backend, _ = joblib.parallel.get_active_backend()
    if type(backend).__name__ != "LokyBackend":
        return None
    return _CALLS_A_TASK * work.timeout + _GRACE_SECONDS


def _numbered(index: int, task: Task, work: Watched) -> tuple[int, Outcome]:
    return index, work(task)


def _end_of_worker(error: Exception) -> Status | None:
    """What becomes of a row that ended its worker so; `None` for any other error."""
    if isinstance(error, multiprocessing.TimeoutError):  # of joblib
        return Status.TIMED_OUT
    # of joblib's processes, and of Dask's
    deaths = ("TerminatedWorkerError", "KilledWorker")
    return Status.FAILED if type(error).__name__ in deaths else None
