"""Columns of a level as plain zarr arrays (format 3), readable without this package.

One array a column, chunks of x as long as a batch. A chunk is written to a file of its
own that replaces the old one at once, and carries a checksum.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sbi_multilevel.simulation.table import KINDS
from sbi_multilevel.utils.files import understood

METADATA = "zarr.json"
REMEDY = "Nothing was decoded. Use a whole store that `SimulationStore` wrote."
SMALL_CHUNK = 10_000  # rows of columns of one or two numbers a row
_NUMBER_BYTES, _MAX_BYTES = 8, 2**40  # the most of a number, and of a chunk


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
    """
    rows = chunk_rows if name in ("x", "x_coarse") else SMALL_CHUNK
    return (rows, *shape[1:])


def check_chunk(name: str, shape: tuple[int, ...]) -> None:
    """Raise if a chunk is larger than any that can have been written."""
    if _NUMBER_BYTES * math.prod(shape) > _MAX_BYTES:
        raise ValueError(
            f"{name} has chunks of shape {shape}, but a chunk must fit in memory. Make "
            f"the store with a smaller chunk_rows than {shape[0]}"
        )


def open_group(path: Path, mode: str) -> Any:
    """A zarr group, without the copies of metadata that it may hold."""
    zarr = import_zarr()
    with understood("store", path, "a group of a store", REMEDY):
        return zarr.open_group(
            str(path), mode=mode, zarr_format=3, use_consolidated=False
        )


class ZarrColumns:
    """The arrays of a zarr group, all of them that are there now.

    Its metadata must have been checked before, by `checking.check_store`.

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
        chunks = chunk_shape(name, shape, self._chunk_rows)
        check_chunk(name, chunks)
        self._arrays[name] = self._group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill,
            overwrite=True,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )

    def resize(self, name: str, num_rows: int) -> None:
        """Make room for more rows."""
        array = self[name]
        array.resize((num_rows, *array.shape[1:]))
