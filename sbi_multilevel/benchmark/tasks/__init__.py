"""Tasks of the benchmark, by name."""

from __future__ import annotations

import os

from sbi_multilevel.benchmark.tasks.base import BenchmarkTask
from sbi_multilevel.benchmark.tasks.camels import Camels
from sbi_multilevel.benchmark.tasks.g_and_k import GAndK
from sbi_multilevel.benchmark.tasks.ou import OrnsteinUhlenbeck
from sbi_multilevel.benchmark.tasks.toggle_switch import ToggleSwitch

TASKS = ("g-and-k", "toggle-switch", "ou", "camels", "camels-shuffled")

__all__ = ["TASKS", "BenchmarkTask", "get_task"]


def get_task(name: str, data: str | os.PathLike | None = None) -> BenchmarkTask:
    """The task of a name.

    Args:
        name: One of `TASKS`.
        data: File that the task reads, if it reads one.

    Raises:
        ValueError: If no task has this name.
    """
    if name in ("camels", "camels-shuffled"):
        return Camels(data, shuffle=name == "camels-shuffled")
    simulated = {task.name: task for task in (GAndK, ToggleSwitch, OrnsteinUhlenbeck)}
    if name not in simulated:
        raise ValueError(f"task must be one of {TASKS}, but is {name!r}.")
    return simulated[name]()
