"""Columns of a level as plain zarr arrays (format 3), readable without this package.

One array a column, chunks of x as long as a batch. A chunk is written to a file of its
own that replaces the old one at once, and carries a checksum.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sbi_multilevel.files import understood
from sbi_multilevel.simulation.table import KINDS

METADATA = "zarr.json"
REMEDY = "Nothing was decoded. Use a whole store that `SimulationStore` wrote."
_SMALL_CHUNK = 10_000  # rows of columns of one or two numbers a row
_MOST_BYTES = 2**40  # of a chunk, which must fit in memory to be written


def import_zarr() -> Any:
    """The package zarr.

    Raises:
        ImportError: If it is missing; says how to install it.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "A store needs the package zarr (version 3.1.6 or later, on Python 3.11 or "
            "later). Install it by `pip install 'sbi_multilevel[store]'`."
        ) from error
    return zarr


def chunk_shape(name: str, shape: tuple[int, ...], chunk_rows: int) -> tuple[int, ...]:
    """Shape of the chunks of a column.

    Args:
        name: Name of the column.
        shape: Shape of the array.
        chunk_rows: Rows a chunk of x.

    Raises:
        ValueError: If a chunk is larger than any that can have been written.
    """
    rows = chunk_rows if name in ("x", "x_coarse") else _SMALL_CHUNK
    chunks = (rows, *shape[1:])
    num_bytes = math.prod(chunks) * np.dtype(KINDS[name][0]).itemsize
    if num_bytes > _MOST_BYTES:
        raise ValueError(
            f"{name} has chunks of shape {chunks}, {num_bytes} bytes each, but a chunk "
            f"must fit in memory. Make the store with a smaller chunk_rows than {rows}."
        )
    return chunks


def open_group(path: Path, mode: str) -> Any:
    """A zarr group, without the copies of metadata that it may hold."""
    zarr = import_zarr()
    with understood("store", path, "a group of a store", REMEDY):
        return zarr.open_group(
            str(path), mode=mode, zarr_format=3, use_consolidated=False
        )


class ZarrColumns:
    """The arrays of a zarr group, all of them that are there now.

    The metadata must have been checked before, see `sbi_multilevel.simulation.store.
    checking`.

    Args:
        folder: The group.
        mode: "r", "r+", or "a", which makes the group if it is missing.
        chunk_rows: Rows a chunk of x.

    Raises:
        ValueError: If zarr cannot read the metadata.
    """

    def __init__(self, folder: Path, mode: str, chunk_rows: int):
        self._chunk_rows = chunk_rows
        self._group = open_group(folder, mode)
        with understood("store", folder, "arrays of a store", REMEDY):
            self._arrays: dict[str, Any] = {
                name: self._group[name]
                for name in KINDS
                if (folder / name / METADATA).exists()
            }

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Make an array in which nothing is written yet, in place of an old one."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        dtype, fill = KINDS[name]
        self._arrays[name] = self._group.create_array(
            name,
            shape=shape,
            chunks=chunk_shape(name, shape, self._chunk_rows),
            dtype=dtype,
            fill_value=fill,
            overwrite=True,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )

    def resize(self, name: str, num_rows: int) -> None:
        """Make room for more rows."""
        array = self[name]
        array.resize((num_rows, *array.shape[1:]))
