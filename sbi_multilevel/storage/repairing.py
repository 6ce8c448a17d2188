"""Finds unreadable chunks of a store, and makes their simulations pending again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sbi_multilevel.simulation.table import KINDS, LevelTable
from sbi_multilevel.simulation.tasks import Status, status_of

_BLOCK = 10_000  # simulations read at a time


def repair_table(table: LevelTable) -> int:
    """Empty damaged chunks of a level; simulations whose x is lost are pending again.

    This includes simulations whose file is missing. If the chunk of the status is
    damaged, simulations with a complete x are "ok". The status of simulations is
    written before their data is changed. Returns the number of those to run again.
    """
    for name in ("theta", "seed"):
        for start, stop in _damaged(table.columns[name]):
            raise OSError(
                f"{name} of level {table.level} is damaged for the simulations {start} "
                f"to {stop - 1}. Create a new store from the prior, and record those "
                "simulations of this one that can be read."
            )
    for name in ("seconds", "error"):
        _empty(table, name, _damaged_rows(table, name))
    unknown = _damaged_rows(table, "status")
    _empty(table, "status", unknown)
    without_x = [_damaged_rows(table, name) for name in ("x", "x_coarse")]
    done = table.finished()
    lost = np.intersect1d(done, np.concatenate(without_x))
    table.mark(lost, Status.PENDING)
    for name, rows in zip(("x", "x_coarse"), without_x):
        _empty(table, name, rows)
    gone = _without(table, table.rows_with(Status.OK))
    table.mark(gone, Status.PENDING)
    still_unknown = _without(table, unknown)
    table.mark(np.setdiff1d(unknown, still_unknown), Status.OK)
    return len(lost) + len(gone) + len(still_unknown)


def _without(table: LevelTable, rows: np.ndarray) -> np.ndarray:
    """Simulations of `rows` whose x (or x_coarse) is not written, or not finite."""
    parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    return np.concatenate([part[~_has_x(table, part)] for part in parts])


def _has_x(table: LevelTable, rows: np.ndarray) -> np.ndarray:
    """Whether x (and x_coarse) is written and finite, shape `(n,)`."""
    if len(rows) == 0 or "x" not in table.columns:
        return np.zeros(len(rows), bool)
    coarse = table.tensor("x_coarse", rows).numpy() if table.is_paired else None
    return status_of(table.tensor("x", rows).numpy(), coarse) == Status.OK


def _damaged_rows(table: LevelTable, name: str) -> np.ndarray:
    """Simulations of a column in chunks that cannot be read."""
    if name not in table.columns:
        return np.zeros(0, np.int64)
    ranges = [np.arange(*ends) for ends in _damaged(table.columns[name])]
    return np.concatenate([np.zeros(0, np.int64), *ranges])


def _empty(table: LevelTable, name: str, rows: np.ndarray) -> None:
    """Write the value of unwritten entries to the chunks that hold `rows`."""
    if len(rows) == 0:
        return
    array = table.columns[name]
    for start in np.unique(rows // array.chunks[0]) * array.chunks[0]:
        stop = min(start + array.chunks[0], array.shape[0])
        array[int(start) : int(stop)] = KINDS[name][1]


def _damaged(array: Any) -> Iterator[tuple[int, int]]:
    """First simulation, and one past the last, of each chunk that cannot be read."""
    for start in range(0, array.shape[0], array.chunks[0]):
        stop = min(start + array.chunks[0], array.shape[0])
        try:
            array[start:stop]
        except (ValueError, RuntimeError):  # raised by zarr's codecs
            yield start, stop
