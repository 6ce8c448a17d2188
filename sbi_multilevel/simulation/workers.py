"""Runs numbered tasks by workers of joblib or Dask, and detects workers that died."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Set
from itertools import islice
from typing import Any

import joblib
from joblib import Parallel, delayed

from sbi_multilevel.errors import SbiMultilevelError
from sbi_multilevel.simulation.independence import Watched
from sbi_multilevel.simulation.tasks import Outcome, Status, Task

Numbered = tuple[int, Task]

# both simulators, for the batch, one simulation alone, and the batch again
_CALLS_PER_TASK = 6
# added to the time of these calls: workers may take minutes to start on slow file
# systems
_GRACE_SECONDS = 300.0
_TASKS_PER_CORE = 2  # submitted to Dask at a time


class WorkerDied(SbiMultilevelError):
    """A worker died or does not respond, so that outcomes of tasks are missing.

    Args:
        error: The error that reported this.
        status: Status of a simulation that caused it.
        suspects: Numbers of the tasks that may have caused it; by default all tasks
            that were taken.
    """

    def __init__(
        self,
        error: BaseException,
        status: Status = Status.FAILED,
        suspects: Set[int] | None = None,
    ):
        super().__init__(f"its worker died or did not answer ({type(error).__name__})")
        self.status, self.suspects = status, suspects


def in_workers(
    tasks: Iterator[Numbered], work: Watched, num_workers: int | None
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes with the numbers of their tasks, in any order.

    Tasks are taken as workers need them, from any thread. `WorkerDied` is raised if a
    worker dies; earlier outcomes are kept.
    """
    backend, _ = joblib.parallel.get_active_backend()
    if type(backend).__name__ == "DaskDistributedBackend":
        return _by_dask(tasks, work, backend)
    return _by_joblib(tasks, work, num_workers)


def _by_joblib(
    tasks: Iterator[Numbered], work: Watched, num_workers: int | None
) -> Iterator[tuple[int, Outcome]]:
    parallel = Parallel(
        n_jobs=num_workers,
        batch_size=1,
        return_as="generator_unordered",
        timeout=_limit(work, num_workers),
    )
    try:
        outcomes = parallel(
            delayed(_call)(number, task, work) for number, task in tasks
        )
        try:
            for outcome in outcomes:  # not `yield from`, which closes `outcomes` first
                yield outcome
        finally:
            with warnings.catch_warnings():
                # joblib warns of unused results when a run is stopped
                warnings.simplefilter("ignore", UserWarning)
                outcomes.close()
    except multiprocessing.TimeoutError as error:  # of joblib
        raise WorkerDied(error, Status.TIMED_OUT) from error
    except Exception as error:
        if type(error).__name__ == "TerminatedWorkerError":
            raise WorkerDied(error) from error
        raise


def _call(number: int, task: Task, work: Watched) -> tuple[int, Outcome]:
    return number, work(task)


def _limit(work: Watched, num_workers: int | None) -> float | None:
    """Seconds after which a process of joblib that does not respond is killed."""
    timeout = work.work.timeout
    if timeout is None or joblib.effective_n_jobs(num_workers) == 1:
        return None
    backend, _ = joblib.parallel.get_active_backend()
    if type(backend).__name__ != "LokyBackend":
        return None
    return _CALLS_PER_TASK * timeout + _GRACE_SECONDS


def _by_dask(
    tasks: Iterator[Numbered], work: Watched, backend: Any
) -> Iterator[tuple[int, Outcome]]:
    """As `in_workers`, by the futures of the cluster of joblib's backend for Dask.

    The backend itself does not report a task that failed, e.g. because it killed its
    worker, and waits for it forever. `WorkerDied` is raised at the end, with the tasks
    that Dask stopped retrying because the workers that ran them died.
    """
    from distributed import KilledWorker, as_completed

    client = backend.client
    numbers, killers = {}, {}
    ended = as_completed(with_results=True, raise_errors=False, loop=client.loop)

    def submit(how_many: int) -> None:
        for number, task in islice(tasks, how_many):
            future = client.submit(
                _run, work, task, pure=False, **backend.submit_kwargs
            )
            numbers[future] = number
            ended.add(future)

    with backend.retrieval_context():  # frees a slot if this runs on a worker itself
        try:
            submit(_TASKS_PER_CORE * max(1, sum(client.ncores().values())))
            for future, result in ended:
                number = numbers.pop(future)
                submit(1)
                if isinstance(result, Outcome):
                    yield number, result
                else:  # an exception; with its type and traceback if a task raised it
                    error = result[1] if isinstance(result, tuple) else result
                    if not isinstance(error, KilledWorker):
                        raise error
                    killers[number] = error
        finally:
            client.cancel(list(numbers))
    if killers:
        error = next(iter(killers.values()))
        raise WorkerDied(error, suspects=killers.keys()) from error


def _run(work: Watched, task: Task) -> Outcome:
    return work(task)
