r"""Discrete features of x, such as choices, which level maps take as real numbers.

`MixedDensityEstimator` of sbi (MNLE) has a categorical distribution of the last
features of x, and a density of the others. Level maps move x by real numbers. With the
rank :math:`r_j(x) \in \{0, \dots, K_j - 1\}` of the category of feature j, they act on

.. math::  z_j = r_j(x) + u_j, \qquad u_j \sim U(-\tfrac12, \tfrac12),

whose density determines the probabilities, as the integral over
:math:`[r - \tfrac12, r + \tfrac12]` is that of category r. Mapped :math:`z_j` are
rounded to the nearest category. Both sides of a pair have the same :math:`u_j`, so that
sides of the same category do not differ. Where the network takes logarithms of the
other features (`log_transform_x` of sbi), so do the maps, and mapped features stay
positive.

Reference: Theis, van den Oord, Bethge (2016), *A note on the evaluation of generative
models*, arXiv:1511.01844, section 3.1, for uniform noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations


@dataclass(frozen=True, eq=False)
class DiscreteFeatures:
    """The discrete features of x, which are the last ones.

    Args:
        values: The categories of each, in order, shape `(K_j,)`.
        takes_log: Whether logarithms of the other features are mapped.

    Example:
    --------

    ::

        >>> import torch
        >>> features = DiscreteFeatures((torch.tensor([0.0, 2.0, 5.0]),))
        >>> features.restored(torch.tensor([[0.3, -0.4], [0.3, 1.6], [0.3, 7.0]]))
        tensor([[0.3000, 0.0000],
                [0.3000, 5.0000],
                [0.3000, 5.0000]])
    """

    values: tuple[Tensor, ...]
    takes_log: bool = False

    @classmethod
    def of(
        cls, levels: Sequence[LevelSimulations], count: int, takes_log: bool = False
    ) -> DiscreteFeatures:
        """The categories that occur at any level.

        Args:
            levels: Simulations of all levels, and pairs, with x of shape `(n, k)`.
            count: Number of discrete features.
            takes_log: See the class.

        Raises:
            ValueError: If features are not as the network requires.
        """
        outputs = _outputs(levels)
        for name, _, x in outputs:
            others, discrete = x[:, :-count], x[:, -count:]
            if not bool((discrete == discrete.round()).all()):
                raise ValueError(
                    f"density_estimator has categories of the last {count} features "
                    f"of x, but in {name} they are not all integers, or one of them "
                    "does not vary. Put discrete features last, at all levels, and "
                    "leave out those that do not vary at one."
                )
            if takes_log and bool((others <= 0).any()):
                raise ValueError(
                    "density_estimator takes logarithms of x (log_transform_x=True), "
                    f"but {name} is as small as {float(others.min()):.3g}. Leave out "
                    "the option, or simulations that are not positive."
                )
        joined = torch.cat([x for _, _, x in outputs])
        return cls(tuple(x.unique() for x in joined[:, -count:].T), takes_log)

    def continuous(self, level: LevelSimulations, seed: int) -> LevelSimulations:
        """Simulations with real numbers in the place of categories.

        Args:
            level: Simulations of one level.
            seed: Seed of the noise.
        """
        generator = torch.Generator().manual_seed(seed + level.level)
        shape = len(level), len(self.values)
        noise = torch.rand(*shape, generator=generator).to(level.x) - 0.5

        def converted(x: Tensor) -> Tensor:
            others, columns = self._split(x)
            others = others.log() if self.takes_log else others
            ranks = [
                torch.searchsorted(values.to(x), column.contiguous())
                for values, column in zip(self.values, columns)
            ]
            return torch.cat((others, torch.stack(ranks, dim=1) + noise), dim=1)

        coarse = None if level.x_coarse is None else converted(level.x_coarse)
        return LevelSimulations.trusted(
            level.level, level.theta, converted(level.x), coarse, level.weights
        )

    def restored(self, x: Tensor) -> Tensor:
        """x with categories, from real numbers, both of shape `(n, k)`."""
        others, columns = self._split(x)
        others = others.exp() if self.takes_log else others
        categories = [
            values.to(x)[column.round().long().clamp(0, len(values) - 1)]
            for values, column in zip(self.values, columns)
        ]
        return torch.cat((others, torch.stack(categories, dim=1)), dim=1)

    def examples(self, levels: Sequence[LevelSimulations]) -> tuple[Tensor, Tensor]:
        """Simulations in which each category occurs, of the highest level if it does.

        Args:
            levels: Simulations of all levels, and pairs, with categories.

        Returns:
            Theta, shape `(m, d_theta)`, and x, shape `(m, k)`.
        """
        _, thetas, outputs = zip(*_outputs(levels))
        theta, x = torch.cat(thetas), torch.cat(outputs)
        _, columns = self._split(x)
        firsts = [
            int((column == value).int().argmax())
            for values, column in zip(self.values, columns)
            for value in values.to(x)
        ]
        return theta[firsts], x[firsts]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Other features, shape `(n, k - m)`, and columns of the m discrete ones."""
        return x[:, : -len(self.values)], x[:, -len(self.values) :].T


def _outputs(levels: Sequence[LevelSimulations]) -> list[tuple[str, Tensor, Tensor]]:
    """Name, theta and x of all outputs, those of the highest level first."""
    found = []
    for level in sorted(levels, key=lambda level: -level.level):
        found.append((f"x of level {level.level}", level.theta, level.x))
        if level.x_coarse is not None:
            name = f"x_coarse of level {level.level}"
            found.append((name, level.theta, level.x_coarse))
    return found
