"""Columns of a level as plain zarr arrays (format 3), readable without this package.

Each column is one array, with chunks of x of the size of a batch. A chunk is a separate
file with a checksum, which is replaced in one operation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sbi_multilevel.simulation.table import KINDS, Columns
from sbi_multilevel.utils.files import understood

METADATA = "zarr.json"
REMEDY = "Nothing was decoded. Use a complete store that `SimulationStore` wrote."
SMALL_CHUNK = 10_000  # chunk size of all columns except x and x_coarse
_NUMBER_BYTES, _MAX_BYTES = 8, 2**40  # upper limits of a number, and of a chunk


def import_zarr() -> Any:
    """The package zarr; an `ImportError` with the remedy if it is missing."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "A store needs the package zarr (version 3.1.6 or later, on Python 3.11 or "
            "later). Install it by `pip install 'sbi_multilevel[store]'`."
        ) from error
    return zarr


def chunk_shape(name: str, shape: tuple[int, ...], chunk_size: int) -> tuple[int, ...]:
    """Shape of the chunks of a column; raises if one is too large to be written.

    Args:
        name: The column, or its path in the store.
        shape: Shape of the column.
        chunk_size: Simulations per chunk of x and x_coarse.
    """
    is_output = name.rpartition("/")[2] in ("x", "x_coarse")
    chunks = (chunk_size if is_output else SMALL_CHUNK, *shape[1:])
    if _NUMBER_BYTES * math.prod(chunks) > _MAX_BYTES:
        raise ValueError(
            f"{name} has chunks of shape {chunks}, but a chunk must fit in memory. "
            f"Create the store with a smaller chunk_size than {chunks[0]}"
        )
    return chunks


def open_group(path: Path, mode: str) -> Any:
    """A zarr group, without its consolidated metadata."""
    zarr = import_zarr()
    with understood("store", path, "a group of a store", REMEDY):
        return zarr.open_group(
            str(path), mode=mode, zarr_format=3, use_consolidated=False
        )


class ZarrColumns(Columns):
    """The existing arrays of a zarr group.

    Its metadata must have been checked by `checking.check_store`.

    Args:
        folder: The group.
        mode: "r", "r+", or "a", which creates the group if it is missing.
        chunk_size: Simulations per chunk of x.
    """

    def __init__(self, folder: Path, mode: str, chunk_size: int):
        super().__init__()
        self._chunk_size = chunk_size
        self._group = open_group(folder, mode)
        with understood("store", folder, "arrays of a store", REMEDY):
            for name in KINDS:
                if (folder / name / METADATA).exists():
                    self[name] = self._group[name]

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Create an empty array, in place of an existing one."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        dtype, fill = KINDS[name]
        self[name] = self._group.create_array(
            name,
            shape=shape,
            chunks=chunk_shape(name, shape, self._chunk_size),
            dtype=dtype,
            fill_value=fill,
            overwrite=True,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )

    def resize(self, name: str, length: int) -> None:
        """Extend an array to `length` entries."""
        array = self[name]
        array.resize((length, *array.shape[1:]))
