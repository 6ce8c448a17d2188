r"""A mixture of ratio estimators of sbi, as one ratio estimator.

A ratio estimator :math:`r_k(\theta, x) = e^{h_k(\theta, x)}` defines the posterior
:math:`q_k(\theta \mid x) = p(\theta)\, r_k(\theta, x) / Z_k(x)`, with :math:`Z_k(x)`
its mean over the prior. The ratio of the mixture :math:`\sum_k w_k q_k` to the prior is

.. math::

    r(\theta, x) = \sum_k w_k \frac{r_k(\theta, t(x))}{Z_k(x)} + w_p, \qquad
    Z_k(x) \approx \frac1M \sum_m r_k(\theta_m, t(x)), \quad \theta_m \sim p(\theta),

where t transforms the tails of x (`sbi_multilevel.level_maps.tail_transform`) and
:math:`w_p` is the weight of the prior, if it is a component. At the optimum Z is 1 for
NRE-A, NRE-C and BNRE, and an unknown function of x for NRE-B. The :math:`\theta_m` are
the same for all components, so that their error changes the weights of components with
similar posteriors alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn

from sbi_multilevel.estimators.reading import KeepsTails
from sbi_multilevel.level_maps.tail_transform import TailTransform

_CHUNK = 200_000  # pairs of theta and x in one pass


class MixtureRatio(KeepsTails, RatioEstimator):
    """See the module.

    Args:
        members: Trained ratio estimators of the same theta and x.
        weights: Weight of each, shape `(k,)`; with a prior, its weight last. They are
            normalized.
        reference: Parameters drawn from the prior, shape `(M, d_theta)`.
        tails: Transform of the tails of x; `None` leaves x as it is.

    Raises:
        ValueError: If the weights do not fit the components.
    """

    weights: Tensor
    reference: Tensor

    def __init__(
        self,
        members: Sequence[RatioEstimator],
        weights: Tensor,
        reference: Tensor,
        tails: TailTransform | None = None,
    ):
        first = members[0]
        super().__init__(nn.ModuleList(members), first.theta_shape, first.x_shape)
        sizes = len(members), len(members) + 1
        if weights.shape not in [(n,) for n in sizes] or not bool((weights >= 0).all()):
            raise ValueError(
                f"weights must be {sizes[0]} numbers >= 0, one a component, or "
                f"{sizes[1]} with the prior, but are {weights.tolist()}."
            )
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("reference", reference)
        self.keep_tails(tails)
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def members(self) -> list[RatioEstimator]:
        """The ratio estimators."""
        return list(self.net)  # pyright: ignore[reportArgumentType, reportReturnType]

    def unnormalized_log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log ratio, shapes as in `RatioEstimator.unnormalized_log_ratio`.

        Raises:
            ValueError: If x has another shape than in training.
        """
        found = x.shape[x.ndim - len(self.x_shape) :]
        if found != self.x_shape:
            raise ValueError(
                f"x has shape {tuple(found)}, but an x of the simulations has shape "
                f"{tuple(self.x_shape)}. Pass observations of this shape."
            )
        given = self.transform_tails(x)
        normalizers = self._log_normalizers(given)
        values = [
            member(theta, given) - log_z
            for member, log_z in zip(self.members, normalizers)
        ]
        if len(self.weights) > len(values):
            values.append(torch.zeros_like(values[0]))  # the prior
        log_weights = self.weights.log().reshape(-1, *[1] * values[0].ndim)
        return torch.logsumexp(torch.stack(values) + log_weights, dim=0)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_last": None}

    @torch.no_grad()
    def _log_normalizers(self, x: Tensor) -> Tensor:
        """Log Z of each member, shape `(k, *batch)`, for x of shape `(*batch, ...)`."""
        flat = x.reshape(-1, *self.x_shape)
        if bool((flat == flat[:1]).all()):  # one observation, mostly the same as before
            if self._last is None or not torch.equal(self._last[0], flat[:1]):
                self._last = flat[:1].clone(), self._of_distinct(flat[:1])
            found = self._last[1].expand(-1, len(flat))
        else:
            distinct, index = flat.unique(dim=0, return_inverse=True)
            found = self._of_distinct(distinct)[:, index]
        return found.reshape(-1, *x.shape[: x.ndim - len(self.x_shape)])

    def _of_distinct(self, x: Tensor) -> Tensor:
        """Log Z of each member at each x, shapes `(k, n)` for `(n, *x_shape)`."""
        count, parts = len(self.reference), []
        for some in x.split(max(_CHUNK // count, 1)):
            theta = self.reference.repeat(len(some), 1)
            each = some.repeat_interleave(count, dim=0)
            logits = torch.stack([member(theta, each) for member in self.members])
            total = logits.reshape(-1, len(some), count).logsumexp(dim=2)
            parts.append(total - math.log(count))
        return torch.cat(parts, dim=1)
