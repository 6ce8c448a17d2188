r"""Warnings of observations that are far outside of the training simulations.

A network extrapolates without notice: the posterior at an observation far from all
simulations is as narrow as any, and meaningless. With :math:`l_j, h_j` the range of
feature j over the simulations of the highest level and :math:`s_j` their spread (the
interquartile range over 1.349), the distance of an observation is

.. math::  d = \max_j \max(x_j - h_j,\; l_j - x_j) / s_j ,

and it is far outside where

.. math::  d > \left( 1 + \frac{20}{n} \right) \max(10,\; 3\, g),

with g the largest distance of one of the n simulations from the range of all others,
which is large where tails are heavy. Observations from the simulator exceed it in less
than one of 100 cases, also for Cauchy noise and n = 50.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from sbi.inference.potentials.likelihood_based_potential import LikelihoodBasedPotential
from sbi.inference.potentials.ratio_based_potential import RatioBasedPotential
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from sbi_multilevel.data.outputs import sample_of, varies
from sbi_multilevel.estimators.transformed import WrappedDensity

_FARTHEST, _GAPS, _FEW = 10.0, 3.0, 20.0
_ROUNDING = 1e-5  # of a feature that is constant
_LIBRARIES = ("sbi_multilevel", "sbi", "torch")


@dataclass(frozen=True, eq=False)
class TrainingRange:
    """The range of the training simulations of the highest level; see the module.

    Args:
        low: Least value of each feature, shape `(k,)`.
        high: Largest value of each feature, shape `(k,)`.
        spread: Spread of each feature, shape `(k,)`; 0 where it is constant.
        farthest: Largest distance, in units of spread, that is not far outside.
    """

    low: Tensor
    high: Tensor
    spread: Tensor
    farthest: float

    @classmethod
    def of(cls, highest: Tensor, lower: Sequence[Tensor] = ()) -> TrainingRange:
        """The range of outputs; of all levels where the highest is constant.

        Args:
            highest: x of the highest level, shape `(n, *x_shape)`.
            lower: x of the other levels, each of shape `(m, *x_shape)`.
        """
        x = highest.flatten(1).detach().cpu()
        low, high, spread = _range(x)
        gap = _largest_gap(x, spread)
        constant = ~varies(x)
        if bool(constant.any()):
            every = torch.cat([
                each.flatten(1)[:, constant.to(each.device)].detach().cpu()
                for each in (highest, *lower)
            ])
            low[constant], high[constant], spread[constant] = _range(every)
        farthest = (1 + _FEW / len(x)) * max(_FARTHEST, _GAPS * gap)
        return cls(low, high, spread, farthest)

    @cached_property
    def reach(self) -> Tensor:
        """Largest distance of each feature from its range, shape `(k,)`."""
        rounding = _ROUNDING * torch.maximum(self.low.abs(), self.high.abs())
        return torch.maximum(self.farthest * self.spread, rounding)

    def is_far(self, x: Tensor) -> Tensor:
        """Whether observations `x`, shape `(n, k)`, are far outside, shape `(n,)`."""
        least, most = self.low - self.reach, self.high + self.reach
        return ((x < least) | (x > most)).any(dim=1)

    def message(self, x: Tensor) -> str | None:
        """A warning of observations `x`, shape `(n, k)`; `None` if none is far."""
        is_far = self.is_far(x)
        if not bool(is_far.any()):
            return None
        beyond = torch.maximum(x - self.high, self.low - x)
        relative = beyond / self.reach.clamp_min(torch.finfo(x.dtype).tiny)
        which, feature = divmod(int(relative.argmax()), x.shape[1])
        columns = x[which], self.low, self.high, self.spread, beyond[which]
        value, low, high, spread, distance = (float(each[feature]) for each in columns)
        where = f"but {low:.3g} in all of them"
        if spread > 0:
            where = (
                f"{distance / spread:.3g} times their spread of {spread:.3g} beyond "
                f"their range of {low:.3g} to {high:.3g}"
            )
        who = "The observation x_o is"
        if len(x) > 1:
            who = f"{int(is_far.sum())} of {len(x)} observations x_o are"
        return (
            f"{who} far outside of the training simulations: its feature {feature} is "
            f"{value:.3g}, {where}. The posterior there is an extrapolation. Check the "
            "observation and its units, or let the prior and the simulator reach it."
        )


@dataclass(eq=False)
class Watch:
    """Warns of observations that are far outside, once of each.

    Args:
        inside: The range of the training simulations.
    """

    inside: TrainingRange
    _known: set[bytes] = field(default_factory=set, repr=False)

    def check(self, x: Tensor) -> None:
        """Warn if observations, shape `(..., *x_shape)`, are far outside."""
        width = len(self.inside.low)
        if x.numel() == 0 or x.numel() % width:
            return  # sbi refuses the shape
        flat = x.detach().reshape(-1, width).cpu().to(self.inside.low.dtype)
        message = self.inside.message(flat)
        if message is None:
            return
        key = flat.numpy().tobytes()
        if key not in self._known:
            self._known.add(key)
            warnings.warn(message, stacklevel=_stacklevel_of_user())


class WatchedEstimator(WrappedDensity):
    """An estimator of theta given x that checks the x it is given.

    Posteriors hold it; the network that was trained is its `net`.

    Args:
        estimator: The estimator.
        watch: Checks observations.
    """

    def __init__(self, estimator: ConditionalDensityEstimator, watch: Watch):
        super().__init__(estimator)
        self._watch = watch

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Log density, as of the estimator."""
        self._watch.check(condition)
        return self.net.log_prob(input, condition, **kwargs)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Samples, as of the estimator."""
        self._watch.check(condition)
        return self.net.sample(sample_shape, condition, **kwargs)

    def sample_and_log_prob(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log density, as of the estimator."""
        self._watch.check(condition)
        return self.net.sample_and_log_prob(sample_shape, condition, **kwargs)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Loss, as of the estimator."""
        return self.net.loss(input, condition, **kwargs)


class _WatchedPotential:
    """A potential of sbi that checks an observation when it is set.

    Args:
        estimator: As of sbi.
        prior: As of sbi.
        device: As of sbi.
        watch: Checks observations.
    """

    def __init__(self, estimator, prior, device: str, watch: Watch):
        self._watch = watch
        super().__init__(estimator, prior, None, device)  # pyright: ignore[reportCallIssue]

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observation, as in sbi."""
        super().set_x(x_o, x_is_iid)  # pyright: ignore[reportAttributeAccessIssue]
        if x_o is not None:
            self._watch.check(self.x_o)  # pyright: ignore[reportAttributeAccessIssue]


