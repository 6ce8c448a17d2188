r"""An estimator of sbi behind maps of theta and x.

With :math:`\vartheta = T^{-1}(\theta)` unconstrained and :math:`x' = a + b\,x`, the
density of NPE is

.. math::

    q(\theta \mid x) = q'(\vartheta \mid x')\,
    \left| \det \frac{\partial \vartheta}{\partial \theta} \right| ,

so that no mass leaks out of the support of the prior, and the density of NLE is

.. math::  q(x \mid \theta) = q'(x' \mid \theta) \, \prod_i |b_i| .

:math:`T` is sbi's own transform of the prior (`sbi.utils.mcmc_transform`: logit for a
box, log for positive parameters, a shift and scale for unbounded ones). The map of x is
the identity until training sets it: transfer pre-trains on low-fidelity x, to whose
scale high-fidelity x is brought (`sbi_multilevel.level_maps.affine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.utils.sbiutils import CallableTransform
from torch import Tensor, nn

from sbi_multilevel.data.priors import transform_of
from sbi_multilevel.data.simulations import Target
from sbi_multilevel.estimators.kinds import DENSITY, NetworkKind
from sbi_multilevel.estimators.reading import ReadsX, with_x_map
from sbi_multilevel.level_maps import Moments

Builder = Callable[[Tensor, Tensor], Any]  # builds an estimator of sbi


class WrappedDensity(ConditionalDensityEstimator):
    """A density that is computed from another estimator, which is its `net`.

    Args:
        estimator: An estimator of sbi.
    """

    def __init__(self, estimator: ConditionalEstimator):
        super().__init__(estimator, estimator.input_shape, estimator.condition_shape)

    @property
    def embedding_net(self) -> nn.Module | None:
        """The embedding network of the estimator."""
        return self.net.embedding_net  # pyright: ignore[reportReturnType]

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Negative log density of each sample, shape `(batch_dim,)`."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]


class MappedEstimator(ReadsX, WrappedDensity):
    """An estimator in unconstrained theta and aligned x.

    Args:
        estimator: Estimator of sbi, built on mapped simulations.
        target: Which of the two is the input: `"theta"` (NPE) or `"x"` (NLE).
        unconstrain: Transform from unconstrained theta to theta, as `mcmc_transform`
            returns it inverted; `None` leaves theta as it is.
        moments: Moments of the x that `estimator` was built on.
    """

    def __init__(
        self,
        estimator: ConditionalDensityEstimator,
        target: Target,
        unconstrain: Any,
        moments: Moments,
    ):
        super().__init__(estimator)
        self.target: Target = target
        self.unconstrain = (
            None if unconstrain is None else CallableTransform(unconstrain)
        )
        self.keep_moments(moments)

    def refer_to(self, moments: Moments) -> MappedEstimator:
        """A copy whose x is to be aligned to other moments."""
        copy = deepcopy(self)
        copy.x_mean.copy_(moments.mean)
        copy.x_std.copy_(moments.std)
        return copy

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Log density, shapes as in `ConditionalDensityEstimator.log_prob`."""
        # before the map of x, which broadcasts
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        if self.target == "x":
            entries = math.prod(self.input_shape) / self.x_scale.numel()
            log_det = entries * self.x_scale.abs().log().sum()
            return self.net.log_prob(self.map_x(input), condition) + log_det
        if self.unconstrain is None:
            return self.net.log_prob(input, self.map_x(condition))
        transform = self.unconstrain().inv
        theta = transform(input)
        log_det = transform.log_abs_det_jacobian(input, theta)
        if log_det.ndim < 2:  # no dimension of samples
            log_det = log_det.unsqueeze(0)
        return self.net.log_prob(theta, self.map_x(condition)) + log_det

    def sample(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any
    ) -> Tensor:
        """Samples, shapes as in `ConditionalDensityEstimator.sample`."""
        self._check_condition_shape(condition)
        if self.target == "x":
            mapped = self.net.sample(sample_shape, condition)
            return (mapped - self.x_shift) / self.x_scale
        samples = self.net.sample(sample_shape, self.map_x(condition))
        return samples if self.unconstrain is None else self.unconstrain()(samples)


