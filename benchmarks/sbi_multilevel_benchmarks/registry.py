"""Tasks and methods by name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from sbi_multilevel_benchmarks.fit import Method
from sbi_multilevel_benchmarks.task import BenchmarkTask

TaskBuilder = Callable[..., BenchmarkTask]  # of the file named by `--data`

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
    "reproduce",
    "speed",
)

_plugins: set[Path] = set()


def register_task(name: str, builder: TaskBuilder) -> None:
    """Add a task to the command line.

    Args:
        name: Name on the command line and in the records.
        builder: Function that makes the task, of the file named by `--data` or `None`,
            and of options by name, if any.

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


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a task or a method.

    Args:
        name: A registered name, with options as in `"blob:size=64"` and
            `"ou2-delta:delta=0.3,reversed_order=True"`.

    Raises:
        ValueError: If an option has no value.
    """
    base, colon, rest = name.partition(":")
    options = {}
    for part in rest.split(",") if colon else ():
        option, equals, text = part.partition("=")
        if not (option.isidentifier() and equals and text):
            raise ValueError(
                f"name={name!r} has the option {part!r}. Write NAME:OPTION=VALUE, with "
                "commas between options."
            )
        try:
            options[option] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            options[option] = text
    return base, options


def get_task(name: str, data: str | os.PathLike | None = None) -> BenchmarkTask:
    """The task of a name.

    Args:
        name: Name of a registered task, with options if any, see `split_name`.
        data: File that the task reads, if any.

    Raises:
        ValueError: If no task has this name, its file is missing, or it has no such
            option.

    Example:
    --------

    ::

        >>> from sbi_multilevel_benchmarks import get_task
        >>> task = get_task("g-and-k")
        >>> task.family, task.num_simulations
        ('nle', (10000, 100))
    """
    base, options = split_name(name)
    if base not in TASKS:
        raise ValueError(
            f"task must be one of {tuple(TASKS)}, but is {name!r}. Other tasks come "
            "from a file named by `--plugin`."
        )
    known = _options_of(TASKS[base])
    _check_options(name, options, known)
    task = TASKS[base](data, **options)
    task.name = name  # the key of pre-trained networks that are kept between runs
    return task


def get_method(name: str) -> Method:
    """The method of a name.

    Args:
        name: Name of a registered method, with options if any, see `split_name`.

    Raises:
        ValueError: If no method has this name, or it has no such option.
    """
    base, options = split_name(name)
    if base not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, but is {name!r}.")
    method: Any = METHODS[base]
    names = [each.name for each in fields(method)] if is_dataclass(method) else []
    _check_options(name, options, names)
    return replace(method, **options) if options else method


def _options_of(builder: TaskBuilder) -> list[str]:
    """Names of the arguments of a builder that have to be named."""
    parameters = inspect.signature(builder).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def _check_options(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    unknown = [option for option in given if option not in known]
    if unknown:
        raise ValueError(
            f"name={name!r} has options {unknown}, but must have some of {list(known)}."
        )


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
