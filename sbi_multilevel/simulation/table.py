"""The simulations of one level while they are run: columns, one of them a status.

The columns are arrays in memory, or those of a store on disk. Both are written in the
same order: first the data, then the status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.simulation.noise import draw_theta, simulation_seeds
from sbi_multilevel.simulation.tasks import Outcome, Status, Task

_BLOCK = 10_000  # simulations planned, and read to run them, at a time


# name -> type of the values, and value of entries that have not been written
KINDS: dict[str, tuple[str, Any]] = {
    "theta": ("float32", np.nan),
    "seed": ("int64", 0),
    "seconds": ("float64", 0.0),
    "error": ("str", ""),
    "x": ("float32", np.nan),
    "x_coarse": ("float32", np.nan),
    "status": ("uint8", int(Status.PENDING)),
}


class Columns(dict[str, Any]):
    """Named arrays with the indexing of NumPy, in memory."""

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Create an array of unwritten entries, in place of an existing one."""
        dtype, fill = KINDS[name]
        self[name] = np.full(shape, fill, object if dtype == "str" else dtype)

    def resize(self, name: str, length: int) -> None:
        """Change the number of entries of an array."""
        old = self[name][:length]
        self.create(name, (length, *old.shape[1:]))
        self[name][: len(old)] = old


def memory_table(level: int, theta: Tensor, seeds: Tensor) -> LevelTable:
    """A table in memory whose simulations are all pending."""
    columns = Columns(theta=theta.numpy(), seed=seeds.numpy())
    columns.create("seconds", (len(theta), 2))
    columns.create("error", (len(theta),))
    columns.create("status", (len(theta),))
    return LevelTable(level, columns)


@dataclass(frozen=True)
class FailedSimulation:
    """A simulation that failed: level, number in the level, status, and the reason."""

    level: int
    index: int
    status: str
    error: str


