"""The region of a posterior with the prior as a component, known in closed form.

.. math:: x = \\theta + 0.3\\, u, \\quad \\theta \\sim N(0, I), \\; u \\sim N(0, I)

has the posterior :math:`N(x / 1.09, 0.09 / 1.09\\, I)`, and its region of highest
density is a disc.
"""

import logging
import math

import pytest
import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import RestrictedPrior, get_density_thresholder
from scipy.stats import ncx2
from torch.distributions import MultivariateNormal

from sbi_multilevel import Truncation, without_prior
from sbi_multilevel.data.moments import Moments
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.estimators.transformed import MappedEstimator

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
X_O, VARIANCE = torch.tensor([[0.5, -0.4]]), 0.09 / 1.09
TRUNCATION = Truncation(epsilon=0.01, num_samples=20_000)
# the disc has the squared radius -2 log(epsilon) in units of the variance
EXACT = ncx2.cdf(-2 * math.log(0.01) * VARIANCE, 2, float((X_O / 1.09).square().sum()))


class ExactPosterior(ConditionalDensityEstimator):
    """The posterior as an estimator of sbi, for any standard deviation of the noise."""

    def __init__(self, noise=0.3):
        super().__init__(torch.nn.Identity(), torch.Size((2,)), torch.Size((2,)))
        self.noise = noise

    def _at(self, x):
        precision = 1 + self.noise**-2
        mean = x / self.noise**2 / precision
        return MultivariateNormal(mean, torch.eye(2) / precision)

    def log_prob(self, input, condition, **kwargs):
        return self._at(condition).log_prob(input)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        return self._at(condition).sample(sample_shape)


def mixture(weight):
    weights = torch.tensor([1 - weight, weight])
    return MixtureEstimator([ExactPosterior()], weights, "theta", prior=PRIOR)


def direct(estimator):
    return DirectPosterior(estimator, PRIOR).set_default_x(X_O)


def ensemble(estimator):
    posteriors = [DirectPosterior(each, PRIOR) for each in (estimator, mixture(0.1))]
    return EnsemblePosterior(posteriors).set_default_x(X_O)


def inside_another(estimator):
    x = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    return direct(MappedEstimator(estimator, "theta", None, Moments.of(x)))


def share(posterior):
    """Share of the prior inside the region, of 20 000 draws."""
    torch.manual_seed(1)
    inside = TRUNCATION.truncate(posterior, PRIOR)._accept_reject_fn
    return inside(PRIOR.sample((20_000,))).float().mean().item()


@pytest.mark.parametrize("weight", (0.0, 0.05, 0.5))
@pytest.mark.parametrize("build", (direct, ensemble, inside_another))
def test_the_region_is_that_of_the_posterior_without_the_prior(build, weight):
    # the errors of the threshold and of the share are 0.01 and 0.003
    assert share(build(mixture(weight))) == pytest.approx(EXACT, abs=0.04)
    assert EXACT < 0.35


@pytest.mark.parametrize("build", (direct, ensemble, inside_another))
def test_a_posterior_without_the_prior_works_with_sbi(build):
    posterior = build(mixture(0.5))
    shares = []
    for each in (posterior, without_prior(posterior)):
        torch.manual_seed(1)
        inside = get_density_thresholder(each, 0.01, 20_000)
        RestrictedPrior(PRIOR, inside).sample((5,), print_rejected_frac=False)
        shares.append(inside(PRIOR.sample((20_000,))).float().mean().item())
    assert shares[0] > 0.9  # with the prior the region is almost all of the prior
    assert shares[1] == pytest.approx(EXACT, abs=0.04)


def test_leaving_out_the_prior_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="sbi_multilevel"):
        share(direct(ExactPosterior()))
        assert not caplog.records
        share(direct(mixture(0.1)))
    assert "without this component" in caplog.text


def test_leaving_out_the_prior_changes_nothing_else():
    members = [ExactPosterior(), ExactPosterior()]
    weights = torch.tensor([0.2, 0.6, 0.2])
    estimator = MixtureEstimator(members, weights, "theta", prior=PRIOR)
    posterior = direct(estimator)
    alone = without_prior(posterior)
    assert torch.allclose(alone.posterior_estimator.weights, torch.tensor([0.25, 0.75]))
    assert torch.equal(alone.default_x, X_O)
    theta = PRIOR.sample((10,))
    expected = ExactPosterior().log_prob(theta, X_O)
    for each in (
        alone.log_prob(theta, norm_posterior=False),
        alone.potential(theta),
        estimator.without_prior().log_prob(theta[:, None], X_O)[:, 0],
    ):
        assert torch.allclose(each, expected, atol=1e-5)
    assert estimator.prior is PRIOR and torch.equal(estimator.weights, weights)
    assert without_prior(alone) is alone
    assert estimator.without_prior().without_prior().prior is None


def test_a_mixture_of_the_prior_alone_is_refused():
    with pytest.raises(ValueError, match="give the prior all the weight"):
        share(direct(mixture(1.0)))
