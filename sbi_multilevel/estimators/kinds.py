"""The kinds of network that trainers of sbi have: densities, ratios, vector fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sbi.neural_nets.estimators import (
    ConditionalDensityEstimator,
    ConditionalVectorFieldEstimator,
)
from sbi.neural_nets.factory import model_builders
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import nn


@dataclass(frozen=True)
class NetworkKind:
    """A kind of network, and how a trainer of sbi is given one.

    Args:
        argument: The argument of the trainer that names or builds a network.
        default: The name that the trainer has by default.
        names: All names that sbi knows.
        builders: The functions of sbi that return builders.
        estimator_type: What is built.
    """

    argument: str
    default: str
    names: tuple[str, ...]
    builders: str
    estimator_type: type[nn.Module]

    @property
    def is_density(self) -> bool:
        """Whether the network is a normalized density."""
        return self.estimator_type is ConditionalDensityEstimator

    def check(self, network: Any) -> None:
        """Raise unless a network is named, or a builder is given.

        Args:
            network: What the trainer was given.

        Raises:
            ValueError: If sbi has no network of this name.
            TypeError: If it is neither.
        """
        names, name = list(self.names), self.argument
        if network == "tabpfn":
            raise ValueError(
                f"{name}='tabpfn' is a network that is not trained, so that there is "
                "nothing to transfer to it. Pass one of "
                f"{names}, or use `NPE_PFN` of sbi on one level."
            )
        if isinstance(network, str):
            if network not in names:
                raise ValueError(
                    f"{name}={network!r} is no network of sbi. Pass one of {names}, or "
                    f"what {self.builders} returns."
                )
        elif isinstance(network, nn.Module) or not callable(network):
            raise TypeError(
                f"{name} is a {type(network).__name__}, but must be one of {names}, or "
                "a function of (theta, x) that builds an estimator, as "
                f"{self.builders} returns it."
            )


DENSITY = NetworkKind(
    "density_estimator",
    "maf",
    tuple(sorted(set(model_builders) - {"tabpfn"})),
    "`posterior_nn` or `likelihood_nn`",
    ConditionalDensityEstimator,
)
RATIO = NetworkKind(
    "classifier",
    "resnet",
    ("linear", "mlp", "resnet"),
    "`classifier_nn`",
    RatioEstimator,
)
FLOW = NetworkKind(
    "vf_estimator",
    "mlp",
    ("ada_mlp", "mlp", "transformer", "transformer_cross_attn"),
    "`posterior_flow_nn`",
    ConditionalVectorFieldEstimator,
)
SCORE = replace(FLOW, builders="`posterior_score_nn`")
