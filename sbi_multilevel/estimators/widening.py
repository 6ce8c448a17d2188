r"""Flows with a wider base distribution.

A flow is the distribution of :math:`f(z; x)` with :math:`z \sim N(0, I)`. With the
scale s it is that of :math:`f(s z; x)`, whose density is

.. math::

    q_s(\theta \mid x) = q(\theta \mid x)\, s^{-d}
    \exp\left( \tfrac12 \left(1 - s^{-2}\right) \|z\|^2 \right),
    \qquad z = f^{-1}(\theta; x),

and correspondingly for a flow over x. One number makes a flow wider that is too narrow,
as the temperature does for the probabilities of a classifier.

Reference: Guo, Pleiss, Sun, Weinberger (2017), *On calibration of modern neural
networks*, arXiv:1706.04599, Section 4.2, for classifiers.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import nflows.flows
import torch
import zuko.lazy
from nflows.distributions import StandardNormal
from nflows.transforms import CompositeTransform, PointwiseAffineTransform
from torch import nn
from zuko.distributions import DiagNormal


def can_be_widened(estimator: nn.Module) -> bool:
    """Whether an estimator is one flow with a normal base distribution."""
    return len(_flows(estimator)) == 1


def widened(estimator: nn.Module, scale: float) -> Any:
    """A copy with a wider base distribution.

    Args:
        estimator: Estimator of sbi, a flow of nflows or zuko, or one under maps of
            theta and x.
        scale: Factor s to the standard deviation of the base distribution.

    Raises:
        ValueError: If the estimator is no flow with a normal base distribution.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.neural_nets import posterior_nn
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 2)
        >>> network = posterior_nn("maf")(theta, x)
        >>> wide = widened(network, 2.0).sample((10_000,), x[:1])
        >>> narrow = network.sample((10_000,), x[:1])
        >>> round(wide.std().item() / narrow.std().item(), 1)
        2.0
    """
    copy = deepcopy(estimator)
    flows = _flows(copy)
    if len(flows) != 1:
        raise ValueError(
            f"estimator is a {type(estimator).__name__} with {len(flows)} flows of a "
            "normal base distribution, but must have one. Check `can_be_widened`."
        )
    (flow,) = flows
    if isinstance(flow, zuko.lazy.Flow):
        flow.base.scale.mul_(scale)
    else:
        # to z / s, which is standard normal
        place = next(estimator.parameters())
        narrow = PointwiseAffineTransform(scale=torch.tensor(1 / scale).to(place))
        flow._transform = CompositeTransform([flow._transform, narrow])
    return copy


def _flows(estimator: nn.Module) -> list[Any]:
    return [part for part in estimator.modules() if _is_normal_flow(part)]


def _is_normal_flow(part: nn.Module) -> bool:
    if isinstance(part, nflows.flows.Flow):
        return isinstance(part._distribution, StandardNormal)
    if isinstance(part, zuko.lazy.Flow):
        base = part.base
        is_partial = isinstance(base, zuko.lazy.UnconditionalDistribution)
        return is_partial and getattr(base, "f", None) is DiagNormal
    return False
