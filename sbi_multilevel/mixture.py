r"""A mixture of estimators of sbi, as one estimator of sbi.

.. math::

    q(\theta \mid x) = \sum_k w_k\, q_k(\theta \mid t(x)), \qquad
    q(x \mid \theta) = |\det t'(x)| \sum_k w_k\, q_k(t(x) \mid \theta),

where t tames the tails of x (`sbi_multilevel.alignment.tails`). One of the components
of a posterior may be the prior. Whatever sbi builds on an estimator takes it as it is:
direct posteriors, MCMC, SBC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import within_support
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from typing_extensions import Self

from sbi_multilevel.alignment.tails import Tails
from sbi_multilevel.estimators import Modelled


class MixtureEstimator(ConditionalDensityEstimator):
    """See the module.

    Args:
        members: Trained estimators, of the same input and condition.
        weights: Weight of each, shape `(k,)`; with a prior, its weight last. They are
            brought to sum 1.
        modelled: Which of the two is the input: `"theta"` (NPE) or `"x"` (NLE).
        tails: What tames the tails of x; `None` leaves x as it is.
        prior: A further component over theta that ignores x.

    Raises:
        ValueError: If the weights do not fit the components.
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[ConditionalDensityEstimator],
        weights: Tensor,
        modelled: Modelled,
        tails: Tails | None = None,
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
        if prior is not None and modelled == "x":
            raise ValueError("prior is a density of theta, but x is modelled.")
        self.modelled: Modelled = modelled
        self.tails = tails
        self.prior = prior
        self.register_buffer("weights", weights / weights.sum())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device with the prior, which is no module."""
        before = self.weights.device
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
    def embedding_net(self) -> nn.Module | None:
        """The embedding network of the first member; each has its own."""
        return self.members[0].embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Log density, shapes as in `ConditionalDensityEstimator.log_prob`."""
        tamed, given = input, condition
        if self.tails is not None:
            if self.modelled == "x":
                tamed = self.tails(input)
            else:
                given = self.tails(condition)
        # where one member has no density the others still have
        values = [
            torch.nan_to_num(member.log_prob(tamed, given), nan=-torch.inf)
            for member in self.members
        ]
        if self.prior is not None:
            values.append(self._prior_log_prob(input).expand_as(values[0]))
        log_weights = self.weights.log().reshape(-1, *[1] * values[0].ndim)
        total = torch.logsumexp(torch.stack(values) + log_weights, dim=0)
        if self.tails is not None and self.modelled == "x":
            total = total + self.tails.log_det(input)
        return total

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Negative log density of each row, shape `(batch_dim,)`."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any
    ) -> Tensor:
        """Samples, shapes as in `ConditionalDensityEstimator.sample`.

        Each has a component of its own.
        """
        count = torch.Size(sample_shape).numel()
        given = condition
        if self.tails is not None and self.modelled == "theta":
            given = self.tails(condition)
        chosen = torch.multinomial(self.weights, count * len(given), replacement=True)
        chosen = chosen.reshape(count, len(given))
        samples = given.new_empty(count, len(given), *self.input_shape)
        for component in chosen.unique().tolist():
            places = chosen == component
            # as many for each row as the row that needs most
            nth = places.cumsum(dim=0) - 1
            drawn = self._draw(component, int(nth.max()) + 1, given)
            row = torch.arange(len(given), device=given.device).expand_as(nth)
            samples[places] = drawn[nth[places], row[places]]
        if self.tails is not None and self.modelled == "x":
            samples = self.tails.inverse(samples)
        return samples.reshape(*sample_shape, len(given), *self.input_shape)

    def _draw(self, component: int, count: int, condition: Tensor) -> Tensor:
        shape = torch.Size((count,))
        if component < len(self.members):
            return self.members[component].sample(shape, condition)
        assert self.prior is not None
        # priors of sbi made of several take one dimension of samples
        drawn = self.prior.sample(torch.Size((count * len(condition),)))
        return drawn.reshape(count, len(condition), *self.input_shape)

    def _prior_log_prob(self, theta: Tensor) -> Tensor:
        """Log density of the prior, -inf outside its support."""
        flat = theta.reshape(-1, theta.shape[-1])
        inside = within_support(self.prior, flat)
        values = flat.new_full((len(flat),), -torch.inf)
        if inside.any():
            values[inside] = self.prior.log_prob(flat[inside])  # pyright: ignore[reportOptionalMemberAccess]
        return values.reshape(theta.shape[:-1])
