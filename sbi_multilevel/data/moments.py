"""Mean and standard deviation of the features of simulations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of a sample.

    Args:
        mean: Mean of each feature, shape `x_shape`, or one number, shape `()`.
        std: Standard deviation, of the same shape.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor, weights: Tensor | None = None) -> Moments:
        """Moments of each feature of a vector, or of all entries of an image together.

        Args:
            x: The sample, shape `(n, *x_shape)`.
            weights: Weight of each x, shape `(n,)`; equal if `None`.

        Example:
        --------

        ::

            >>> import torch
            >>> Moments.of(torch.tensor([[1.0], [3.0]])).mean
            tensor([2.])
        """
        if x.ndim > 2:
            x = x.flatten(1)
            weights = None if weights is None else weights.repeat_interleave(x.shape[1])
            moments = cls.of(x.reshape(-1, 1), weights)
            return cls(moments.mean[0], moments.std[0])
        if weights is None:
            return cls(x.mean(dim=0), x.std(dim=0))
        share = (weights / weights.sum()).unsqueeze(1)
        mean = (share * x).sum(dim=0)
        return cls(mean, (share * (x - mean) ** 2).sum(dim=0).sqrt())

    @property
    def varies(self) -> Tensor:
        """Whether each feature varies, by more than the rounding of its mean."""
        rounding = 10 * torch.finfo(self.mean.dtype).eps
        return self.std > rounding * self.mean.abs()
