r"""The prior, truncated several times: the regions are nested.

After round r let :math:`q_r` be the density that was learned at the observation, and

.. math::

    R_0 = \text{the support of } p, \qquad
    R_{r+1} = R_r \cap B_r \cap \{\theta : q_r(\theta \mid x_o) > \tau_r\},

and :math:`B_r` a box around the last set. Let :math:`\tau` be the threshold above which
the mass :math:`1 - \epsilon` of the draws from :math:`q_r` in :math:`R_r` lies. A
density that was learned from a few high-fidelity simulations is often too narrow, and
what is cut is lost. The region is therefore wider by the factor :math:`s = 1.25` in
each direction,

.. math:: \log \tau_r = \log \tau - \tfrac12 (s^2 - 1)\, \chi^2_{d, 1 - \epsilon},

with the quantile of the :math:`\chi^2` distribution of d parameters, which is exact if
:math:`q_r` is Gaussian. The box is wider likewise.

Of a mixture, :math:`q_r` is the component with the highest held-out log score. The
prior is none (`sbi_multilevel.estimators.mixture`), as the last set would be all of it
otherwise, and networks trained on a few high-fidelity simulations alone can be nearly
as wide: they give the posterior its tails, but would leave the prior whole.

The box saves time: the density is evaluated inside of it alone, and draws from a
uniform prior are drawn inside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from sbi.utils.sbiutils import within_support
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Distribution

from sbi_multilevel.data.priors import has_support
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.utils.seeds import seeded

_BLOCK = 10_000
_NUM_DRAWS = 20_000  # from which the mass of a region is estimated
_WIDENING = 1.25  # of a region, in each direction


@dataclass(frozen=True, eq=False)
class Cut:
    """The parameters at which a density exceeds a threshold.

    Args:
        estimator: Estimator of theta given x.
        x_o: The observation, shape `(1, *x_shape)`.
        threshold: The logarithm of the threshold.
        low: Lower ends of the box, shape `(d_theta,)`.
        high: Upper ends of the box, shape `(d_theta,)`.
    """

    estimator: ConditionalDensityEstimator
    x_o: Tensor
    threshold: float
    low: Tensor
    high: Tensor

    def holds(self, theta: Tensor) -> Tensor:
        """Whether parameters `(n, d_theta)` are in the box and above the threshold."""
        inside = ((theta >= self.low) & (theta <= self.high)).all(dim=1)
        if inside.any():
            values = log_density(self.estimator, theta[inside], self.x_o)
            inside[inside.clone()] = values > self.threshold
        return inside


class TruncatedPrior(Distribution):
    """The prior inside of all cuts, see the module; it can be pickled.

    Args:
        prior: The whole prior.
        cuts: What is left out, in the order of rounds.
        max_draws: Draws from the whole prior after which sampling stops with an error
            if none was accepted.

    Raises:
        ValueError: If the prior cannot be sampled, or has no density or support.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> prior = TruncatedPrior(BoxUniform(torch.zeros(2), torch.ones(2)))
        >>> prior.sample((3,)).shape, prior.acceptance
        (torch.Size([3, 2]), 1.0)
    """

    def __init__(
        self, prior: Any, cuts: Sequence[Cut] = (), max_draws: int = 1_000_000
    ):
        check_truncatable(prior)
        self.whole, self.cuts, self.max_draws = prior, tuple(cuts), max_draws
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=False)

    def cut(
        self, estimator: Any, x_o: Tensor, truncation: Truncation
    ) -> TruncatedPrior:
        """This prior inside of the region of highest density of an estimator.

        Args:
            estimator: Estimator of theta given x; if the prior is a component of it,
                that component is left out.
            x_o: The observation, shape `(1, *x_shape)`.
            truncation: How much of the mass is outside.

        Raises:
            RuntimeError: If all draws from the estimator lie outside of this prior.
        """
        estimator = parts_of(estimator)
        count, drawn = truncation.num_samples, []
        with torch.no_grad():
            for first in range(0, count, _BLOCK):
                num = min(_BLOCK, count - first)
                sample = estimator.sample(torch.Size((num,)), x_o)
                drawn.append(sample.reshape(-1, *self.event_shape))
        theta = torch.cat(drawn)
        theta = theta[self.contains(theta)]
        if len(theta) == 0:
            raise RuntimeError(
                f"None of {count} draws from the posterior of this round lies in "
                "the truncated prior, so truncation keeps nothing. Use more "
                "simulations per round, a larger epsilon in `Truncation`, or check "
                "that the prior can produce this observation."
            )
        values = log_density(estimator, theta, x_o)
        threshold = float(values.sort().values[int(truncation.epsilon * len(values))])
        inside = theta[values > threshold]
        if len(inside) == 0:
            raise RuntimeError(
                "The posterior of this round is a single point, so truncation keeps "
                "nothing. Use more simulations per round."
            )
        low, high = inside.amin(dim=0), inside.amax(dim=0)
        margin = (_WIDENING - 1) / 2 * (high - low)
        quantile = chi2.ppf(1 - truncation.epsilon, theta[0].numel())
        threshold -= float(quantile) * (_WIDENING**2 - 1) / 2
        return self.inside(Cut(estimator, x_o, threshold, low - margin, high + margin))

    def inside(self, cut: Cut) -> TruncatedPrior:
        """This prior inside of one more cut."""
        return TruncatedPrior(self.whole, [*self.cuts, cut], self.max_draws)

    def contains(self, theta: Tensor) -> Tensor:
        """Whether parameters `(n, d_theta)` lie in the region, shape `(n,)`."""
        if len(theta) == 0:
            return torch.zeros(0, dtype=torch.bool)
        inside = within_support(self.whole, theta)
        for cut in self.cuts:
            index = inside.nonzero()[:, 0]
            inside[index] = cut.holds(theta[index])
        return inside

    @cached_property
    def acceptance(self) -> float:
        """Share of draws from the whole prior in the region, always the same draws.

        Raises:
            RuntimeError: If there are none.
        """
        if not self.cuts:
            return 1.0
        with seeded(0):
            return self._draw(0, least=_NUM_DRAWS)[1]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws, shape `(*sample_shape, d_theta)`.

        Raises:
            RuntimeError: If none of `max_draws` draws from the prior is in the region.
        """
        shape = torch.Size(sample_shape)
        if not self.cuts:
            return self.whole.sample(shape)
        theta = self._draw(shape.numel())[0][: shape.numel()]
        return theta.reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, shape `(n,)`; -inf outside of the region."""
        if not self.cuts:
            return self.whole.log_prob(value)
        flat = value.reshape(-1, *self.event_shape)
        inside, total = self.contains(flat), flat.new_full((len(flat),), -torch.inf)
        if inside.any():
            total[inside] = self.whole.log_prob(flat[inside])
        total = total - torch.tensor(self.acceptance).log()
        return total.reshape(value.shape[:-1])

    @property
    def support(self) -> Any:
        """The support of the whole prior, by which parameters are unconstrained."""
        return self.whole.support

    @property
    def mean(self) -> Tensor:
        """That of the whole prior, by which sbi scales parameters without bounds."""
        return self.whole.mean

    @property
    def variance(self) -> Tensor:
        """That of the whole prior, see `mean`."""
        return self.whole.variance

    def _draw(self, num: int, least: int = 0) -> tuple[Tensor, float]:
        """At least `num` draws, and the share of draws from the prior accepted."""
        kept, found, total = [], 0, 0
        source, share = self._in_box()
        while found < max(num, 1) or total < least:
            theta = source.sample(torch.Size((_BLOCK,)))
            theta = theta[self.contains(theta)]
            kept.append(theta)
            found, total = found + len(theta), total + _BLOCK
            if found == 0 and total >= self.max_draws:
                raise RuntimeError(
                    f"The truncated prior accepted 0 of {total} draws from the prior. "
                    "Use a larger epsilon or max_draws in `Truncation`, more "
                    "simulations per round, or check that the prior can produce this "
                    "observation."
                )
        return torch.cat(kept), share * found / total

    def _in_box(self) -> tuple[Any, float]:
        """A uniform prior in the boxes of all cuts, and its share of the whole one."""
        if not isinstance(self.whole, BoxUniform):
            return self.whole, 1.0
        ends = self.whole.base_dist.low, self.whole.base_dist.high
        low = torch.stack([ends[0], *(cut.low for cut in self.cuts)]).amax(dim=0)
        high = torch.stack([ends[1], *(cut.high for cut in self.cuts)]).amin(dim=0)
        share = float(((high - low) / (ends[1] - ends[0])).prod())
        return BoxUniform(low, high), share


def component_of(estimator: MixtureEstimator, weights: Tensor) -> MixtureEstimator:
    """The members of a mixture that have a weight, without the prior.

    Args:
        estimator: The mixture.
        weights: Weight of each member, shape `(k,)`.

    Raises:
        RuntimeError: If none has a weight.
    """
    if not bool(weights.sum() > 0):
        raise RuntimeError(
            "The prior has all the weight of the posterior of this round, so that "
            "nothing was learned to truncate it by. Use more simulations per round."
        )
    chosen = [each for each, w in zip(estimator.members, weights) if w > 0]
    positive = weights[weights > 0]
    return MixtureEstimator(chosen, positive, estimator.target, estimator.tails).eval()


def parts_of(estimator: Any) -> Any:
    """An estimator without the prior among its components, with the same networks."""
    if not isinstance(estimator, MixtureEstimator) or estimator.prior is None:
        return estimator
    return component_of(estimator, estimator.member_weights)


@torch.no_grad()
def log_density(estimator: Any, theta: Tensor, x_o: Tensor) -> Tensor:
    """Log density at parameters `(n, d_theta)` given one observation, shape `(n,)`."""
    blocks = (part.unsqueeze(1) for part in theta.split(_BLOCK))
    return torch.cat([estimator.log_prob(part, x_o)[:, 0] for part in blocks])


def check_truncatable(prior: Any) -> None:
    """Raise unless a prior has what truncation needs.

    Raises:
        ValueError: If not.
    """
    missing = [name for name in ("sample", "log_prob") if not hasattr(prior, name)]
    if not missing and not has_support(prior):
        missing = ["support"]
    if missing:
        raise ValueError(
            f"prior is a {type(prior).__name__} without {' and '.join(missing)}, which "
            "rounds need to draw from a part of it. Pass a distribution of PyTorch or "
            "sbi, e.g. `BoxUniform(low, high)`."
        )
