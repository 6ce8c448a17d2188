"""Runs one batch of rows of one level, and says what became of each of them.

Nothing that a simulator does leaves this module as an exception: an error, a run beyond
its time, NaN and infinity end as the `Status` of the rows. So a bad row can be told
from a broken worker, and never stops a run.
"""

from __future__ import annotations

import sysconfig
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.simulation.calling import check_simulators
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    check_noise,
    draw_noise,
)
from sbi_multilevel.simulation.time_limit import TimeIsUp, call_within

_HERE = Path(__file__).parent
_LIBRARIES = [
    Path(sysconfig.get_path(name))
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
]


class Status(IntEnum):
    """What became of a row."""

    PENDING = 0
    OK = 1
    FAILED = 2  # the simulator raised, returned a wrong shape, or killed its worker
    TIMED_OUT = 3
    INVALID = 4  # NaN or infinity in x or x_coarse

    @classmethod
    def named(cls, name: str) -> Status:
        """The status called `name`, e.g. "timed out".

        Raises:
            ValueError: If there is none of this name.
        """
        names = {status.label: status for status in cls}
        if not isinstance(name, str) or name not in names:
            raise ValueError(f"status {name!r} is unknown. Use one of {sorted(names)}.")
        return names[name]

    @classmethod
    def all_named(cls, names: str | Sequence[str]) -> list[Status]:
        """The statuses called so; one name stands for itself."""
        names = (names,) if isinstance(names, str) else names
        return [cls.named(name) for name in names]

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Origin:
    """A batch that failed as a whole, by an exception, and was taken apart."""

    level: int
    first_row: int
    num_rows: int
    error: str

    @classmethod
    def of(cls, task: Task, outcome: Outcome) -> Origin | None:
        """Of a task that failed; `None` where a lack of time or memory explains it."""
        error = outcome.error or ""
        if outcome.status[0] != Status.FAILED or _is_of_memory(error):
            return None
        return cls(task.level, int(task.rows[0]), len(task), error)

    @property
    def text(self) -> str:
        """What happened, in words."""
        return (
            f"a batch of {self.num_rows} rows of level {self.level} failed by "
            f"{self.error}"
        )


