"""Priors: checks, densities and transforms, for all that trainers of sbi accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sbi.utils import mcmc_transform
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution, Independent

if TYPE_CHECKING:
    from sbi_multilevel.data.simulations import LevelSimulations


def check_prior(prior: Any) -> None:
    """Raise unless trainers of sbi accept the prior."""
    if prior is not None and not isinstance(prior, Distribution):
        raise TypeError(
            f"prior is a {type(prior).__name__}, but must be a distribution of PyTorch "
            "or sbi, e.g. `BoxUniform(low, high)`. For other priors see "
            "`sbi.utils.user_input_checks.process_prior`."
        )


def has_support(prior: Any) -> bool:
    """Whether a prior has a `support`; distributions of users may have none."""
    try:
        return prior.support is not None
    except (AttributeError, NotImplementedError):
        return False


def check_width(level: LevelSimulations, prior: Any) -> None:
    """Raise if theta has another number of columns than the prior has parameters."""
    shape = getattr(prior, "event_shape", ()) or getattr(prior, "batch_shape", ())
    if len(shape) == 1 and level.theta.shape[1:] != shape:
        raise ValueError(
            f"theta of level {level.level} has {level.theta.shape[1]} columns, but the "
            f"prior has {shape[0]} parameters. Pass all parameters, or the prior of "
            "these."
        )


def check_inside(prior: Any, level: LevelSimulations) -> None:
    """Raise if theta of a simulation lies outside the support of the prior."""
    outside = ~within_support(prior, level.theta)
    if outside.any():
        raise ValueError(
            f"theta of {int(outside.sum())} of {len(level)} simulations of level "
            f"{level.level} lies outside the support of the prior, e.g. "
            f"{level.theta[outside][0].tolist()}. Leave these simulations out, pass "
            "the prior they were drawn from, or set "
            "`unconstrained=False` in the config."
        )


def as_one_prior(prior: Any) -> Any:
    """A batch of scalar priors as one prior of theta; other priors as they are."""
    is_batch = len(getattr(prior, "batch_shape", ())) == 1 and not prior.event_shape
    return Independent(prior, 1) if is_batch else prior


def log_prob_of(prior: Any, theta: Tensor) -> Tensor:
    """Log density of the prior, shape `(n,)`, also of a batch of scalar priors.

    Args:
        prior: The prior, e.g. a `Uniform` of several parameters.
        theta: Parameters, shape `(n, d_theta)`.
    """
    values = prior.log_prob(theta)
    return values.sum(dim=-1) if values.ndim > 1 else values


def transform_of(prior: Any) -> Any:
    """sbi's transform from theta to unconstrained space.

    Raises:
        ValueError: If the prior has none.
    """
    try:
        return mcmc_transform(prior)
    except AssertionError as error:
        raise ValueError(
            f"prior={prior} has no finite mean and standard deviation, by which sbi "
            "scales parameters without bounds. Pass a prior that has both, e.g. a "
            "Student-t distribution of more than 2 degrees of freedom. To build a "
            "posterior by NPE without this scaling, pass "
            "`posterior_parameters=DirectPosteriorParameters(enable_transform=False)`."
        ) from error
