"""Runs numbered tasks on a Dask cluster.

By Dask's own futures: joblib's backend for Dask never reports a task that failed, e.g.
as it killed its worker, and waits for it forever.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from sbi_multilevel.simulation.independence import Watched
from sbi_multilevel.simulation.tasks import Outcome, Task
from sbi_multilevel.simulation.workers import Numbered, WorkerDied

_TASKS_A_CORE = 2  # under way at once


def on_dask(
    tasks: Iterator[Numbered], work: Watched, backend: Any
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes with the numbers of their tasks, in any order.

    Args:
        tasks: What to run; taken as workers need it.
        work: Runs one task.
        backend: joblib's backend, which knows the cluster.

    Raises:
        WorkerDied: At the end, with the tasks that Dask gave up, as the workers that
            ran them died each time.
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

    with backend.retrieval_context():  # leaves room if we run on a worker ourselves
        try:
            submit(_TASKS_A_CORE * max(1, sum(client.ncores().values())))
            for future, result in ended:
                number = numbers.pop(future)
                submit(1)
                if isinstance(result, Outcome):
                    yield number, result
                else:  # an exception, with its type and traceback if it is of a task
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