@dataclass(frozen=True, eq=False)
class LevelTable:
    """All simulations of a level, one per row: theta and seeds, and x once it is known.

    Args:
        level: The level.
        columns: `theta`, `seed`, `status`, `seconds` and, once a simulation has
            finished, `x` and (above level 0) `x_coarse`.
    """

    level: int
    columns: Columns

    def __len__(self) -> int:
        return self.columns["status"].shape[0]

    @property
    def is_paired(self) -> bool:
        """Whether simulations include the output of the level below."""
        return self.level > 0

    def rows_with(
        self, *statuses: Status, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """Numbers of the simulations that have one of the statuses, ascending."""
        return start + np.flatnonzero(np.isin(self._status(start, stop), statuses))

    def finished(self) -> np.ndarray:
        """Numbers of the simulations with an output, valid or not, ascending."""
        return self.rows_with(Status.OK, Status.INVALID)

    def counts(self, num_simulations: int | None = None) -> dict[Status, int]:
        """Number of simulations with each status, of the first `num_simulations`."""
        status = self._status(0, num_simulations)
        return dict(zip(Status, np.bincount(status, minlength=len(Status)).tolist()))

    def _status(self, start: int, stop: int | None) -> np.ndarray:
        stop = len(self) if stop is None else min(stop, len(self))
        status = self.read("status", slice(start, max(start, stop)))
        largest = status.max(initial=0)
        if largest >= len(Status):
            raise ValueError(
                f"status of level {self.level} has the value {largest}, but there are "
                f"{len(Status)} statuses. Use a store that `SimulationStore` wrote."
            )
        return status

    def grow(self, num_simulations: int, prior: Any, seed: int) -> None:
        """Draw theta and seeds of more simulations; they are pending afterwards."""
        columns, planned = self.columns, len(self)
        if num_simulations <= planned:
            return
        for name in columns:
            if name != "status":
                columns.resize(name, num_simulations)
        for first in range(planned, num_simulations, _BLOCK):
            stop = min(first + _BLOCK, num_simulations)
            theta = draw_theta(prior, seed, self.level, stop, start=first)
            seeds = simulation_seeds(seed, self.level, first, stop)
            columns["theta"][first:stop] = theta.numpy()
            columns["seed"][first:stop] = seeds.numpy()
        columns.resize("status", num_simulations)

    def task(self, rows: np.ndarray) -> Task:
        """The simulations of these numbers as a task."""
        theta, seeds = self.tensor("theta", rows), self.tensor("seed", rows)
        return Task(self.level, rows, theta, seeds)

    def tasks(self, num_simulations: int, batch_size: int) -> Iterator[Task]:
        """Pending simulations of the first ones, in batches on a fixed grid."""
        block = batch_size * max(1, _BLOCK // batch_size)  # read at a time
        for first in range(0, num_simulations, block):
            pending = self.rows_with(
                Status.PENDING, start=first, stop=min(first + block, num_simulations)
            )
            if len(pending) == 0:
                continue
            task = self.task(pending)
            edges = np.arange(first, first + block + batch_size, batch_size)
            for start, stop in pairwise(np.searchsorted(pending, edges)):
                if stop > start:
                    yield task.part(slice(start, stop))

    def write(self, rows: np.ndarray, outcome: Outcome) -> Outcome:
        """Write the outcome of simulations, the status last.

        Returns it, as a failure if x does not have the shape of existing x.
        """
        x, known = outcome.x, self._shape("x")
        if x is not None and known not in (None, x.shape[1:]) and len(self.finished()):
            error = (
                f"x of one simulation has shape {x.shape[1:]}, but that of earlier "
                f"simulations has {known}. If those are wrong, retry them: their "
                "status is 'ok' or 'invalid'"
            )
            seconds = float(outcome.seconds.sum())
            outcome = Outcome.failed(len(rows), Status.FAILED, error, seconds)
        for name, values in zip(("x", "x_coarse"), outcome.sides):
            if self._shape(name) != values.shape[1:]:
                self.columns.create(name, (len(self), *values.shape[1:]))
            self._write(name, rows, values)
        self._write("seconds", rows, outcome.seconds)
        if outcome.error is not None:
            self._write("error", rows, np.full(len(rows), outcome.error, object))
        self._write("status", rows, outcome.status)
        return outcome

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of the entries of a column; `None` if it does not exist."""
        return self.columns[name].shape[1:] if name in self.columns else None

    def reset(self, *statuses: Status, stop: int | None = None) -> int:
        """Make simulations with these statuses pending again; returns their number."""
        rows = self.rows_with(*statuses, stop=stop)
        self._write("error", rows, np.full(len(rows), "", object))
        self.mark(rows, Status.PENDING)
        return len(rows)

    def mark(self, rows: np.ndarray, status: Status) -> None:
        """Set the status of the simulations `rows`."""
        self._write("status", rows, np.full(len(rows), status, np.uint8))

    def failures(self) -> Iterator[FailedSimulation]:
        """The simulations that failed or timed out, with the reason."""
        rows = self.rows_with(Status.FAILED, Status.TIMED_OUT)
        status, errors = self.read("status", rows), self.read("error", rows)
        for row, number, error in zip(rows.tolist(), status.tolist(), errors):
            yield FailedSimulation(self.level, row, Status(number).label, str(error))

    def simulations(self, rows: np.ndarray) -> LevelSimulations:
        """Finished simulations; `LevelSimulations` drops the invalid ones."""
        x_coarse = self.tensor("x_coarse", rows) if self.is_paired else None
        theta, x = self.tensor("theta", rows), self.tensor("x", rows)
        return LevelSimulations(self.level, theta, x, x_coarse)

    def tensor(self, name: str, rows: np.ndarray) -> Tensor:
        """A column at `rows`."""
        return torch.from_numpy(self.read(name, rows))

    def read(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A column at `rows`, copied, so that the caller may change it."""
        index = contiguous(rows)
        with self._damage_explained(name, index):
            return np.array(self.columns[name][index])

    def _write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        if len(rows) == 0:
            return
        index = contiguous(rows)
        with self._damage_explained(name, index):  # writing to a chunk reads it first
            self.columns[name][index] = values

    @contextlib.contextmanager
    def _damage_explained(self, name: str, index: slice | np.ndarray) -> Iterator[None]:
        try:
            yield
        # raised by zarr's codecs, and for a missing array
        except (ValueError, RuntimeError, KeyError) as error:
            raise OSError(
                f"{name} of level {self.level} cannot be read for some of the "
                f"simulations {index}: {error}. `SimulationStore.repair` makes damaged "
                "simulations pending again."
            ) from error


def contiguous(rows: np.ndarray | slice) -> slice | np.ndarray:
    """Ascending numbers, as a slice if they are consecutive, which is faster."""
    is_array = isinstance(rows, np.ndarray) and len(rows) > 0
    if is_array and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
