"""Tasks of the benchmark, by name.

Each module registers its own; to add one, import it below.
"""

from __future__ import annotations

import os

from sbi_multilevel_benchmarks import registry
from sbi_multilevel_benchmarks.tasks import camels, g_and_k, ou, toggle_switch
from sbi_multilevel_benchmarks.tasks.base import BenchmarkTask

# those that score density estimators
TASKS = tuple(registry.TASKS)

from sbi_multilevel_benchmarks.tasks import blob, ou_transfer, sbibm
from sbi_multilevel_benchmarks.tasks.posterior import PosteriorTask

# those that score posteriors
POSTERIOR_TASKS = tuple(name for name in registry.TASKS if name not in TASKS)

__all__ = ["POSTERIOR_TASKS", "TASKS", "BenchmarkTask", "PosteriorTask", "get_task"]


def get_task(name: str, data: str | os.PathLike | None = None) -> BenchmarkTask:
    """The task of a name.

    Args:
        name: One that is registered.
        data: File that the task reads, if it reads one.

    Raises:
        ValueError: If no task has this name, or its file is missing.

    Example:
    --------

    ::

        >>> task = get_task("g-and-k")
        >>> task.family, task.num_simulations
        ('nle', (10000, 100))
    """
    if name not in registry.TASKS:
        raise ValueError(
            f"task must be one of {tuple(registry.TASKS)}, but is {name!r}. Other "
            "tasks come from a file named by `--plugin`."
        )
    task = registry.TASKS[name](data)
    task.name = name  # what is cached between runs is told apart by it
    return task
