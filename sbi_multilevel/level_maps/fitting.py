r"""Fits level maps by name, on x or on x with transformed tails.

=================== =========================================================== =====
kind                what it does                                                pairs
=================== =========================================================== =====
`none`              :math:`\tilde x = x_L`                                      no
`gain`              multiplies each feature, and adds an offset                 no
`shift`             corrects the mean given theta                               no
`full`              also the covariance of the residuals                        no
`scaled`            the same, with scales that depend on theta                  no
`homoscedastic`     the same, with noise that does not depend on theta          no
`normal`            the same, with normal noise                                 no
`paired`            adds the difference, linear in :math:`x_L` and theta        yes
`paired_quadratic`  the same, quadratic                                         yes
`paired_process`    the same, by a Gaussian process for each feature            yes
=================== =========================================================== =====

The formulas are in `sbi_multilevel.level_maps.unpaired` and, of those that need pairs,
`sbi_multilevel.level_maps.paired`. Each kind but `none` can also act on x with
transformed tails, where tails are heavy (`sbi_multilevel.level_maps.tail_transform`).
Kinds that the simulations do not allow are left out: paired maps without pairs, and
kinds that need more simulations or fewer features
(`sbi_multilevel.level_maps.base.LevelMapKind`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind, level_map_kind
from sbi_multilevel.level_maps.tail_transform import TailTransform


@dataclass(frozen=True)
class MapChoice:
    """A kind of map, and where it acts.

    Args:
        kind: Name of a kind in `sbi_multilevel.level_maps.base.LEVEL_MAPS`.
        transforms_tails: Whether it acts on x with transformed tails.
    """

    kind: str
    transforms_tails: bool = False

    def __str__(self) -> str:
        return (
            f"{self.kind} (transformed tails)" if self.transforms_tails else self.kind
        )


@dataclass(frozen=True, eq=False)
class MapFitter:
    """Fits maps from one set of low-fidelity simulations to sets of high-fidelity ones.

    Args:
        low: Low-fidelity simulations.
        tails: Transform of the tails of x; `None` where all are light.
        seed: Seed of the noise in paired maps.
        elsewhere: Pairs at theta outside of the support of the prior, to which local
            kinds of map are fitted as well.
    """

    low: LevelArrays
    tails: TailTransform | None = None
    seed: int = 0
    elsewhere: LevelArrays | None = None

    def fit(self, choice: MapChoice, high: LevelArrays) -> LevelMap:
        """Fit a map, from x to x whatever the space that it acts in.

        Args:
            choice: The kind of map.
            high: High-fidelity simulations.

        Raises:
            ValueError: If there is no such kind, or it needs pairs and there are none.
        """
        kind = level_map_kind(choice.kind)
        if kind.needs_pairs and high.x_coarse is None:
            raise ValueError(
                f"level_maps names {choice.kind!r}, which needs pairs, but the "
                "simulations have no x_coarse. Leave it out, or append pairs."
            )
        high = high.shuffled(self.seed)  # not all of them may be used
        if kind.is_local and self.elsewhere is not None:
            high = high.followed_by(self.elsewhere)
        if not choice.transforms_tails or self.tails is None:
            return kind.fit(self.low, high, self.seed)
        forward = self.forward_tails
        move = kind.fit(self._transformed, high.map_x(forward), self.seed)
        inverse = _on_arrays(self.tails.inv)
        known = self._transformed.x

        def level_map(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
            return inverse(move(theta, known if x is self.low.x else forward(x)))

        return level_map

    def apart_from(self, theta: np.ndarray) -> MapFitter:
        """The same without low-fidelity simulations at these parameters.

        Args:
            theta: Parameters, shape `(m, d_theta)`, see `LevelArrays.apart_from`.
        """
        low = self.low.apart_from(theta)
        return self if low is self.low else replace(self, low=low)

    def candidates(
        self, kinds: Sequence[str], high: LevelArrays
    ) -> tuple[MapChoice, ...]:
        """Maps of those `kinds` that these simulations allow, or `"none"`.

        Args:
            kinds: Names of kinds.
            high: High-fidelity simulations.
        """
        allowed = [name for name in kinds if _allows(high, level_map_kind(name))]
        choices = [MapChoice(name) for name in allowed or ["none"]]
        if self.tails is not None:
            choices += [MapChoice(c.kind, True) for c in choices if c.kind != "none"]
        return tuple(choices)

    @cached_property
    def forward_tails(self) -> Callable[[np.ndarray], np.ndarray]:
        """From x to x with transformed tails."""
        return (lambda x: x) if self.tails is None else _on_arrays(self.tails)

    @cached_property
    def _transformed(self) -> LevelArrays:
        return self.low.map_x(self.forward_tails)


def _allows(high: LevelArrays, kind: LevelMapKind) -> bool:
    return (
        (high.x_coarse is not None or not kind.needs_pairs)
        and len(high) >= kind.min_simulations
        and high.x.shape[1] <= kind.max_features
    )


def _on_arrays(function: Callable[[Tensor], Tensor]) -> Callable:
    return lambda x: function(torch.from_numpy(x)).numpy()
