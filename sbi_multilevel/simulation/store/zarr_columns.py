"""Columns of a level as plain zarr arrays (format 3), readable without this package.

One array a column, chunks of x as long as a batch. A chunk is written to a file of its
own that replaces the old one at once, and carries a checksum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sbi_multilevel.simulation.table import KINDS

if TYPE_CHECKING:
    import zarr

_SMALL_CHUNK = 10_000  # rows of columns of one or two numbers a row


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


class ZarrColumns:
    """The arrays of a zarr group.

    Args:
        group: The group.
        chunk_rows: Rows a chunk of x.
    """

    def __init__(self, group: zarr.Group, chunk_rows: int):
        self._group = group
        self._chunk_rows = chunk_rows
        self._arrays: dict[str, Any] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays or name in self._group

    def __getitem__(self, name: str) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self._group[name]
        return self._arrays[name]

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Make an array in which nothing is written yet, in place of an old one."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        dtype, fill = KINDS[name]
        rows = self._chunk_rows if name in ("x", "x_coarse") else _SMALL_CHUNK
        self._arrays[name] = self._group.create_array(
            name,
            shape=shape,
            chunks=(rows, *shape[1:]),
            dtype=dtype,
            fill_value=fill,
            overwrite=True,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )

    def resize(self, name: str, num_rows: int) -> None:
        """Make room for more rows."""
        array = self[name]
        array.resize((num_rows, *array.shape[1:]))
