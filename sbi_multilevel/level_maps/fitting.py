r"""Kinds of map from cheap rows to dear ones, and which of them rows allow.

=================== =========================================================== =====
kind                what it does                                                pairs
=================== =========================================================== =====
`none`              :math:`\tilde x = x_L`                                      no
`shift`             sets the mean given theta right                             no
`full`              mean and covariance of residuals                            no
`scaled`            the same, with scales that depend on theta                  no
`paired`            adds the difference, linear in :math:`x_L` and theta        yes
`paired_quadratic`  the same, quadratic                                         yes
`paired_process`    the same, by a Gaussian process a feature                   yes
=================== =========================================================== =====

The formulas are in `sbi_multilevel.level_maps.conditional` (the first half),
`sbi_multilevel.level_maps.paired` and `sbi_multilevel.level_maps.gaussian_process`. Each kind but
`none` can also act on x with tamed tails, where tails are heavy
(`sbi_multilevel.level_maps.tail_transform`). Kinds that
the rows do not allow are left out: paired ones without pairs; all but `none` and
`shift` with fewer than 4 rows; processes beyond 12 features, products beyond 50,
covariances beyond 200, regressions on all features beyond 2 000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.conditional import LowMean, fit_conditional
from sbi_multilevel.level_maps.gaussian_process import fit_gaussian_process
from sbi_multilevel.level_maps.kinds import MAP_KINDS, MapChoice
from sbi_multilevel.level_maps.paired import fit_paired, paired_features
from sbi_multilevel.level_maps.tail_transform import TailTransform

LevelMap = Callable[[np.ndarray, np.ndarray], np.ndarray]

# features beyond which regressions on all, covariances, products, and a process for
# each are out of reach
_MAX_FEATURES, _MAX_FOR_COVARIANCES = 2_000, 200
_MAX_FOR_PRODUCTS, _MAX_FOR_PROCESSES = 50, 12
_MIN_ROWS = 4  # of which some are held out


@dataclass(frozen=True, eq=False)
class MapFitter:
    """Fits maps from one set of cheap rows to changing sets of dear ones.

    Args:
        low: The cheap rows.
        tails: What tames the tails of x; `None` where all are light.
        seed: Seed of the noise in paired maps.
    """

    low: LevelArrays
    tails: TailTransform | None = None
    seed: int = 0

    def fit(self, choice: MapChoice, high: LevelArrays) -> LevelMap:
        """The map of a kind, from x to x whatever the space that it acts in."""
        high = high.shuffled(self.seed)  # not all of them may be used
        if not choice.transforms_tails or self.tails is None:
            return self._fit(choice.kind, high)
        forward_tails = self.forward_tails
        move = self._tamed._fit(
            choice.kind, with_transformed_tails(high, forward_tails)
        )
        inverse_tails = _on_arrays(self.tails.inverse)
        return lambda theta, x: inverse_tails(move(theta, forward_tails(x)))

    def apart_from(self, theta: np.ndarray) -> MapFitter:
        """The same without cheap rows at these parameters, see `LevelArrays.apart_from`."""
        low = self.low.apart_from(theta)
        return self if low is self.low else MapFitter(low, self.tails, self.seed)

    @cached_property
    def forward_tails(self) -> Callable[[np.ndarray], np.ndarray]:
        """x with tamed tails."""
        return (lambda x: x) if self.tails is None else _on_arrays(self.tails)

    @cached_property
    def _tamed(self) -> MapFitter:
        return MapFitter(
            with_transformed_tails(self.low, self.forward_tails), seed=self.seed
        )

    def _fit(self, kind: str, high: LevelArrays) -> LevelMap:
        """The map of a kind, in the space of the rows.

        Raises:
            ValueError: If there is no such kind, or it needs pairs and there are none.
        """
        if kind not in MAP_KINDS:
            raise ValueError(
                f"alignment must be one of {MAP_KINDS}, but there is {kind!r}."
            )
        if kind == "none":
            return lambda theta, x: x
        if kind.startswith("paired"):
            if high.x_coarse is None:
                raise ValueError(
                    f"alignment={kind!r} needs pairs, but the rows have no x_coarse. "
                    "Leave it out, or append pairs."
                )
            if kind == "paired_process":
                return fit_gaussian_process(self.low, high, self.seed)
            features = self._quadratic if kind == "paired_quadratic" else self._linear
            return fit_paired(features, high, self.seed)
        return fit_conditional(kind, self._mean, high)  # pyright: ignore[reportArgumentType]

    def candidates(
        self, kinds: Sequence[str], high: LevelArrays
    ) -> tuple[MapChoice, ...]:
        """Maps of those `kinds` that these rows allow, or `"none"`."""
        num_features = high.x.shape[1]
        denied = set()
        if high.x_coarse is None:
            denied |= {kind for kind in kinds if kind.startswith("paired")}
        if len(high) < _MIN_ROWS:
            denied |= set(kinds) - {"none", "shift"}
        if num_features > _MAX_FOR_PROCESSES:
            denied.add("paired_process")
        if num_features > _MAX_FOR_PRODUCTS:
            denied.add("paired_quadratic")
        if num_features > _MAX_FOR_COVARIANCES:
            denied |= {"full", "scaled"}
        if num_features > _MAX_FEATURES:
            denied.add("paired")
        allowed = [kind for kind in kinds if kind not in denied] or ["none"]
        choices = [MapChoice(kind) for kind in allowed]
        if self.tails is not None:
            choices += [MapChoice(kind, True) for kind in allowed if kind != "none"]
        return tuple(choices)

    @cached_property
    def _mean(self) -> LowMean:
        return LowMean.fit(self.low)

    @cached_property
    def _linear(self):
        return paired_features(self.low, 1)

    @cached_property
    def _quadratic(self):
        return paired_features(self.low, 2)


def with_transformed_tails(
    rows: LevelArrays, forward_tails: Callable[[np.ndarray], np.ndarray]
) -> LevelArrays:
    """LevelArrays with x and x_coarse tamed."""
    coarse = None if rows.x_coarse is None else forward_tails(rows.x_coarse)
    return LevelArrays(rows.theta, forward_tails(rows.x), coarse)


def _on_arrays(function: Callable[[Tensor], Tensor]) -> Callable:
    return lambda x: function(torch.from_numpy(x)).numpy()