@dataclass(frozen=True, eq=False)
class Task:
    """A batch of rows of one level, ready to run anywhere.

    Args:
        level: Level of the rows.
        rows: Their numbers, ascending, shape `(n,)`.
        theta: Their parameters, shape `(n, d_theta)`.
        seeds: Their seeds, shape `(n,)`.
        origin: The batch of which they are a part, if that failed.
    """

    level: int
    rows: np.ndarray
    theta: Tensor
    seeds: Tensor
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def halves(self) -> tuple[Task, Task]:
        """Two tasks with half of the rows each."""
        middle = len(self) // 2
        return self.part(slice(None, middle)), self.part(slice(middle, None))

    def part(self, part: slice) -> Task:
        """Some of the rows."""
        return replace(
            self, rows=self.rows[part], theta=self.theta[part], seeds=self.seeds[part]
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a task returns.

    Args:
        status: `Status` of each row, shape `(n,)`, uint8.
        seconds: Seconds a row spent in the simulator of the level and in the one below,
            shape `(n, 2)`.
        x: Outputs, shape `(n, *x_shape)`; `None` if the batch failed.
        x_coarse: Outputs of the level below; `None` at level 0 or if the batch failed.
        error: What went wrong, if the batch failed as a whole.
        is_mixed: Whether a row differs from the same row alone; `None` if not tried.
    """

    status: np.ndarray
    seconds: np.ndarray
    x: np.ndarray | None = None
    x_coarse: np.ndarray | None = None
    error: str | None = None
    is_mixed: bool | None = None

    def take(self, index: np.ndarray) -> Outcome:
        """The rows at `index`."""
        x = None if self.x is None else self.x[index]
        x_coarse = None if self.x_coarse is None else self.x_coarse[index]
        return replace(
            self,
            status=self.status[index],
            seconds=self.seconds[index],
            x=x,
            x_coarse=x_coarse,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs."""
        sides = (self.x, self.x_coarse)
        return sum(side.nbytes for side in sides if side is not None)

    @classmethod
    def failed(
        cls, num_rows: int, status: Status, error: str, seconds: float = 0.0
    ) -> Outcome:
        """All rows have come to the same end."""
        spent = np.zeros((num_rows, 2))
        spent[:, 0] = seconds / num_rows
        return cls(np.full(num_rows, status, np.uint8), spent, error=error)


@dataclass(frozen=True, eq=False)
class Work:
    """Runs a task: the simulator of its level, and the one below on the same noise.

    Args:
        simulators: Those of all levels; `None` where the level below is not wanted.
        noise: Noise sampler, or `None` for seeds.
        timeout: Seconds that one call of a simulator may take, if limited.

    Raises:
        ValueError: If a simulator or the noise cannot be called, or the noise of a row
            is of a wrong shape.
    """

    simulators: Sequence[Simulator | None]
    noise: NoiseSampler | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, but is {self.timeout}.")
        check_simulators(self.simulators)
        object.__setattr__(self, "simulators", tuple(self.simulators))
        check_noise(self.noise)

    def __call__(self, task: Task) -> Outcome:
        start = time.perf_counter()
        try:
            return self._run(task)
        except TimeIsUp as error:
            status, text = Status.TIMED_OUT, str(error)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        # a simulator that exits or panics must not take its worker along
        except BaseException as error:
            status, text = Status.FAILED, describe(error)
        return Outcome.failed(len(task), status, text, time.perf_counter() - start)

    def _run(self, task: Task) -> Outcome:
        x, seconds = self._side(task, task.level)
        spent = np.zeros((len(task), 2))
        spent[:, 0] = seconds / len(task)
        x_coarse = None
        if task.level > 0 and self.simulators[task.level - 1] is not None:
            x_coarse, seconds = self._side(task, task.level - 1)
            spent[:, 1] = seconds / len(task)
            if x.shape != x_coarse.shape:
                raise ValueError(
                    f"x of level {task.level} has shape {x.shape[1:]} a row and x of "
                    f"level {task.level - 1} {x_coarse.shape[1:]}. All levels must "
                    "return x of one shape."
                )
        status = status_of(x, x_coarse)
        return Outcome(status, spent, x, x_coarse)

    def _side(self, task: Task, level: int) -> tuple[np.ndarray, float]:
        # drawn anew for each simulator: one that writes to its noise spoils no other
        drawn = draw_noise(self.noise, task.seeds.clone())
        start = time.perf_counter()
        x = call_within(self.timeout, self.simulators[level], task.theta.clone(), drawn)
        seconds = time.perf_counter() - start
        return _checked(x, len(task), level), seconds


def status_of(x: np.ndarray, x_coarse: np.ndarray | None) -> np.ndarray:
    """`OK` where all features of both sides are finite, else `INVALID`; shape `(n,)`.

    Args:
        x: Outputs, shape `(n, *x_shape)`.
        x_coarse: Outputs of the level below, if paired.
    """
    sides = (x,) if x_coarse is None else (x, x_coarse)
    finite = [np.isfinite(side).reshape(len(x), -1).all(axis=1) for side in sides]
    valid = np.logical_and.reduce(finite)
    return np.where(valid, Status.OK, Status.INVALID).astype(np.uint8)


def describe(error: BaseException) -> str:
    """Type, message and last place of an exception in the user's code, in one line."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not _is_in(frame.filename, _HERE)]
    users = [f for f in outside if not _is_of_library(f.filename)]
    chosen = (users or outside)[-1:]
    place = "".join(f" ({frame.name}, line {frame.lineno})" for frame in chosen)
    return f"{type(error).__name__}: {message}{place}"


def _is_in(filename: str, *folders: Path) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in folders)


def _is_of_library(filename: str) -> bool:
    return filename.endswith(".pyx") or _is_in(filename, *_LIBRARIES)  # compiled, too


def _is_of_memory(error: str) -> bool:
    return "MemoryError" in error or "out of memory" in error.lower()


def _checked(x: Any, num_rows: int, level: int) -> np.ndarray:
    # a copy: simulators may use their output again
    x = torch.as_tensor(x, dtype=torch.float32).detach().cpu().numpy().copy()
    if x.shape == (num_rows,):
        raise ValueError(
            f"The simulator of level {level} returned x of shape (n,), one number a "
            "row. Return shape (n, 1), e.g. `x.unsqueeze(1)` or `x[:, None]`; a "
            "simulator of one row at a time can be wrapped by `vectorize_simulator`."
        )
    if x.ndim < 2 or x.shape[0] != num_rows:
        raise ValueError(
            f"The simulator of level {level} returned x of shape {tuple(x.shape)} for "
            f"{num_rows} rows of theta. Return shape (n, *x_shape) with n = "
            f"{num_rows}; a simulator of one row at a time can be wrapped by "
            "`vectorize_simulator`."
        )
    return x
