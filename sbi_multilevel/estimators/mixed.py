"""Estimators of discrete and continuous features of x: `MixedDensityEstimator` of sbi.

The last features of x are categories. They cannot be shifted or scaled, so alignments
leave them as they are, and level maps take them as real numbers
(`sbi_multilevel.level_maps.discrete_features`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sbi.neural_nets.estimators import MixedDensityEstimator
from torch import Tensor, nn

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.utils.seeds import seeded


def find_mixed(network: nn.Module) -> MixedDensityEstimator | None:
    """The mixed estimator inside a network; `None` if there is none."""
    mixed = (p for p in network.modules() if isinstance(p, MixedDensityEstimator))
    return next(mixed, None)


def probe_mixed(
    build: Callable[..., nn.Module], level: LevelSimulations
) -> MixedDensityEstimator | None:
    """The mixed estimator that a builder makes of likelihoods; `None` if it makes none.

    It is built, and not trained, only if the last feature of x has integers only.

    Args:
        build: Builder of likelihoods.
        level: Simulations of one level.
    """
    theta, x = level.theta.cpu(), level.x.cpu()
    if x.ndim != 2 or not bool((x[:, -1] == x[:, -1].round()).all()):
        return None
    try:
        with seeded(0):
            return find_mixed(build(theta, x))
    except (TypeError, ValueError):  # training builds it, too, and then raises
        return None


def num_discrete(mixed: MixedDensityEstimator | None) -> int:
    """Number of discrete features of x, the last ones."""
    if mixed is None:
        return 0
    variables: Any = mixed.discrete_net.net.num_variables
    return int(variables)


def num_unaligned(mixed: MixedDensityEstimator | None, x: Tensor) -> int:
    """Number of the last features of x that are not to be shifted or scaled.

    They are all if the network takes logarithms, of which there are none below zero.

    Args:
        mixed: The estimator, if it is mixed.
        x: Outputs, shape `(n, *x_shape)`.
    """
    takes_log = mixed is not None and mixed.log_transform_input
    return x.shape[-1] if takes_log else num_discrete(mixed)


@dataclass(frozen=True, eq=False)
class WithExamples:
    """Builds networks that know all categories, of simulations that may lack some.

    Args:
        build: The builder of the user.
        theta: Parameters of the examples, shape `(m, d_theta)`.
        x: Their x, in which each category occurs, shape `(m, k)`.
    """

    build: Callable[[Tensor, Tensor], Any]
    theta: Tensor
    x: Tensor

    def __call__(self, theta: Tensor, x: Tensor) -> Any:
        """Build a network of these simulations and the examples."""
        examples = self.theta.to(theta), self.x.to(x)
        return self.build(*map(torch.cat, zip((theta, x), examples)))
