"""Tasks of the benchmark, by name."""

from __future__ import annotations

import os
from collections.abc import Callable

from sbi_multilevel.benchmark.tasks.base import BenchmarkTask
from sbi_multilevel.benchmark.tasks.blob import GaussianBlob
from sbi_multilevel.benchmark.tasks.camels import Camels
from sbi_multilevel.benchmark.tasks.g_and_k import GAndK
from sbi_multilevel.benchmark.tasks.ou import OrnsteinUhlenbeck
from sbi_multilevel.benchmark.tasks.ou_transfer import (
    OUPerturbed,
    OUPublished,
    OUReverse,
    OUTransfer,
    OUUseless,
)
from sbi_multilevel.benchmark.tasks.posterior import PosteriorTask
from sbi_multilevel.benchmark.tasks.sbibm import SIR, SLCP
from sbi_multilevel.benchmark.tasks.toggle_switch import ToggleSwitch

_BUILDERS: dict[str, Callable[[str | os.PathLike | None], BenchmarkTask]] = {
    "g-and-k": lambda data: GAndK(),
    "toggle-switch": lambda data: ToggleSwitch(),
    "ou": lambda data: OrnsteinUhlenbeck(),
    "camels": lambda data: Camels(data),
    "camels-shuffled": lambda data: Camels(data, shuffle=True),
}
_POSTERIOR_BUILDERS: dict[str, Callable[[str | os.PathLike | None], PosteriorTask]] = {
    "ou2": lambda data: OUTransfer(2),
    "ou3": lambda data: OUTransfer(3),
    "ou4": lambda data: OUTransfer(4),
    "ou2-published": lambda data: OUPublished(data),
    "ou-reverse": lambda data: OUReverse(),
    "ou2-delta0.1": lambda data: OUPerturbed(0.1),
    "ou2-delta1": lambda data: OUPerturbed(1.0),
    "ou2-delta1-reversed": lambda data: OUPerturbed(1.0, reversed_order=True),
    "ou2-useless": lambda data: OUUseless(),
    "slcp": lambda data: SLCP(),
    "sir": lambda data: SIR(),
    "blob": lambda data: GaussianBlob(),
}

# those that score density estimators, and those that score posteriors
TASKS = tuple(_BUILDERS)
POSTERIOR_TASKS = tuple(_POSTERIOR_BUILDERS)

__all__ = ["POSTERIOR_TASKS", "TASKS", "BenchmarkTask", "PosteriorTask", "get_task"]


def get_task(name: str, data: str | os.PathLike | None = None) -> BenchmarkTask:
    """The task of a name.

    Args:
        name: One of `TASKS` or `POSTERIOR_TASKS`.
        data: File that the task reads, if it reads one.

    Raises:
        ValueError: If no task has this name, or its file is missing.
    """
    builders = {**_BUILDERS, **_POSTERIOR_BUILDERS}
    if name not in builders:
        raise ValueError(
            f"task must be one of {TASKS + POSTERIOR_TASKS}, but is {name!r}."
        )
    return builders[name](data)
