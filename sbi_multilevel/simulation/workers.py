"""Runs numbered tasks by the workers of joblib, and detects workers that died."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Set

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

    Args:
        tasks: The tasks; taken as workers need them, from any thread.
        work: Runs one task.
        num_workers: Workers of joblib.

    Raises:
        WorkerDied: If a worker dies; earlier outcomes are kept.
    """
    backend, _ = joblib.parallel.get_active_backend()
    if type(backend).__name__ == "DaskDistributedBackend":
        from sbi_multilevel.simulation.on_dask import on_dask

        return on_dask(tasks, work, backend)
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
    """Seconds after which a worker that does not respond is killed.

    This applies to joblib's own processes only: on a cluster, tasks may wait for hours.
    """
    if work.timeout is None or joblib.effective_n_jobs(num_workers) == 1:
        return None
    backend, _ = joblib.parallel.get_active_backend()
    if type(backend).__name__ != "LokyBackend":
        return None
    return _CALLS_PER_TASK * work.timeout + _GRACE_SECONDS
