r"""A mixture of estimators of sbi, as one estimator of sbi.

.. math::

    q(\theta \mid x) = \sum_k w_k\, q_k(\theta \mid t(x)), \qquad
    q(x \mid \theta) = |\det t'(x)| \sum_k w_k\, q_k(t(x) \mid \theta),

where t transforms the tails of x (`sbi_multilevel.level_maps.tail_transform`). One of
the components of a posterior may be the prior. sbi uses the mixture like any estimator:
for direct posteriors, MCMC and SBC.

A component that is the prior has a density everywhere in the support. The region of
highest density that leaves out less than its weight, which is about :math:`1 / (n + 1)`
or more for n high-fidelity simulations, is then all or most of the prior, so truncating
the prior to it removes little. `without_prior` leaves that component out;
`sbi_multilevel.Truncation` and `sbi_multilevel.MFTSNPE` do so automatically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import within_support
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from typing_extensions import Self

from sbi_multilevel.data.priors import log_prob_of
from sbi_multilevel.data.simulations import Target
from sbi_multilevel.estimators.reading import KeepsTails
from sbi_multilevel.level_maps.tail_transform import TailTransform

Posterior = TypeVar("Posterior")


class MixtureEstimator(KeepsTails, ConditionalDensityEstimator):
    """See the module.

    Args:
        members: Trained estimators, of the same input and condition.
        weights: Weight of each, shape `(k,)`; with a prior, its weight last. They are
            normalized.
        target: Which of the two is the input: `"theta"` (NPE) or `"x"` (NLE).
        tails: Transform of the tails of x; `None` leaves x as it is.
        prior: A further component over theta that ignores x.

    Raises:
        ValueError: If the weights do not fit the components.
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[ConditionalDensityEstimator],
        weights: Tensor,
        target: Target,
        tails: TailTransform | None = None,
        prior: Any | None = None,
    ):
        first = members[0]
        net = nn.ModuleList(members)
        super().__init__(net, first.input_shape, first.condition_shape)
        count = len(members) + (prior is not None)
        if weights.shape != (count,) or not bool((weights >= 0).all()):
            raise ValueError(
                f"weights must be {count} numbers >= 0, one a component, but are "
                f"{weights.tolist()}."
            )
        if prior is not None and target == "x":
            raise ValueError(
                "prior is a density of theta, but target='x'. Leave the prior out."
            )
        self.target: Target = target
        self.keep_tails(tails)
        self.prior = prior
        self.register_buffer("weights", weights / weights.sum())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device with the prior, which is no module."""
        before = self.weights.device
        try:
            fn(torch.empty(0, dtype=torch.float64, device=before))
        except TypeError:  # mps has no double precision
            for name, value in self.named_buffers(recurse=False):
                setattr(self, name, value.float())
        super()._apply(fn, recurse)
        device = self.weights.device
        # a user's own prior, as sbi wraps it, refuses every move, even to where it is
        if self.prior is not None and device != before:
            # a copy: the prior is the user's
            self.prior = move_distribution_to_device(deepcopy(self.prior), device)
        return self

    @property
    def members(self) -> list[ConditionalDensityEstimator]:
        """The estimators, without the prior."""
        return list(self.net)  # pyright: ignore[reportArgumentType]

    @property
    def member_weights(self) -> Tensor:
        """Weight of each estimator; their sum is below 1 if the prior has a weight."""
        return self.weights[: len(self.members)]

    def without_prior(self) -> MixtureEstimator:
        """A copy without the prior among its components; ratios of weights stay.

        Raises:
            ValueError: If the prior has all the weight.
        """
        copy = deepcopy(self)
        copy._leave_out_prior()
        return copy

    def _leave_out_prior(self) -> None:
        if self.prior is None:
            return
        weights = self.member_weights
        if not bool(weights.sum() > 0):
            raise ValueError(
                f"weights={self.weights.tolist()} give the prior all the weight, so no "
                "component is left without it. Train on more simulations."
            )
        self.prior, self.weights = None, weights / weights.sum()

    @property
    def embedding_net(self) -> nn.Module | None:
        """The embedding network of the first member; each has its own."""
        return self.members[0].embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Log density, shapes as in `ConditionalDensityEstimator.log_prob`."""
        # before the transform of tails, which broadcasts
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        inner, given = input, condition
        if self.target == "x":
            inner = self.transform_tails(input)
        else:
            given = self.transform_tails(condition)
        # NaN of one member is no density; the other members have theirs
        values = [
            torch.nan_to_num(member.log_prob(inner, given), nan=-torch.inf)
            for member in self.members
        ]
        if self.prior is not None:
            values.append(self.prior_log_prob(input).expand_as(values[0]))
        log_weights = self.weights.log().reshape(-1, *[1] * values[0].ndim)
        total = torch.logsumexp(torch.stack(values) + log_weights, dim=0)
        if self.tails is not None and self.target == "x":
            total = total + self.tails.log_abs_det_jacobian(input, inner)
        return total

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Negative log density of each sample, shape `(batch_dim,)`."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any
    ) -> Tensor:
        """Samples, each of a component drawn at random.

        Shapes are as in `ConditionalDensityEstimator.sample`.
        """
        self._check_condition_shape(condition)
        count = torch.Size(sample_shape).numel()
        given = condition if self.target == "x" else self.transform_tails(condition)
        chosen = torch.multinomial(self.weights, count * len(given), replacement=True)
        chosen = chosen.reshape(count, len(given))
        samples = given.new_empty(count, len(given), *self.input_shape)
        for component in chosen.unique().tolist():
            places = chosen == component
            # as many for each condition as the one that needs most
            nth = places.cumsum(dim=0) - 1
            most = int(nth.max()) + 1
            if component < len(self.members):
                drawn = self.members[component].sample(torch.Size((most,)), given)
            else:  # the prior: `MultipleIndependent` takes one dimension of samples
                drawn = self.prior.sample(torch.Size((most * len(given),)))  # pyright: ignore[reportOptionalMemberAccess]
                drawn = drawn.reshape(most, len(given), *self.input_shape)
            samples[places] = drawn[nth[places], places.nonzero()[:, 1]]
        if self.tails is not None and self.target == "x":
            samples = self.tails.inv(samples)
        shape = (*sample_shape, len(given), *self.input_shape)
        return samples.reshape(shape)  # pyright: ignore[reportOptionalMemberAccess]

    def prior_log_prob(self, theta: Tensor) -> Tensor:
        """Log density of the prior, -inf outside its support."""
        flat = theta.reshape(-1, theta.shape[-1])
        inside = within_support(self.prior, flat)
        values = flat.new_full((len(flat),), -torch.inf)
        if inside.any():
            values[inside] = log_prob_of(self.prior, flat[inside])
        return values.reshape(theta.shape[:-1])


