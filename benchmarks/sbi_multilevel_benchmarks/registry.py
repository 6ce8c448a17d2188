"""Tasks and methods by name; what a plugin file adds to, as the built-in ones do."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # both import this module
    from sbi_multilevel_benchmarks.fitted import Method
    from sbi_multilevel_benchmarks.tasks.base import BenchmarkTask

    TaskBuilder = Callable[[str | os.PathLike | None], BenchmarkTask]

TASKS: dict[str, TaskBuilder] = {}
METHODS: dict[str, Method] = {}

# first words of the command line that are no tasks
COMMANDS = ("allocation", "cost", "divergence", "overhead", "report")

_plugins: set[Path] = set()


def register_task(name: str, builder: TaskBuilder) -> None:
    """Make a task known to the command line.

    Args:
        name: Name on the command line, and in the records.
        builder: Function of the file named by `--data` (or `None`) that makes the task.

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
    """Make a method known to the command line.

    Args:
        name: Name on the command line, and in the records. One that begins with
            "oracle" is drawn as what could be reached, a line across each plot.
        method: Function of task, simulations and seed that returns a `Fit`.

    Raises:
        ValueError: If the name is taken.
    """
    _check_free("method", name, METHODS)
    METHODS[name] = method


def load_plugin(path: str | os.PathLike) -> None:
    """Run a Python file that registers tasks and methods; nothing the second time.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no file.
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
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    _plugins.add(file)


def _check_free(kind: str, name: str, taken: dict) -> None:
    if name in taken:
        raise ValueError(
            f"name={name!r} is the name of another {kind}. Choose one not in "
            f"{tuple(taken)}."
        )
