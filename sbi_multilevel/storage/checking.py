"""Checks the metadata of a store before zarr reads any of it.

A store may come from an unknown source. Its metadata names the codecs that decode the
chunks, and zarr looks these names up among all installed packages; one of the codecs
unpickles objects. So the JSON is read here first, and zarr receives only arrays whose
format, data type, shape, chunks, fill value and codecs are those of this package.

Consolidated metadata (copies in the metadata of a group) are checked too, but never
used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbi_multilevel.simulation.table import KINDS
from sbi_multilevel.storage.fingerprint import Fingerprint
from sbi_multilevel.storage.zarr_columns import (
    METADATA,
    REMEDY,
    SMALL_CHUNK,
    chunk_shape,
)
from sbi_multilevel.utils.files import expect, read_json, understood

_MAX_COUNT = 2**53  # of simulations or features; zarr counts chunks in floats
_CODECS = ("bytes", "crc32c", "vlen-utf8", "zstd")
_FORMAT_2 = (".zarray", ".zattrs", ".zgroup", ".zmetadata")


# by name of an array: shape of one entry (`None` for any), and simulations per chunk of
# x; `None` for a group
_Layout = Mapping[str, tuple[tuple[int, ...] | None, int] | None]


def check_store(path: Path) -> None:
    """Raise unless all metadata of a store is as this package writes it.

    A store whose creation was interrupted may lack parts. The path is resolved.
    """
    with understood("store", path, "a store of simulations", REMEDY):
        layout = _layout(_node(path, "")["attributes"])
        nodes = {name: _node(path, name) for name in layout}
        for name, node in nodes.items():
            if node is not None:
                _check_node(name, node, layout)
            _check_entries(path, name, layout)
        for name, column in layout.items():
            if column is None and nodes.get(f"{name}/status") is not None:
                _check_lengths(path, name, nodes)


def _layout(attributes: Any) -> _Layout:
    """Names of all groups and arrays that a store can have, in the order of reading.

    Parents are first. The status is resized last, so it is read before the other
    columns: another process may be adding simulations, or may have been killed.
    """
    fingerprint = Fingerprint.from_json(attributes["fingerprint"])
    chunk_sizes = attributes["chunk_rows"]
    expect(
        isinstance(chunk_sizes, list)
        and len(chunk_sizes) == fingerprint.num_levels
        and all(_is_count(size) and size > 0 for size in chunk_sizes),
        f"chunk_rows is {chunk_sizes!r:.60}, not a number of simulations for each of "
        f"{fingerprint.num_levels} levels",
    )
    rows = {"theta": (len(fingerprint.prior[0]),), "seconds": (2,)}
    rows.update(x=None, x_coarse=None)
    layout: dict[str, Any] = {"": None}
    for level, size in enumerate(chunk_sizes):
        layout[f"level_{level}"] = None
        for name in reversed(KINDS):
            layout[f"level_{level}/{name}"] = rows.get(name, ()), size
    return layout


def _node(path: Path, name: str) -> Any:
    """The metadata of a group or an array; `None` if it does not exist."""
    file = path / name / METADATA
    for part in (file, path / name / "c"):
        is_inside = part.resolve().is_relative_to(path)
        expect(is_inside, f"{part.relative_to(path)} is a link out of the store")
    try:
        return read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        where = file.relative_to(path)
        raise ValueError(f"{where} is not valid JSON ({error})") from error


def _check_node(name: str, node: Any, layout: _Layout) -> None:
    """Raise unless metadata, and the copies in it, are those of the layout."""
    shown = name or METADATA
    expect(isinstance(node, dict), f"{shown} has metadata {node!r:.60}")
    _check_codecs(name, node)
    expect(name in layout, f"{name} is not part of a store")
    column = layout[name]
    expected = {"zarr_format": 3, "node_type": "group"}
    if column is not None:
        expected.update(_array_metadata(name, node, *column), node_type="array")
    for key, value in expected.items():
        found = node.get(key)
        expect(found == value, f"{shown} has {key} {found!r:.60}, not {value!r}")
    transformers = node.get("storage_transformers")
    expect(not transformers, f"{name} has storage_transformers {transformers!r:.60}")
    copies = node.get("consolidated_metadata")
    if copies is not None:
        for child, copy in copies["metadata"].items():
            _check_node(f"{name}/{child}".strip("/"), copy, layout)


def _check_codecs(name: str, node: dict[str, Any]) -> None:
    """Raise unless all codecs, of either format of zarr, are those of the layout."""
    codecs = [*(node.get("codecs") or ()), *(node.get("filters") or ())]
    if node.get("compressor") is not None:
        codecs.append(node["compressor"])
    for each in codecs:
        codec = each.get("name", each.get("id")) if isinstance(each, dict) else each
        expect(
            codec in _CODECS,
            f"{name} has the codec {codec!r:.60}, which is not one of {_CODECS}",
        )


def _array_metadata(
    name: str, node: dict[str, Any], wanted: tuple[int, ...] | None, chunk_size: int
) -> dict[str, Any]:
    """Expected metadata of an array, apart from its codecs."""
    shape: Any = node.get("shape")
    expect(
        isinstance(shape, list) and len(shape) > 0 and all(map(_is_count, shape)),
        f"{name} has shape {shape!r:.60}",
    )
    row = tuple(shape[1:])
    expect(
        row == wanted if wanted is not None else len(row) > 0 and min(row) > 0,
        f"{name} has entries of shape {row!r:.60}, not {wanted or '(x_shape)'}",
    )
    kind, fill = KINDS[name.rpartition("/")[2]]
    chunks = chunk_shape(name, tuple(shape), chunk_size)
    return {
        "data_type": "string" if kind == "str" else kind,
        "fill_value": "NaN" if fill != fill else fill,  # JSON has no NaN
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunks)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }


def _check_entries(path: Path, name: str, layout: _Layout) -> None:
    """Raise if there are unexpected groups, arrays or metadata."""
    folder = path / name
    for entry in folder.iterdir() if folder.is_dir() else ():
        found = entry.relative_to(path).as_posix()
        expect(entry.name not in _FORMAT_2, f"{found} is metadata of zarr format 2")
        has_metadata = any((entry / m).exists() for m in (METADATA, *_FORMAT_2))
        is_known = found in layout or not has_metadata
        expect(is_known, f"{found} is not part of a store")


def _check_lengths(path: Path, level: str, nodes: Mapping[str, Any]) -> None:
    """Raise unless all columns of a level are at least as long as the status."""
    length = nodes[f"{level}/status"]["shape"][0]
    for name in KINDS:
        node = nodes[f"{level}/{name}"]
        is_optional = name in ("x", "x_coarse")
        expect(node is not None or is_optional, f"{level}/{name} is missing")
        found = length if node is None else node["shape"][0]
        expect(
            found >= length,
            f"{level}/{name} has {found} entries, but {level}/status {length}",
        )
    for name in ("theta", "seed"):
        chunks = path / level / name / "c"
        most = SMALL_CHUNK * sum(each.is_file() for each in chunks.rglob("*"))
        expect(
            length <= most,
            f"{level} declares {length} simulations, but the chunks of {level}/{name} "
            f"hold at most {most}",
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT
