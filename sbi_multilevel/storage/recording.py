"""Records external simulations, in any order.

A valid simulation is recorded once: recording it again has no effect. One that failed,
timed out or is invalid is replaced.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.simulation.noise import NoiseSampler, draw_noise
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Outcome, Status, status_of


@dataclass(frozen=True, eq=False)
class PendingSimulations:
    """Simulations of a level that have not been run.

    Args:
        level: Their level.
        ids: A number for each, unique in the store, shape `(n,)`.
        theta: Their parameters, shape `(n, d_theta)`.
        noise: Their noise: int64 seeds, shape `(n,)`, or draws of the noise sampler.
    """

    level: int
    ids: np.ndarray
    theta: Tensor
    noise: Any

    def __len__(self) -> int:
        return len(self.ids)


def pending_simulations(
    table: LevelTable, num_levels: int, noise: NoiseSampler | None, limit: int | None
) -> PendingSimulations:
    """The first `limit` pending simulations of a level."""
    rows = table.rows_with(Status.PENDING)[:limit]
    task = table.task(rows)
    return PendingSimulations(
        table.level,
        rows * num_levels + table.level,  # does not change when a store grows
        task.theta,
        draw_noise(noise, task.seeds),
    )


def _locate(ids: Any, tables: tuple[LevelTable, ...]) -> tuple[LevelTable, np.ndarray]:
    """The table of unique ids of one level, and their numbers in it."""
    ids = np.atleast_1d(np.asarray(ids))
    if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"ids must be one or more integers from `pending`, but is {ids!r}."
        )
    levels = np.unique(ids % len(tables))
    if len(levels) > 1:
        raise ValueError(
            f"ids belong to the levels {levels.tolist()}. Record one level at a time."
        )
    table, rows = tables[int(levels[0])], ids // len(tables)
    unknown = ids[(rows < 0) | (rows >= len(table))]
    if len(unknown) or len(np.unique(ids)) < len(ids):
        raise ValueError(
            f"ids must be unique and come from `pending`, but {unknown[:5].tolist()} "
            "are not in this store."
            if len(unknown)
            else "ids holds some ids twice. Pass each id once."
        )
    return table, rows


def record(
    tables: tuple[LevelTable, ...], ids: Any, x: Any, x_coarse: Any, cost: Any
) -> int:
    """Write external simulations; valid ones are kept. Returns the number written."""
    table, rows = _locate(ids, tables)
    # the same at all levels; `None` if unknown
    known = (tuple(t.columns["x"].shape[1:]) for t in tables if "x" in t.columns)
    shape = next(known, None)
    x = _checked("x", x, shape, len(rows))
    if table.is_paired != (x_coarse is not None):
        raise ValueError(
            f"Simulations of level {table.level} need x_coarse, the outputs of the "
            "level below at the same theta and noise."
            if table.is_paired
            else "x_coarse was passed for level 0, but there is no level below 0."
        )
    if x_coarse is not None:
        x_coarse = _checked("x_coarse", x_coarse, shape, len(rows))
        if x_coarse.shape != x.shape:
            raise ValueError(
                f"x has shape {x.shape}, x_coarse {x_coarse.shape}. Pass one output of "
                "each level per id, of the same shape."
            )
    seconds = _seconds(cost, len(rows))
    is_old = np.isin(rows, table.rows_with(Status.OK))
    _compare(table, rows[is_old], x[is_old])
    new = np.flatnonzero(~is_old)
    order = new[np.argsort(rows[new])]
    if len(order):
        x, x_coarse = x[order], None if x_coarse is None else x_coarse[order]
        outcome = Outcome(status_of(x, x_coarse), seconds[order], x, x_coarse)
        table.write(rows[order], outcome)
    return len(order)


def record_failures(tables: tuple[LevelTable, ...], ids: Any, error: str) -> int:
    """Record that simulations failed; valid ones are kept."""
    table, rows = _locate(ids, tables)
    rows = np.sort(np.setdiff1d(rows, table.rows_with(Status.OK)))
    if len(rows):
        table.write(rows, Outcome.failed(len(rows), Status.FAILED, error))
    return len(rows)


def _checked(
    name: str, value: Any, known: tuple[int, ...] | None, size: int
) -> np.ndarray:
    try:
        value = torch.as_tensor(value, dtype=torch.float32).detach().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a {type(value).__name__}, but must be a tensor of numbers, one "
            "output per id."
        ) from error
    if value.ndim < 2 or len(value) != size or known not in (None, value.shape[1:]):
        entry = "*x_shape" if known is None else ", ".join(map(str, known))
        raise ValueError(
            f"{name} has shape {value.shape}, but must have shape (n, {entry}) with "
            f"one output for each of the n = {size} ids."
        )
    return value


def _seconds(cost: Any, size: int) -> np.ndarray:
    """Cost of the level and of the one below, shape `(n, 2)`; NaN where unknown."""
    seconds = np.full((size, 2), np.nan)
    if cost is None:
        return seconds
    try:
        cost = np.asarray(cost, float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"cost is a {type(cost).__name__}, but must be a number, or an array of "
            "numbers."
        ) from error
    if cost.shape not in ((), (size,), (2,), (size, 2)) or not (cost >= 0).all():
        raise ValueError(
            f"cost has shape {cost.shape}, but must be numbers >= 0: one for all "
            f"simulations, one per simulation ({size},), or one per simulation and "
            f"level ({size}, 2)."
        )
    if cost.ndim == 2 or (cost.shape == (2,) and size != 2):
        seconds[:] = cost
    else:
        seconds[:, 0] = cost
    return seconds


def _compare(table: LevelTable, rows: np.ndarray, x: np.ndarray) -> None:
    if len(rows) == 0:
        return
    order = np.argsort(rows)
    stored = table.tensor("x", rows[order]).numpy()
    differs = int((stored != x[order]).reshape(len(rows), -1).any(axis=1).sum())
    if differs:
        warnings.warn(
            f"{differs} simulations of level {table.level} were recorded before with "
            "another x; the first one is kept. Check that all randomness of the "
            "simulator is drawn from the noise.",
            stacklevel=4,
        )
