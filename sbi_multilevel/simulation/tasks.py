"""Runs one batch of simulations of one level, and returns a status for each of them.

Exceptions of a simulator do not leave this module: an error, a time limit, NaN and
infinity become the `Status` of the simulations. This distinguishes a failed simulation
from a broken worker, and the run continues.
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
from torch import Tensor

from sbi_multilevel.simulation.arguments import check_simulators
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    as_output,
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
    """Status of a simulation."""

    PENDING = 0
    OK = 1
    FAILED = 2  # the simulator raised, returned a wrong shape, or killed its worker
    TIMED_OUT = 3
    INVALID = 4  # NaN or infinity in x or x_coarse

    @classmethod
    def all_named(cls, names: str | Sequence[str]) -> list[Status]:
        """The statuses of these names, e.g. "timed out"; one may be passed as text."""
        names = (names,) if isinstance(names, str) else names
        known = {status.label: status for status in cls}
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise ValueError(
                    f"status {name!r} is unknown. Use one of {sorted(known)}."
                )
        return [known[name] for name in names]

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.lower().replace("_", " ")


@dataclass(eq=False)
class Origin:
    """A batch that failed as a whole with an exception, and was divided.

    Args:
        text: Description of the failure.
        num_left: Number of its simulations that did not work in a smaller batch yet.
    """

    text: str
    num_left: float

    @classmethod
    def of(cls, task: Task, outcome: Outcome) -> Origin | None:
        """Of a failed task; `None` if time or memory limits explain the failure."""
        error = outcome.error or ""
        is_of_memory = "MemoryError" in error or "out of memory" in error.lower()
        if outcome.status[0] != Status.FAILED or is_of_memory:
            return None
        size = len(task)
        text = f"a batch of {size} simulations of level {task.level} failed with"
        return cls(f"{text} {error}", size)


@dataclass(frozen=True, eq=False)
class Task:
    """A batch of simulations of one level, which can be run in any process.

    Args:
        level: Level of the simulations.
        rows: Their numbers in the level, ascending, shape `(n,)`.
        theta: Their parameters, shape `(n, d_theta)`.
        seeds: Their seeds, shape `(n,)`.
        origin: The batch that they are a part of, if it failed.
    """

    level: int
    rows: np.ndarray
    theta: Tensor
    seeds: Tensor
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def halves(self) -> tuple[Task, Task]:
        """Two tasks with half of the simulations each."""
        middle = len(self) // 2
        return self.part(slice(None, middle)), self.part(slice(middle, None))

    def part(self, part: slice) -> Task:
        """Some of the simulations."""
        return replace(
            self, rows=self.rows[part], theta=self.theta[part], seeds=self.seeds[part]
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a task.

    Args:
        status: `Status` of each simulation, shape `(n,)`, uint8.
        seconds: Seconds of each simulation in the simulator of the level and in the one
            below, shape `(n, 2)`.
        x: Outputs, shape `(n, *x_shape)`; `None` if the batch failed.
        x_coarse: Outputs of the level below; `None` at level 0 or if the batch failed.
        error: The reason, if the batch failed as a whole.
        is_mixed: Whether a simulation differs when repeated alone; `None` if not tried.
    """

    status: np.ndarray
    seconds: np.ndarray
    x: np.ndarray | None = None
    x_coarse: np.ndarray | None = None
    error: str | None = None
    is_mixed: bool | None = None

    @property
    def sides(self) -> tuple[np.ndarray, ...]:
        """x and x_coarse, as far as there are."""
        return tuple(side for side in (self.x, self.x_coarse) if side is not None)

    @classmethod
    def failed(
        cls, size: int, status: Status, error: str, seconds: float = 0.0
    ) -> Outcome:
        """Outcome of `size` simulations that all have the same status."""
        spent = np.zeros((size, 2))
        spent[:, 0] = seconds / size
        return cls(np.full(size, status, np.uint8), spent, error=error)


@dataclass(frozen=True, eq=False)
class Work:
    """Runs a task: the simulator of its level, and the one below on the same noise.

    Args:
        simulators: Simulators of all levels; `None` for a level below that is not run.
        noise: Noise sampler, or `None` for seeds.
        timeout: Seconds that one call of a simulator may take, if limited.
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
        # a simulator that exits or panics must not end its worker
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
                    f"x of one simulation has shape {x.shape[1:]} at level "
                    f"{task.level} and {x_coarse.shape[1:]} at level "
                    f"{task.level - 1}. All levels must return x of one shape."
                )
        return Outcome(status_of(x, x_coarse), spent, x, x_coarse)

    def _side(self, task: Task, level: int) -> tuple[np.ndarray, float]:
        # drawn again for each simulator, since a simulator may write to its noise
        drawn = draw_noise(self.noise, task.seeds.clone())
        start = time.perf_counter()
        x = call_within(self.timeout, self.simulators[level], task.theta.clone(), drawn)
        seconds = time.perf_counter() - start
        return _checked(x, len(task), level), seconds


def status_of(x: np.ndarray, x_coarse: np.ndarray | None = None) -> np.ndarray:
    """`OK` if all features of both sides are finite, else `INVALID`; shape `(n,)`."""
    sides = [side for side in (x, x_coarse) if side is not None]
    finite = [np.isfinite(side).reshape(len(x), -1).all(axis=1) for side in sides]
    return np.where(np.all(finite, axis=0), Status.OK, Status.INVALID).astype(np.uint8)


def describe(error: BaseException) -> str:
    """Type, message and last line in the user's code of an exception, as one line."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not _is_in(f.filename, _HERE)]
    users = [f for f in outside if not _is_in(f.filename, *_LIBRARIES)]
    chosen = ([f for f in users if not f.filename.endswith(".pyx")] or outside)[-1:]
    place = "".join(f" ({frame.name}, line {frame.lineno})" for frame in chosen)
    return f"{type(error).__name__}: {message}{place}"


def _is_in(filename: str, *folders: Path) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in folders)


def _checked(x: Any, size: int, level: int) -> np.ndarray:
    # copied, as simulators may reuse their output
    x = as_output(x).detach().cpu().numpy().copy()
    if x.ndim > 1 and len(x) == size:
        return x
    found, wanted = f"{x.shape} for n = {size} values of theta", "(n, *x_shape)"
    if x.shape == (size,):
        found = "(n,), one number per simulation"
        wanted = "(n, 1), e.g. `x.unsqueeze(1)` or `x[:, None]`"
    raise ValueError(
        f"The simulator of level {level} returned x of shape {found}. Return shape "
        f"{wanted}; a simulator of one theta at a time can be wrapped by "
        "`vectorize_simulator`."
    )