class WatchedPotential(_WatchedPotential, LikelihoodBasedPotential):
    """sbi's potential of a likelihood, which checks an observation when it is set."""


class WatchedRatioPotential(_WatchedPotential, RatioBasedPotential):
    """sbi's potential of a ratio, which checks an observation when it is set."""


class WatchingX(nn.Module):
    """Checks the x that a network embeds, and returns it.

    Args:
        watch: Checks observations.
    """

    def __init__(self, watch: Watch):
        super().__init__()
        self._watch = watch

    def forward(self, x: Tensor) -> Tensor:
        """Check observations, shape `(..., *x_shape)`."""
        self._watch.check(x)
        return x


def _range(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least and largest value and spread of each feature."""
    lower, upper = np.percentile(sample_of(x), [25, 75], axis=0)
    spread = torch.as_tensor((upper - lower) / 1.349).to(x)
    # most values of a feature may be the same
    spread = torch.where(spread > 0, spread, x.double().std(dim=0).to(x))
    spread = torch.where(varies(x), spread, torch.zeros_like(spread))
    return x.amin(0), x.amax(0), spread


def _largest_gap(x: Tensor, spread: Tensor) -> float:
    """The largest distance of a simulation from the range of all others."""
    if len(x) < 2 or not bool((spread > 0).any()):
        return 0.0
    top, bottom = x.topk(2, dim=0).values, x.topk(2, dim=0, largest=False).values
    gaps = torch.maximum(top[0] - top[1], bottom[1] - bottom[0])
    return float((gaps / spread)[spread > 0].max())


def _stacklevel_of_user() -> int:
    """The `stacklevel` of the first caller outside of the libraries."""
    for level, (frame, _) in enumerate(traceback.walk_stack(sys._getframe(1)), 1):
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in _LIBRARIES:
            return level
    return 2