@dataclass(frozen=True)
class CheckedBuilder:
    """Builds estimators by another builder, and refuses those that cannot be trained.

    Args:
        build: Builder of sbi, or of the user.
        target: `"theta"` (NPE, ratios) or `"x"` (NLE).
        kind: What is to be built.
    """

    build: Builder
    target: Target
    kind: NetworkKind = DENSITY

    def __call__(self, theta: Tensor, x: Tensor) -> Any:
        """Build one, see `MappedBuilder`.

        Raises:
            TypeError: If what is built is of another kind.
            ValueError: If nothing can be built, or its shapes are wrong.
        """
        shapes = theta.shape[1:], x.shape[1:]
        what = f"theta of shape {tuple(shapes[0])} and x of shape {tuple(shapes[1])}"
        argument = self.kind.argument
        try:
            estimator = self.build(theta, x)
        except Exception as error:
            raise ValueError(
                f"{argument} could not build a network for {what}: "
                f"{type(error).__name__}: {error}"
            ) from error
        wanted, builders = self.kind.estimator_type, self.kind.builders
        if self.kind.is_density:
            name = "posterior_nn" if self.target == "theta" else "likelihood_nn"
            builders = f"`{name}(...)` of sbi"
        if not isinstance(estimator, wanted):
            raise TypeError(
                f"{argument} builds a {type(estimator).__name__}, but must build a "
                f"`{wanted.__name__}` here. Pass what {builders} returns, or use the "
                "trainer of that network."
            )
        found = estimator.input_shape, estimator.condition_shape
        if found != (shapes if self.target == "theta" else shapes[::-1]):
            raise ValueError(
                f"{argument} builds a network over shape {tuple(found[0])} given shape "
                f"{tuple(found[1])}, but the simulations have {what}. Pass what "
                f"{builders} returns."
            )
        return estimator


@dataclass(frozen=True)
class MappedBuilder(CheckedBuilder):
    """Builds estimators that read x through a map, densities with a map of theta too.

    Args:
        build: As for `CheckedBuilder`.
        target: As for `CheckedBuilder`.
        kind: As for `CheckedBuilder`.
        prior: Prior whose transform makes theta unconstrained; `None` leaves theta as
            it is.
    """

    prior: Any | None = None

    def __call__(self, theta: Tensor, x: Tensor) -> Any:
        """Build one.

        Args:
            theta: Parameters to z-score by, shape `(n, d)`.
            x: Outputs to z-score by, shape `(n, *x_shape)`.
        """
        build = super().__call__
        if not self.kind.is_density:
            return with_x_map(build(theta, x), Moments.of(x))
        mapped, transform = theta, None
        if self.prior is not None:
            transform = transform_of(self.prior).inv
            mapped = transform.inv(theta)
        estimator = build(mapped, x)
        if isinstance(estimator, MappedEstimator):  # the user wrapped it
            return self.build(theta, x)
        # built with `z_score_theta="transform_to_unconstrained"`
        parts = estimator.modules()
        is_mapped = any(isinstance(part, CallableTransform) for part in parts)
        if transform is not None and is_mapped:
            transform, estimator = None, build(theta, x)
        return MappedEstimator(estimator, self.target, transform, Moments.of(x))


def mapped_builder(
    build: Builder, target: Target, prior: Any | None, kind: NetworkKind = DENSITY
) -> Builder:
    """A `MappedBuilder`, or `build` itself if it is one: theta is mapped once only."""
    if isinstance(build, MappedBuilder):
        return build
    return MappedBuilder(build, target, kind, prior)


def unconstrained(density_estimator: str | Builder, prior: Any) -> Builder:
    """A builder for NPE in unconstrained theta, so that no mass leaks from the prior.

    It works with every estimator of sbi; sbi's own option `z_score_theta=
    "transform_to_unconstrained"` is for zuko's networks and mixtures only, and excludes
    z-scoring. Without leakage `posterior.log_prob(..., norm_posterior=False)` is exact,
    and faster.

    Args:
        density_estimator: Name of a network, or a builder from `posterior_nn`.
        prior: The prior.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.inference import NPE
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(torch.zeros(1), torch.ones(1))
        >>> theta = prior.sample((200,))
        >>> inference = NPE(
        ...     prior, unconstrained("mdn", prior), show_progress_bars=False
        ... )
        >>> _ = inference.append_simulations(theta, theta + 0.01 * torch.randn(200, 1))
        >>> estimator = inference.train(max_num_epochs=1)
        >>> samples = estimator.sample((500,), torch.zeros(1, 1))
        >>> bool(((samples >= 0) & (samples <= 1)).all())
        True
    """
    if not hasattr(prior, "sample") or not hasattr(prior, "log_prob"):
        raise TypeError(
            f"prior is a {type(prior).__name__}, but must be a distribution over "
            "theta. Pass the prior of the trainer."
        )
    if isinstance(density_estimator, str):
        density_estimator = posterior_nn(density_estimator)
    return mapped_builder(density_estimator, "theta", prior)
