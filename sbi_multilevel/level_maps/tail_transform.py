r"""A transform of heavy tails of x, feature by feature.

.. math::  y = \frac{1}{\delta} \operatorname{arsinh}\!\left(\delta\, \frac{x - m}{s}
    \right), \qquad y = x \quad \text{for } \delta = 0,

with m the median and s the interquartile range over 1.349. :math:`\delta` is the one of
a few values under which a normal has the greatest likelihood (a symmetric Johnson
:math:`S_U` law), the mean over the levels, and 0 unless another gains 0.1 nats a
simulation. Means, standard deviations and z-scoring, on which training relies, mean
little where a few simulations are a hundred times as large as the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

_CANDIDATES = (0.0, 0.3, 1.0, 3.0, 10.0)
_MIN_GAIN = 0.1  # nats a simulation
_MAX_EXPONENT = 40.0
_MIN_VALUES = 10


class TailTransform(Transform):
    """The transform of all features of x, computed in the precision of its parameters.

    Args:
        center: m, shape `(k,)`.
        scale: s, shape `(k,)`.
        delta: Shape `(k,)`; 0 leaves a feature as it is.

    Example:
    --------

    ::

        >>> import torch
        >>> tails = TailTransform(torch.zeros(1), torch.ones(1), torch.ones(1))
        >>> y = tails(torch.tensor([[100.0]]))
        >>> y, tails.inv(y).round()
        (tensor([[5.2983]]), tensor([[100.]]))
    """

    bijective = True
    domain = codomain = constraints.real_vector

    def __init__(self, center: Tensor, scale: Tensor, delta: Tensor):
        super().__init__()
        self.center, self.scale, self.delta = center, scale, delta

    @classmethod
    def fit(cls, levels: Sequence[Tensor]) -> TailTransform:
        """Choose m, s and delta, in double precision.

        Args:
            levels: x of each level, shape `(n_l, k)`.
        """
        arrays = [x.detach().cpu().double().numpy() for x in levels]
        low, center, high = np.percentile(np.concatenate(arrays), [25, 50, 75], axis=0)
        scale = (high - low) / 1.349
        delta = np.zeros(len(scale))
        for feature in np.flatnonzero(scale > 0):
            if len(np.unique(arrays[0][:, feature])) < _MIN_VALUES:
                continue  # a few discrete values have no tails
            sets = [(x[:, feature] - center[feature]) / scale[feature] for x in arrays]
            gains = [
                np.mean([_log_likelihood(z, d) for z in sets]) for d in _CANDIDATES
            ]
            best = int(np.argmax(gains))
            if gains[best] - gains[0] > _MIN_GAIN:
                delta[feature] = _CANDIDATES[best]
        scale = np.where(scale > 0, scale, 1.0)
        return cls(*(torch.as_tensor(each) for each in (center, scale, delta)))

    @property
    def is_identity(self) -> bool:
        """Whether no feature is changed."""
        return not bool((self.delta > 0).any())

    def __call__(self, x: Tensor) -> Tensor:
        """Transformed x, of the same shape `(..., k)`."""
        return self._call(x)

    def _call(self, x: Tensor) -> Tensor:
        wide = x.to(self.center.dtype)
        z = (wide - self.center) / self.scale
        y = torch.asinh(self._safe * z) / self._safe
        return torch.where(self.delta > 0, y, wide).to(x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        wide = y.to(self.center.dtype)
        # beyond the bound x could not be represented
        bounded = (self._safe * wide).clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
        x = self.center + self.scale * torch.sinh(bounded) / self._safe
        return torch.where(self.delta > 0, x, wide).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the derivative, summed over features, shape `(...)`."""
        z = self._safe * (x.to(self.center.dtype) - self.center) / self.scale
        each = -0.5 * torch.log1p(z**2) - self.scale.log()
        return torch.where(self.delta > 0, each, 0.0).sum(dim=-1).to(x.dtype)

    @property
    def _safe(self) -> Tensor:
        return torch.where(self.delta > 0, self.delta, 1.0)


def _log_likelihood(z: np.ndarray, delta: float) -> float:
    """Mean log likelihood of a normal for transformed z, up to a constant."""
    y = z if delta == 0 else np.arcsinh(delta * z) / delta
    slope = -0.5 * np.log1p((delta * z) ** 2).mean()
    return -0.5 * np.log(y.var() + 1e-12) + slope
