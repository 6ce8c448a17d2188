"""Tasks and methods by name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

from sbi_multilevel_benchmarks.fit import Method
from sbi_multilevel_benchmarks.task import BenchmarkTask

TaskBuilder = Callable[[str | os.PathLike | None], BenchmarkTask]

TASKS: dict[str, TaskBuilder] = {}
METHODS: dict[str, Method] = {}

# first words of the command line other than tasks
COMMANDS = (
    "allocation",
    "cost",
    "divergence",
    "families",
    "overhead",
    "report",
    "speed",
)

_plugins: set[Path] = set()


def register_task(name: str, builder: TaskBuilder) -> None:
    """Add a task to the command line.

    Args:
        name: Name on the command line and in the records.
        builder: Function that makes the task; its argument is the file named by
            `--data`, or `None`.

    Raises:
        ValueError: If the name is taken.
    """
    if name in COMMANDS:
        raise ValueError(
            f"name={name!r} is a command of the benchmark. Choose another."
        )
    _check_free("task", name, TASKS)
    TASKS[name] = builder


def register_method(name: str, method: Method) -> None:
    """Add a method to the command line.

    Args:
        name: Name on the command line and in the records. A method whose name begins
            with "oracle" is drawn as a horizontal line in each plot.
        method: Function of task, simulations and seed that returns a `Fit`.

    Raises:
        ValueError: If the name is taken.
    """
    _check_free("method", name, METHODS)
    METHODS[name] = method


def _check_free(kind: str, name: str, taken: dict) -> None:
    if name in taken:
        raise ValueError(
            f"name={name!r} is the name of another {kind}. Choose one not in "
            f"{tuple(taken)}."
        )


def get_task(name: str, data: str | os.PathLike | None = None) -> BenchmarkTask:
    """The task of a name.

    Args:
        name: Name of a registered task.
        data: File that the task reads, if any.

    Raises:
        ValueError: If no task has this name, or its file is missing.

    Example:
    --------

    ::

        >>> from sbi_multilevel_benchmarks import get_task
        >>> task = get_task("g-and-k")
        >>> task.family, task.num_simulations
        ('nle', (10000, 100))
    """
    if name not in TASKS:
        raise ValueError(
            f"task must be one of {tuple(TASKS)}, but is {name!r}. Other tasks come "
            "from a file named by `--plugin`."
        )
    task = TASKS[name](data)
    task.name = name  # the key of pre-trained networks that are kept between runs
    return task


def load_modules(package: str) -> None:
    """Import all modules of a package, which register tasks or methods.

    Args:
        package: Name of the package.
    """
    for info in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f"{package}.{info.name}")


def load_plugin(path: str | os.PathLike) -> None:
    """Run a Python file that registers tasks and methods, once.

    Args:
        path: The file.

    Raises:
        ValueError: If there is no such Python file.
    """
    file = Path(path).resolve()
    if file in _plugins:
        return
    if not file.is_file():
        raise ValueError(
            f"path={os.fspath(path)!r} is no file. Name a Python file by `--plugin`."
        )
    name = f"sbi_multilevel_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"path={os.fspath(path)!r} must end with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    _plugins.add(file)
