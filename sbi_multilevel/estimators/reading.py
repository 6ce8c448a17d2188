r"""How a network reads x: through an affine map that training sets.

Transfer pre-trains a network on low-fidelity x, and brings high-fidelity x to its scale
(`sbi_multilevel.level_maps.affine`). The map :math:`x' = a + b\,x` belongs to the
network. A density has it in `sbi_multilevel.estimators.transformed`,
with the change of volume. For ratios and vector fields it precedes the embedding of x:
the likelihood-to-evidence ratio does not depend on the scale of x,

.. math::

    \frac{p(x \mid \theta)}{p(x)} = \frac{p(x' \mid \theta)}{p(x')},

and a vector field is a function of theta that x only conditions.
"""

from __future__ import annotations

from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalVectorFieldEstimator
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn

from sbi_multilevel.level_maps import AffineMap, Moments
from sbi_multilevel.level_maps.tail_transform import TailTransform


class ReadsX(nn.Module):
    """A module with an affine map of x, the identity until training sets it.

    Attributes:
        x_mean: Mean of the x that the network was built on.
        x_std: Standard deviation of the same.
        x_shift: The constant a of the map.
        x_scale: The factor b of the map.
    """

    def keep_moments(self, moments: Moments) -> None:
        """Register the map, and the moments of the x that the network was built on."""
        self.register_buffer("x_mean", moments.mean.clone())
        self.register_buffer("x_std", moments.std.clone())
        self.register_buffer("x_shift", torch.zeros_like(moments.mean))
        self.register_buffer("x_scale", torch.ones_like(moments.std))

    @property
    def moments(self) -> Moments:
        """Moments of the x that the network was built on."""
        return Moments(self.x_mean, self.x_std)

    def read_x_through(self, align: AffineMap | None) -> None:
        """Set the map of x; `None` is the identity."""
        one = torch.ones_like(self.x_scale)
        scale = one if align is None else align.scale
        shift = 0 * one if align is None else align.target - align.scale * align.source
        self.x_scale.copy_(scale.expand_as(self.x_scale))
        self.x_shift.copy_(shift.expand_as(self.x_shift))

    def map_x(self, x: Tensor) -> Tensor:
        """Map x, shape `(..., *x_shape)`."""
        return self.x_shift + self.x_scale * x


class XMap(ReadsX):
    """The map as a module that precedes the embedding of x.

    Args:
        moments: Moments of the x that the network was built on.
    """

    def __init__(self, moments: Moments):
        super().__init__()
        self.keep_moments(moments)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape `(..., *x_shape)`."""
        return self.map_x(x)


class KeepsTails(nn.Module):
    """A module with a transform of the tails of x, on its device and in its weights."""

    def keep_tails(self, tails: TailTransform | None) -> None:
        """Register the transform; `None` leaves x as it is."""
        for name in ("center", "scale", "delta"):
            column = None if tails is None else getattr(tails, name)
            self.register_buffer(f"tail_{name}", column)

    @property
    def tails(self) -> TailTransform | None:
        """The transform of the tails of x."""
        if self.tail_center is None:
            return None
        return TailTransform(self.tail_center, self.tail_scale, self.tail_delta)

    def transform_tails(self, x: Tensor) -> Tensor:
        """Transform the tails of x, shape `(..., *x_shape)`."""
        return x if self.tails is None else self.tails(x)


class TailMap(KeepsTails):
    """The transform of the tails of x as a module that precedes the embedding of x.

    Args:
        tails: The transform.
    """

    def __init__(self, tails: TailTransform):
        super().__init__()
        self.keep_tails(tails)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x, shape `(..., *x_shape)`."""
        return self.transform_tails(x)


def with_x_map(estimator: nn.Module, moments: Moments) -> nn.Module:
    """A ratio or vector field estimator that reads x through a map.

    Args:
        estimator: The estimator, which is changed in place.
        moments: Moments of the x that it was built on.
    """
    if x_reader(estimator) is None:
        precede_embedding(estimator, XMap(moments))
    return estimator


def without_x_map(estimator: Any) -> nn.Module:
    """The estimator of sbi that reads x through a map, without the map."""
    if isinstance(estimator, ReadsX):
        return estimator.net  # pyright: ignore[reportReturnType]
    name = _embedding_of(estimator)
    setattr(estimator, name, getattr(estimator, name)[1])
    return estimator


def precede_embedding(estimator: nn.Module, module: nn.Module) -> None:
    """Let a module see x before the embedding of x in a ratio or vector field."""
    name = _embedding_of(estimator)
    setattr(estimator, name, nn.Sequential(module, getattr(estimator, name)))


def x_reader(network: Any) -> ReadsX | None:
    """The part of a network that maps x; `None` if it has none."""
    if isinstance(network, ReadsX):
        return network
    if not isinstance(network, (RatioEstimator, ConditionalVectorFieldEstimator)):
        return None
    embedding = getattr(network, _embedding_of(network))
    first = embedding[0] if isinstance(embedding, nn.Sequential) else None
    return first if isinstance(first, ReadsX) else None


def _embedding_of(estimator: nn.Module) -> str:
    is_ratio = isinstance(estimator, RatioEstimator)
    return "embedding_net_x" if is_ratio else "_embedding_net"