def without_prior(posterior: Posterior) -> Posterior:
    """A posterior without the prior among its components, e.g. to truncate the prior.

    The posterior of `HybridNPE` is a mixture that contains the prior
    (`sbi_multilevel.estimators.mixture`). Use what is returned here for its region of
    highest density only.

    Args:
        posterior: Posterior of sbi, also an `EnsemblePosterior`, with any estimator.

    Returns:
        A copy without the prior component, or the posterior itself if it has none.

    Raises:
        ValueError: If the prior has all the weight.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.inference import DirectPosterior
        >>> from sbi.neural_nets import posterior_nn
        >>> from sbi.utils import RestrictedPrior, get_density_thresholder
        >>> from torch.distributions import MultivariateNormal
        >>> prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> _ = torch.manual_seed(0)
        >>> theta = 0.1 * torch.randn(100, 1)  # the network starts at their moments
        >>> network = posterior_nn("mdn")(theta, theta)
        >>> weights = torch.tensor([0.9, 0.1])
        >>> mixture = MixtureEstimator([network], weights, "theta", prior=prior)
        >>> posterior = DirectPosterior(mixture, prior).set_default_x(torch.zeros(1, 1))
        >>> theta = prior.sample((1_000,))
        >>> inside = get_density_thresholder(posterior, 1e-3, 10_000)
        >>> bool(inside(theta).float().mean() > 0.9)  # of the prior
        True
        >>> inside = get_density_thresholder(without_prior(posterior), 1e-3, 10_000)
        >>> bool(inside(theta).float().mean() < 0.5)
        True
        >>> proposal = RestrictedPrior(prior, inside)
    """
    if not _mixtures_with_prior(posterior):
        return posterior
    posterior = deepcopy(posterior)
    for mixture in _mixtures_with_prior(posterior):
        mixture._leave_out_prior()
    return posterior


def _mixtures_with_prior(posterior: Any) -> list[MixtureEstimator]:
    """The mixtures of a posterior, or of an ensemble of posteriors."""
    posteriors = getattr(posterior, "posteriors", [posterior])
    potentials = [getattr(each, "potential_fn", None) for each in posteriors]
    estimators = [getattr(each, "posterior_estimator", None) for each in potentials]
    return [
        part
        for estimator in estimators
        if isinstance(estimator, nn.Module)
        for part in estimator.modules()  # the mixture may be inside another estimator
        if isinstance(part, MixtureEstimator) and part.prior is not None
    ]
