"""Runs numbered tasks on a Dask cluster.

Dask's futures are used directly: joblib's backend for Dask does not report a task that
failed, e.g. because it killed its worker, and waits for it forever.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from sbi_multilevel.simulation.independence import Watched
from sbi_multilevel.simulation.tasks import Outcome, Task
from sbi_multilevel.simulation.workers import Numbered, WorkerDied

_TASKS_PER_CORE = 2  # submitted at a time


def on_dask(
    tasks: Iterator[Numbered], work: Watched, backend: Any
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes with the numbers of their tasks, in any order.

    Args:
        tasks: The tasks; taken as workers need them.
        work: Runs one task.
        backend: joblib's backend, which holds the cluster.

    Raises:
        WorkerDied: At the end, with the tasks that Dask stopped retrying because the
            workers that ran them died.
    """
    from distributed import KilledWorker, as_completed

    client = backend.client
    numbers, killers = {}, {}
    ended = as_completed(with_results=True, raise_errors=False, loop=client.loop)

    def submit(how_many: int) -> None:
        for number, task in islice(tasks, how_many):
            future = client.submit(
                _call, work, task, pure=False, **backend.submit_kwargs
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


def _call(work: Watched, task: Task) -> Outcome:
    return work(task)
