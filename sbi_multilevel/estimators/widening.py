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

import torch
import zuko.lazy
from nflows.distributions import StandardNormal
from nflows.transforms import CompositeTransform, PointwiseAffineTransform
from sbi.neural_nets.estimators import NFlowsFlow, ZukoFlow
from torch import nn
from zuko.distributions import DiagNormal

from sbi_multilevel.estimators.transformed import MappedEstimator


def can_be_widened(estimator: nn.Module) -> bool:
    """Whether an estimator is a flow with a normal base distribution.

    Args:
        estimator: Estimator of sbi, or one under maps of theta and x.
    """
    return _flow_of(estimator) is not None


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
        >>> wide = widened(network, 2.0)
        >>> noise = network.net.transform_to_noise(theta, x)
        >>> torch.allclose(wide.net.transform_to_noise(theta, x), noise / 2, atol=1e-5)
        True
    """
    copy = deepcopy(estimator)
    flow = _flow_of(copy)
    if flow is None:
        raise ValueError(
            f"estimator is a {type(estimator).__name__}, but must be a flow with a "
            "normal base distribution. Check `can_be_widened`."
        )
    if isinstance(flow, zuko.lazy.Flow):
        flow.base.scale.mul_(scale)
    else:
        # to z / s, which is standard normal
        place = next(estimator.parameters())
        narrow = PointwiseAffineTransform(scale=torch.tensor(1 / scale).to(place))
        flow._transform = CompositeTransform([flow._transform, narrow])
    return copy


def _flow_of(estimator: Any) -> Any | None:
    """The flow of nflows or zuko."""
    while isinstance(estimator, MappedEstimator):
        estimator = estimator.net
    if not isinstance(estimator, (NFlowsFlow, ZukoFlow)):
        return None  # e.g. of discrete and continuous parts
    flow: Any = estimator.net
    if isinstance(flow, zuko.lazy.Flow):
        is_normal = getattr(flow.base, "f", None) is DiagNormal
    else:
        is_normal = isinstance(flow._distribution, StandardNormal)
    return flow if is_normal else None
