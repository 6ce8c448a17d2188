r"""Heavy tails of x, tamed feature by feature before anything else sees them.

.. math::  y = \frac{1}{\delta} \operatorname{arsinh}\!\left(\delta\, \frac{x - m}{s}
    \right), \qquad y = x \quad \text{for } \delta = 0,

with m the median and s the interquartile range over 1.349. :math:`\delta` is that of a
few values under which a normal has the greatest likelihood (a symmetric Johnson
:math:`S_U` law), the mean over the levels, and 0 unless another gains 0.1 nats a row.
Means, standard deviations and z-scoring, which everything later rests on, mean little
where a few rows are a hundred times as large as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

_CANDIDATES = (0.0, 0.3, 1.0, 3.0, 10.0)
_MIN_GAIN = 0.1  # nats a row
_MAX_EXPONENT = 40.0
_MIN_VALUES = 10


class TailTransform(nn.Module):
    """The map of each feature of x, in double precision where the device has it.

    Args:
        centre: m, shape `(k,)`.
        scale: s, shape `(k,)`.
        delta: Shape `(k,)`; 0 leaves a feature as it is.
    """

    centre: Tensor
    scale: Tensor
    delta: Tensor

    def __init__(self, centre: Tensor, scale: Tensor, delta: Tensor):
        super().__init__()
        columns = {"centre": centre, "scale": scale, "delta": delta}
        for name, value in columns.items():
            self.register_buffer(name, value.double())

    @classmethod
    def fit(cls, levels: Sequence[Tensor]) -> TailTransform:
        """Choose the maps.

        Args:
            levels: x of each level, shape `(n_l, k)`.
        """
        arrays = [x.detach().cpu().double().numpy() for x in levels]
        low, centre, high = np.percentile(np.concatenate(arrays), [25, 50, 75], axis=0)
        scale = (high - low) / 1.349
        delta = np.zeros(len(scale))
        for feature in np.flatnonzero(scale > 0):
            if len(np.unique(arrays[0][:, feature])) < _MIN_VALUES:
                continue  # a few discrete values have no tails
            rows = [(x[:, feature] - centre[feature]) / scale[feature] for x in arrays]
            gains = [
                np.mean([_log_likelihood(z, d) for z in rows]) for d in _CANDIDATES
            ]
            best = int(np.argmax(gains))
            if gains[best] - gains[0] > _MIN_GAIN:
                delta[feature] = _CANDIDATES[best]
        scale = np.where(scale > 0, scale, 1.0)
        return cls(*(torch.as_tensor(each) for each in (centre, scale, delta)))

    @property
    def is_identity(self) -> bool:
        """Whether no feature is changed."""
        return not bool((self.delta > 0).any())

    def forward(self, x: Tensor) -> Tensor:
        """Tamed x, of the same shape `(..., k)`."""
        wide = x.to(self.centre.dtype)
        z = (wide - self.centre) / self.scale
        tamed = torch.asinh(self._safe * z) / self._safe
        return torch.where(self.delta > 0, tamed, wide).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """x of tamed x, which is kept where x can be represented."""
        wide = y.to(self.centre.dtype)
        bounded = (self._safe * wide).clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
        x = self.centre + self.scale * torch.sinh(bounded) / self._safe
        return torch.where(self.delta > 0, x, wide).to(y.dtype)

    def log_det(self, x: Tensor) -> Tensor:
        """Logarithm of the derivative, summed over features, shape `(...)`."""
        z = self._safe * (x.to(self.centre.dtype) - self.centre) / self.scale
        each = -0.5 * torch.log1p(z**2) - self.scale.log()
        return torch.where(self.delta > 0, each, 0.0).sum(dim=-1).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        try:
            fn(self.centre)
        except TypeError:  # what mps says of double precision, which it does not have
            return super()._apply(lambda each: fn(each.float()), recurse)
        return super()._apply(fn, recurse)

    @property
    def _safe(self) -> Tensor:
        return torch.where(self.delta > 0, self.delta, 1.0)


def _log_likelihood(z: np.ndarray, delta: float) -> float:
    """Mean log likelihood a row of a normal for tamed z, up to a constant."""
    y = z if delta == 0 else np.arcsinh(delta * z) / delta
    slope = -0.5 * np.log1p((delta * z) ** 2).mean()
    return -0.5 * np.log(y.var() + 1e-12) + slope
