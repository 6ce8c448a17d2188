"""Finds chunks of a store that cannot be read, and makes their rows pending again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sbi_multilevel.simulation.table import KINDS, LevelTable
from sbi_multilevel.simulation.tasks import Status, status_of

_BLOCK = 10_000  # rows of x that are read at once


def repair_table(table: LevelTable) -> int:
    """Empty damaged chunks of a level; rows whose x was in one are pending again.

    Where the chunk of the status is damaged, rows with a whole x are "ok".

    Returns:
        The number of rows that must be run again.

    Raises:
        OSError: If theta or the seeds are damaged, which only the prior can give again.
    """
    for name in ("theta", "seed"):
        for start, stop in _damaged(table.columns[name]):
            raise OSError(
                f"{name} of level {table.level} is damaged in the rows {start} to "
                f"{stop - 1}. Make a new store from the prior, and record the rows of "
                "this one that can be read."
            )
    for name in ("seconds", "error"):
        _empty(table, name)
    unknown = _empty(table, "status")
    done = table.rows_with(Status.OK, Status.INVALID)
    without_x = np.concatenate([_empty(table, "x"), _empty(table, "x_coarse")])
    lost = np.intersect1d(done, without_x)
    table.mark(lost, Status.PENDING)
    whole = [rows for rows in np.split(unknown, range(_BLOCK, len(unknown), _BLOCK))]
    found = np.concatenate([rows[_has_x(table, rows)] for rows in whole])
    table.mark(found, Status.OK)
    return len(lost) + len(unknown) - len(found)


def _has_x(table: LevelTable, rows: np.ndarray) -> np.ndarray:
    """Whether x (and x_coarse) of the rows is written and finite, shape `(n,)`."""
    if len(rows) == 0 or "x" not in table.columns:
        return np.zeros(len(rows), bool)
    coarse = table.tensor("x_coarse", rows).numpy() if table.is_paired else None
    return status_of(table.tensor("x", rows).numpy(), coarse) == Status.OK


def _empty(table: LevelTable, name: str) -> np.ndarray:
    """Write "nothing" to the damaged chunks of a column; returns their rows."""
    if name not in table.columns:
        return np.zeros(0, np.int64)
    array = table.columns[name]
    rows = [np.zeros(0, np.int64)]
    for start, stop in list(_damaged(array)):
        array[start:stop] = KINDS[name][1]
        rows.append(np.arange(start, stop))
    return np.concatenate(rows)


def _damaged(array: Any) -> Iterator[tuple[int, int]]:
    """First row and one past the last of each chunk that cannot be read."""
    for start in range(0, array.shape[0], array.chunks[0]):
        stop = min(start + array.chunks[0], array.shape[0])
        try:
            array[start:stop]
        except (ValueError, RuntimeError):  # of zarr's codecs
            yield start, stop
