r"""The protocol and the register of level maps.

A level map turns low-fidelity simulations into pseudo-high-fidelity simulations,

.. math::  \tilde x = T(\theta, x_L),

with T fitted to simulations of both levels. The built-in maps are in
`sbi_multilevel.level_maps.unpaired` and `sbi_multilevel.level_maps.paired`; they are
imported when they are first used, since fitting needs scikit-learn and configurations
do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from sbi_multilevel.level_maps.arrays import LevelArrays

LevelMap = Callable[[np.ndarray, np.ndarray], np.ndarray]


class LevelMapKind(Protocol):
    """How maps of one kind are fitted, and to which simulations.

    Attributes:
        name: Name of the kind in `HybridConfig(level_maps=...)`.
        needs_pairs: Whether it is fitted to pairs.
        max_features: Largest number of features of x.
        min_simulations: Smallest number of high-fidelity simulations, of which some are
            held out.
        is_local: Whether the fit at a theta depends on simulations nearby, so that
            others at theta outside of the support of the prior can be added.

    Example:
    --------

    A map that adds the mean difference between the levels:

    ::

        >>> from sbi_multilevel import HybridConfig
        >>> class Constant(LevelMapKind):
        ...     name = "constant"
        ...     def fit(self, low, high, seed):
        ...         change = high.x.mean(axis=0) - low.x.mean(axis=0)
        ...         return lambda theta, x: x + change
        >>> _ = register_level_map(Constant())
        >>> HybridConfig(level_maps=("none", "constant")).level_maps
        ('none', 'constant')
        >>> del LEVEL_MAPS["constant"]
    """

    name: str
    needs_pairs: bool = False
    max_features: float = math.inf
    min_simulations: int = 4
    is_local: bool = False

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit a map.

        Args:
            low: Low-fidelity simulations; `low.cached` keeps what depends on them
            alone.
            high: High-fidelity simulations, in random order.
            seed: Seed of the noise that the map adds.

        Returns:
            Function of theta, shape `(n, d_theta)`, and low-fidelity x, shape `(n, k)`,
            to pseudo-high-fidelity x, shape `(n, k)`.
        """
        ...


_MODULES = {
    "none": "unpaired",
    "gain": "unpaired",
    "shift": "unpaired",
    "full": "unpaired",
    "scaled": "unpaired",
    "homoscedastic": "unpaired",
    "normal": "unpaired",
    "paired": "paired",
    "paired_quadratic": "paired",
    "paired_process": "paired",
}
BUILT_IN_MAPS = tuple(_MODULES)
# `None` until a built-in map is used
LEVEL_MAPS: dict[str, LevelMapKind | None] = dict.fromkeys(BUILT_IN_MAPS)

Kind = TypeVar("Kind", bound=LevelMapKind)


def register_level_map(kind: Kind) -> Kind:
    """Add a kind of level map to `LEVEL_MAPS`, under its name.

    Args:
        kind: The kind; it replaces one of the same name.

    Returns:
        The kind.
    """
    LEVEL_MAPS[kind.name] = kind
    return kind


def level_map_kind(name: str) -> LevelMapKind:
    """The registered kind of a name.

    Raises:
        ValueError: If there is no such kind.
    """
    if name not in LEVEL_MAPS:
        raise ValueError(
            f"level_maps must name some of {tuple(LEVEL_MAPS)}, but names {name!r}. "
            "Register it by `register_level_map`, or leave it out."
        )
    kind = LEVEL_MAPS[name]
    if kind is None:
        module = import_module(f"sbi_multilevel.level_maps.{_MODULES[name]}")
        kind = next(each for each in module.KINDS if each.name == name)
        LEVEL_MAPS[name] = kind
    return kind
