"""How a store lies on disk: making it, growing it, and checking what is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbi_multilevel.simulation.noise import draw_theta, row_seeds
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Status
from sbi_multilevel.storage.checking import check_store
from sbi_multilevel.storage.fingerprint import Fingerprint
from sbi_multilevel.storage.zarr_columns import (
    METADATA,
    ZarrColumns,
    import_zarr,
    open_group,
)
from sbi_multilevel.utils.files import read_json

FORMAT = "sbi_multilevel simulations"
VERSION = 1
_GROW_BY = 10_000  # rows that are planned at once
_COMPARED = 100  # rows whose theta must be drawn again when a store grows


def is_store(path: Path) -> bool:
    """Whether there is a store; an empty or missing folder is none.

    Raises:
        ValueError: If there is something else, which is left as it is.
    """
    if not path.exists():
        return False
    # a run that was killed may have left a file that it was writing
    if path.is_dir() and all(p.name.endswith(".partial") for p in path.iterdir()):
        return False
    try:
        attributes = read_json(path / METADATA)["attributes"]
        is_ours, version = attributes["format"] == FORMAT, attributes["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_ours, version = False, None
    if not is_ours:
        raise ValueError(
            f"store={str(path)!r} exists and is no store of simulations. Name another "
            "path; nothing was touched."
        )
    if type(version) is not int or version > VERSION:
        raise ValueError(
            f"store={str(path)!r} has version {version!r} of the format, and this "
            f"package reads up to {VERSION}. Update sbi_multilevel."
        )
    return True


def make(path: Path, fingerprint: Fingerprint, chunk_rows: tuple[int, ...]) -> None:
    """Write the root of a store; the attributes come in one piece."""
    import_zarr().create_group(
        str(path),
        zarr_format=3,
        attributes={
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": asdict(fingerprint),
            "chunk_rows": list(chunk_rows),
            "statuses": {str(int(status)): status.label for status in Status},
        },
    )


def read_root(path: Path, mode: str) -> Any:
    """The zarr group of an existing store, mode "r" or "r+".

    Raises:
        ValueError: If the metadata of the store is not what this package writes.
    """
    check_store(path)
    return open_group(path, mode)


def tables(path: Path, mode: str) -> tuple[LevelTable, ...]:
    """The table of each level, mode "r" or "r+".

    Raises:
        ValueError: If the store was not made to the end, or its metadata is not what
            this package writes.
    """
    found = []
    for level, rows in enumerate(read_root(path, mode).attrs["chunk_rows"]):
        folder = path / f"level_{level}"
        is_there = (folder / METADATA).exists()
        columns = ZarrColumns(folder, mode, rows) if is_there else ()
        if "status" not in columns:
            raise ValueError(
                f"The store lacks its level {level}: the run that made it was killed. "
                "Run it again, or call `SimulationStore.create`, to complete it."
            )
        found.append(LevelTable(level, columns))
    return tuple(found)


def complete(path: Path, d_theta: int) -> None:
    """Make the arrays that a store lacks yet, without rows."""
    for level, rows in enumerate(read_root(path, "r+").attrs["chunk_rows"]):
        columns = ZarrColumns(path / f"level_{level}", "a", rows)
        shapes = {
            "theta": (0, d_theta),
            "seed": (0,),
            "seconds": (0, 2),
            "error": (0,),
            "status": (0,),  # the last one
        }
        if "status" not in columns:
            for name, shape in shapes.items():
                columns.create(name, shape)


def grow(table: LevelTable, num_rows: int, prior: Any, seed: int) -> None:
    """Draw theta and seeds of more rows; they are pending once the status has room.

    Raises:
        ValueError: If the prior no longer draws the theta of the rows that are there.
    """
    columns, planned = table.columns, len(table)
    if num_rows <= planned:
        return
    assert isinstance(columns, ZarrColumns)
    # the last rows are drawn with the next ones, and must be what they were
    start = max(0, planned - _COMPARED)
    if planned > 0 and not torch.allclose(
        table.tensor("theta", np.arange(start, planned)),
        draw_theta(prior, seed, table.level, planned, start=start),
        rtol=1e-4,
    ):
        raise ValueError(
            f"The prior draws other parameters for rows of level {table.level} than "
            "those that the store holds. Nothing was touched; use the prior and the "
            "versions of torch and sbi that the store was made with."
        )
    for name in ("theta", "seed", "seconds", "error", "x", "x_coarse"):
        if name in columns:
            columns.resize(name, num_rows)
    for first in range(planned, num_rows, _GROW_BY):
        stop = min(first + _GROW_BY, num_rows)
        theta = draw_theta(prior, seed, table.level, stop, start=first)
        columns["theta"][first:stop] = theta.numpy()
        columns["seed"][first:stop] = row_seeds(seed, table.level, first, stop).numpy()
    columns.resize("status", num_rows)
