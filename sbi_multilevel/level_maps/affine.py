r"""Affine maps that bring simulations of lower levels to the scale of the highest one.

Simulations of a lower level may be transformed before training by any map :math:`T_l`,
since only outputs of the highest level :math:`L` are observed. The loss stays a valid
telescoping sum if the *same* map is used wherever :math:`G_l` appears, as the fine side
of level :math:`l` and as the coarse side of level :math:`l + 1`:

.. math::

    \mathbb{E} f(T_0 G_0) + \sum_{l=1}^{L}
    \mathbb{E}\left[ f(T_l G_l) - f(T_{l-1} G_{l-1}) \right] = \mathbb{E} f(G_L),
    \qquad T_L = \mathrm{id}.

The more :math:`T_l G_l` resembles :math:`G_L`, the smaller the corrections.

`None` (default)
    No map. Neither kind below was better on all of the benchmark tasks.

`"affine"`
    With :math:`m^\pm_l, s^\pm_l` the mean and standard deviation of each feature of `x`
    and `x_coarse` over the pairs of level :math:`l`, the step from level :math:`l-1` to
    :math:`l` is :math:`x \mapsto m^+_l + (s^+_l / s^-_l)(x - m^-_l)`, and
    :math:`T_l` the composition of the steps from :math:`l` to :math:`L`. Both moments
    come from the same theta and noise, so their sampling errors cancel: an affine map
    between the levels is found from two pairs. The sum above is exact.

`"standardize"` (Hikida et al. 2025, their code)
    Theta and x of every term are standardized by their own mean and standard deviation
    and carried to those of level L. The map of :math:`G_l` then differs between the two
    places, so the sum telescopes only as all :math:`n_l` grow.

For transfer the network is trained on level 0 first, so simulations of higher levels,
and the observation, are brought to the scale of level 0 (`standardize_to`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import MultilevelSimulations

AlignmentKind = Literal["affine", "standardize"]
ALIGNMENTS: tuple[str, ...] = get_args(AlignmentKind)


@dataclass(frozen=True, eq=False)
class AffineMap:
    r"""The map :math:`x \mapsto \mathrm{target} + \mathrm{scale}\,(x -
    \mathrm{source})` of each feature.

    Args:
        source: Mean of the simulations to be mapped, shape `x_shape`.
        target: Mean they are mapped to, shape `x_shape`.
        scale: Ratio of the standard deviations, shape `x_shape`.

    Example:
    --------

    ::

        >>> import torch
        >>> low = torch.tensor([[0.0], [1.0]])
        >>> align = AffineMap.between(low, target=3 * low + 5)
        >>> align(torch.tensor([[2.0]]))
        tensor([[11.]])
    """

    source: Tensor
    target: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.target + self.scale * (x - self.source)

    @classmethod
    def between(cls, source: Tensor, target: Tensor) -> AffineMap:
        """Match the mean and standard deviation of one sample to those of another.

        Args:
            source: The sample to be mapped, shape `(n, *x_shape)`.
            target: The sample it should resemble, shape `(m, *x_shape)`.
        """
        sides = (Moments(x.mean(dim=0), x.std(dim=0)) for x in (source, target))
        return cls.matching(*sides)

    @classmethod
    def matching(cls, source: Moments, target: Moments) -> AffineMap:
        """Match moments; a feature that does not vary in one of them is only shifted.

        Args:
            source: Moments of the simulations to be mapped.
            target: Moments they are given.
        """
        varies = source.varies & target.varies
        safe = torch.where(varies, source.std, torch.ones_like(source.std))
        scale = torch.where(varies, target.std / safe, torch.ones_like(safe))
        return cls(source.mean, target.mean, scale)

    def leaving(self, count: int) -> AffineMap:
        """The same map, but for the last features, which stay as they are.

        Args:
            count: Number of these features.
        """
        if count == 0:
            return self
        source, target, scale = (
            each.clone() for each in (self.source, self.target, self.scale)
        )
        source[-count:] = target[-count:] = 0.0
        scale[-count:] = 1.0
        return AffineMap(source, target, scale)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Maps applied one after the other to the x (and the theta) of a term.

    Args:
        x: Maps of x, the first one first; none leaves x as it is.
        theta: Maps of theta.
    """

    x: tuple[AffineMap, ...] = ()
    theta: tuple[AffineMap, ...] = ()

    def leaving(self, count: int) -> Alignment:
        """The same alignment, but for the last features of x, which stay as they are.

        Args:
            count: Number of these features.
        """
        return Alignment(tuple(step.leaving(count) for step in self.x), self.theta)

    def __call__(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        for step in self.theta:
            theta = step(theta)
        for step in self.x:
            x = step(x)
        return theta, x


def fit_alignments(
    kind: AlignmentKind | None,
    simulations: MultilevelSimulations,
    places: Sequence[tuple[int, bool]],
) -> list[Alignment]:
    """Fit one alignment for each place that a level appears in.

    Args:
        kind: `"affine"`, `"standardize"`, or `None` for no alignment.
        simulations: Training simulations, without the held-out ones.
        places: `(level, coarse)` of each place: the outputs are `x_coarse` of `level`
            if `coarse`, else `x`.

    Returns:
        One alignment for each of `places`.

    Example:
    --------

    Levels that differ by an affine map, found from two pairs:

    ::

        >>> import torch
        >>> from sbi_multilevel import LevelSimulations, MultilevelSimulations
        >>> x, pairs = torch.rand(20, 1), torch.tensor([[0.0], [1.0]])
        >>> simulations = MultilevelSimulations((
        ...     LevelSimulations(0, torch.rand(20, 1), x),
        ...     LevelSimulations(1, torch.rand(2, 1), 3 * pairs + 5, x_coarse=pairs),
        ... ))
        >>> (align,) = fit_alignments("affine", simulations, [(0, False)])
        >>> bool(torch.allclose(align(x, x)[1], 3 * x + 5))
        True
    """
    if kind is None:
        return [Alignment() for _ in places]
    if kind == "standardize":
        return [_standardize(simulations, level, coarse) for level, coarse in places]
    steps = [
        AffineMap.between(source=level.x_coarse, target=level.x)
        for level in simulations.levels[1:]
        if level.x_coarse is not None
    ]
    # outputs of G_l need the steps l -> l + 1, ..., L - 1 -> L
    return [Alignment(x=tuple(steps[level - coarse :])) for level, coarse in places]


def _standardize(sims: MultilevelSimulations, level: int, coarse: bool) -> Alignment:
    own, top = sims[level], sims[-1]
    if own is top and not coarse:
        return Alignment()
    source = own.x_coarse if coarse and own.x_coarse is not None else own.x
    return Alignment(
        x=(AffineMap.between(source, top.x),),
        theta=(AffineMap.between(own.theta, top.theta),),
    )


def standardize_to(
    moments: Moments, simulations: MultilevelSimulations, levels: Sequence[int]
) -> list[Alignment]:
    """Carry the x of each level, by its own moments, to `moments`.

    Args:
        moments: Moments of the x that the network was built on; one number for all
            entries where x is an image or a series.
        simulations: Training simulations, without the held-out ones.
        levels: The level of each alignment.

    Returns:
        One alignment for each of `levels`.
    """
    device = simulations[0].x.device
    target = Moments(moments.mean.to(device), moments.std.to(device))
    own = [Moments.of(level.x, level.weights) for level in simulations]
    return [Alignment(x=(AffineMap.matching(own[level], target),)) for level in levels]
