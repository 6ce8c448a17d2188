"""States on disk: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write a state; a run that dies meanwhile leaves the one before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a state, without unpickling anything but tensors and plain values."""
    return torch.load(Path(path), weights_only=True, map_location="cpu")


def check_settings(saved: dict[str, Any], ours: dict[str, Any], path: Any) -> None:
    """Raise if a state was written under other settings, and say which."""
    differing = [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in ours.items()
        if not _same(saved.get(name), value)
    ]
    if differing:
        raise ValueError(
            f"path={str(path)!r} holds a run with other settings: "
            f"{'; '.join(differing)}. Use the same settings to go on with it, or "
            "another path to start anew."
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b
