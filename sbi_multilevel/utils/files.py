"""Files: read without unpickling, as of unknown origin, and replaced as a whole.

Any error of a reader becomes a `ValueError` that names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BRIEF = 300  # characters of the reason in a message


@contextlib.contextmanager
def understood(
    name: str, path: str | os.PathLike, what: str, remedy: str
) -> Iterator[None]:
    """Explain errors in reading the content of a file inside the block.

    Readers of damaged files raise `KeyError`, `BadZipFile`, `zlib.error`,
    `UnpicklingError`, `MemoryError` (for an absurd size) and others.

    Args:
        name: The argument that names the file.
        path: The file.
        what: What it should contain.
        remedy: What to do, a sentence.

    Raises:
        ValueError: In place of any error but those of the disk.
    """
    try:
        yield
    except Exception as error:
        # EINVAL is of a wrong offset in the content, not of the disk
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        reason = f"{kind}{error}".strip().rstrip(".")[:_BRIEF]
        raise ValueError(
            f"{name}={os.fspath(path)!r} cannot be read as {what}: {reason}. {remedy}"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block the file replaces that at `path`.

    If writing is interrupted, the file before remains.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    os.replace(unfinished, path)


def expect(holds: bool, otherwise: str) -> None:
    """Raise a `ValueError` unless a condition on what was read holds."""
    if not holds:
        raise ValueError(otherwise)


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file; errors are those of the parser."""
    return json.loads(Path(path).read_bytes())


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` archive, numbers and text only.

    Raises:
        ValueError: If the file is no archive of arrays, or an array holds objects.
            Errors of zip and NumPy are explained by `understood`.
    """
    with np.load(path, allow_pickle=False) as archive:
        expect(isinstance(archive, np.lib.npyio.NpzFile), "it is one array, no archive")
        arrays = {}
        for name in archive.files:
            array = archive[name]
            is_plain = isinstance(array, np.ndarray) and array.dtype.kind in "biufU"
            expect(is_plain, f"{name} is no array of numbers or text")
            arrays[name] = array
    return arrays


def tensor_of(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    """An array of numbers of an archive, as a tensor.

    Raises:
        ValueError: If it is missing, or has no type of torch.
    """
    expect(name in arrays, f"it lacks {name}, and has {sorted(arrays)}")
    array = arrays[name]
    is_known = array.dtype.kind in "biuf" and array.dtype.itemsize <= 8
    expect(is_known, f"{name} has the type {array.dtype}, and must hold numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def read_state(path: str | os.PathLike) -> Any:
    """A file of `torch.save`: tensors and plain values, on the CPU.

    Raises:
        ValueError: If there are other objects in the file, which are not unpickled.
            Errors of torch are explained by `understood`.
    """
    try:
        return torch.load(Path(path), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # the message of torch suggests unpickling
        raise ValueError(
            "it is no file of `torch.save`, or holds more than tensors and plain values"
        ) from error


def check_state_dict(value: Any) -> None:
    """Raise a `ValueError` unless a value maps names to tensors of a network."""
    expect(isinstance(value, Mapping), f"it holds a {type(value).__name__}, no weights")
    for name, tensor in value.items():
        expect(
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_complex()
            and not tensor.isnan().any(),
            f"{name!r:.60} is no tensor of real numbers without NaN",
        )
