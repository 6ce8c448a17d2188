"""Kinds of level map by name; `sbi_multilevel.level_maps.fitting` fits them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MapKind = Literal[
    "none",
    "shift",
    "full",
    "scaled",
    "paired",
    "paired_quadratic",
    "paired_process",
]
MAP_KINDS: tuple[str, ...] = get_args(MapKind)


@dataclass(frozen=True)
class MapChoice:
    """A kind of map, and where it acts.

    Args:
        kind: One of `MAP_KINDS`.
        transforms_tails: Whether it acts on x with tamed tails rather than on x itself.
    """

    kind: str
    transforms_tails: bool = False

    def __str__(self) -> str:
        return f"{self.kind} (tails tamed)" if self.transforms_tails else self.kind
