"""Layout of a store on disk: creating, growing, reading and locking it.

A store is a zarr group of plain arrays, one subgroup per level:

.. code-block:: text

    run.zarr/          attributes: format, fingerprint, names of the statuses
      level_0/ theta   (n, d_theta)  drawn when the store is created
               seed    (n,)          seed of the noise of each simulation
               status  (n,)          0 pending, 1 ok, 2 failed, 3 timed out, 4 invalid
               x       (n, *x_shape)
               seconds (n, 2)        in the simulator of the level, in the one below
               error   (n,)          reason of a failure
      level_1/ ... and x_coarse

Data is written before its status, each chunk replaces its file in one operation, and
one process writes at a time. So a run that is interrupted at any time can be resumed
from its store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from sbi_multilevel.simulation.noise import draw_theta
from sbi_multilevel.simulation.table import Columns, LevelTable
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
WAIT_SECONDS = 60.0
_COMPARED = 100  # simulations whose theta is compared when a store grows


def is_store(path: Path) -> bool:
    """Whether there is a store; an empty folder is not one, anything else raises."""
    if not path.exists():
        return False
    # an interrupted run may have left a partial file
    if path.is_dir() and all(p.name.endswith(".partial") for p in path.iterdir()):
        return False
    try:
        attributes = read_json(path / METADATA)["attributes"]
        is_ours, version = attributes["format"] == FORMAT, attributes["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_ours, version = False, None
    if not is_ours:
        raise ValueError(
            f"store={str(path)!r} exists and is not a store of simulations. Pass "
            "another path; nothing was changed."
        )
    if type(version) is not int or version > VERSION:
        raise ValueError(
            f"store={str(path)!r} has version {version!r} of the format, and this "
            f"package reads up to {VERSION}. Update sbi_multilevel."
        )
    return True


def make(path: Path, fingerprint: Fingerprint, chunk_sizes: tuple[int, ...]) -> None:
    """Write the root of a store, with all attributes in one operation."""
    import_zarr().create_group(
        str(path),
        zarr_format=3,
        attributes={
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": asdict(fingerprint),
            "chunk_rows": list(chunk_sizes),  # a name of the format
            "statuses": {str(int(status)): status.label for status in Status},
        },
    )


def read_root(path: Path, mode: str) -> Any:
    """The zarr group of a store, mode "r" or "r+", whose metadata is checked first."""
    check_store(path)
    return open_group(path, mode)


def tables(path: Path, mode: str) -> tuple[LevelTable, ...]:
    """The table of each level, mode "r" or "r+"; raise if the store is incomplete."""
    found = []
    for level, size in enumerate(read_root(path, mode).attrs["chunk_rows"]):
        folder = path / f"level_{level}"
        exists = (folder / METADATA).exists()
        columns = ZarrColumns(folder, mode, size) if exists else Columns()
        if "status" not in columns:
            raise ValueError(
                f"The store lacks level {level}: its creation was interrupted. Run it "
                "again, or call `SimulationStore.create`, to complete it."
            )
        found.append(LevelTable(level, columns))
    return tuple(found)


def complete(path: Path, d_theta: int) -> None:
    """Create the missing arrays of a store, without simulations."""
    for level, size in enumerate(read_root(path, "r+").attrs["chunk_rows"]):
        columns = ZarrColumns(path / f"level_{level}", "a", size)
        if "status" not in columns:  # created last
            columns.create("theta", (0, d_theta))
            columns.create("seconds", (0, 2))
            for name in ("seed", "error", "status"):
                columns.create(name, (0,))


def grow(table: LevelTable, num_simulations: int, prior: Any, seed: int) -> None:
    """Plan more simulations, if the prior is that of the existing ones."""
    planned = len(table)
    # theta of the last simulations is drawn again and must not have changed
    start = max(0, planned - _COMPARED)
    if 0 < planned < num_simulations and not torch.allclose(
        table.tensor("theta", np.arange(start, planned)),
        draw_theta(prior, seed, table.level, planned, start=start),
        rtol=1e-4,
    ):
        raise ValueError(
            f"The prior draws other parameters for level {table.level} than those in "
            "the store. Nothing was changed; use the prior and the versions of torch "
            "and sbi with which the store was created."
        )
    table.grow(num_simulations, prior, seed)


@contextlib.contextmanager
def writing(path: Path, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of a store, a file next to it, which is released with its process.

    `RuntimeError` is raised if another process still writes after `wait` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock").acquire(timeout=wait):
            yield
    except Timeout as error:
        raise RuntimeError(
            f"store={str(path)!r} is being written by another process. Wait until it "
            "has ended, or use another store."
        ) from error
    except OSError as error:
        # errors of a cluster, and those with a message of their own, are not changed
        if isinstance(error, (TimeoutError, ConnectionError)) or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"store={str(path)!r} cannot be read or written: "
            f"{error.strerror or error}. All simulations that were reported as done "
            "are kept; fix the cause and run again",
        ) from error
