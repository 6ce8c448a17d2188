"""Mixtures of ratios, densities of vector fields, and how networks read x."""

import math

import pytest
import torch
from sbi.neural_nets import classifier_nn, posterior_flow_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch.distributions import Normal

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.estimators.mixture_ratio import MixtureRatio
from sbi_multilevel.estimators.reading import TailMap, with_x_map, x_reader
from sbi_multilevel.estimators.vector_field_density import VectorFieldDensity
from sbi_multilevel.level_maps.affine import AffineMap
from sbi_multilevel.level_maps.tail_transform import TailTransform


class GaussianRatio(RatioEstimator):
    """The ratio of x = theta + s u, with theta and u standard normal, and a factor."""

    def __init__(self, scale, log_factor=0.0):
        super().__init__(torch.nn.Identity(), (1,), (1,))
        self.scale, self.log_factor = scale, log_factor

    def unnormalized_log_ratio(self, theta, x):
        evidence = Normal(0.0, math.hypot(1.0, self.scale)).log_prob(x)
        likelihood = Normal(theta, self.scale).log_prob(x)
        # the factor of NRE-B may depend on x
        return (likelihood - evidence + self.log_factor * (1 + x**2))[..., 0]


@pytest.fixture
def reference():
    return Normal(0.0, 1.0).icdf((torch.arange(2_000) + 0.5) / 2_000)[:, None]


@pytest.mark.parametrize("x_o", [torch.tensor([[0.7]]), torch.tensor([[0.7], [-1.0]])])
def test_a_mixture_of_ratios_is_that_of_their_posteriors(reference, x_o):
    theta, x = torch.linspace(-1, 1, len(x_o) * 3)[:, None], x_o.repeat(3, 1)
    parts = [GaussianRatio(0.8), GaussianRatio(1.5, log_factor=2.0)]
    exact = torch.stack([GaussianRatio(s)(theta, x).exp() for s in (0.8, 1.5)])
    weights = torch.tensor([0.5, 0.3, 0.2])  # the last is that of the prior
    found = MixtureRatio(parts, weights, reference)(theta, x).exp()
    expected = 0.5 * exact[0] + 0.3 * exact[1] + 0.2
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    without = MixtureRatio(parts, weights[:2], reference)(theta, x).exp()
    torch.testing.assert_close(without, (found - 0.2) / 0.8, rtol=1e-4, atol=1e-4)


def test_a_mixture_of_ratios_follows_the_observation(reference):
    parts, weights = [GaussianRatio(0.8, 1.0)], torch.tensor([0.6, 0.4])
    used = MixtureRatio(parts, weights, reference)
    for value in (0.0, 2.0, 0.0):
        theta, x = torch.zeros(1, 1), torch.tensor([[value]])
        fresh = MixtureRatio(parts, weights, reference)
        assert torch.equal(used(theta, x), fresh(theta, x))


def test_weights_of_a_mixture_of_ratios_are_checked(reference):
    with pytest.raises(ValueError, match="weights must be 1 numbers >= 0"):
        MixtureRatio([GaussianRatio(1.0)], torch.ones(3), reference)


@pytest.fixture
def field():
    torch.manual_seed(0)
    theta = 0.5 + 2 * torch.randn(500, 1)
    return posterior_flow_nn("mlp")(theta, theta + torch.randn(500, 1)).eval()


def test_the_density_of_a_vector_field_is_that_of_its_samples(field):
    density, x = VectorFieldDensity(field), torch.tensor([[0.3], [-2.0]])
    grid = torch.linspace(-12, 14, 400)
    log_probs = density.log_prob(grid[:, None, None].expand(-1, 2, -1), x)
    masses = log_probs.exp() * (grid[1] - grid[0])
    torch.testing.assert_close(masses.sum(dim=0), torch.ones(2), rtol=0.02, atol=0.02)
    mean = (masses * grid[:, None]).sum(dim=0)
    deviation = (masses * (grid[:, None] - mean) ** 2).sum(dim=0).sqrt()
    samples = density.sample(torch.Size((4_000,)), x)[..., 0]
    assert ((samples.mean(dim=0) - mean).abs() < 5 * deviation / 4_000**0.5).all()
    loss = density.loss(grid[200:202, None], x)
    torch.testing.assert_close(-loss, log_probs[200:202].diagonal())


@pytest.mark.parametrize("build", [classifier_nn("mlp"), posterior_flow_nn("mlp")])
def test_networks_read_x_through_a_map(build):
    theta, x = torch.randn(100, 2), torch.randn(100, 2)
    plain = build(theta, x).eval()
    outputs = []
    for given in (x[:5], 3 * x[:5] + 1):
        with torch.no_grad():
            outputs.append(_output(plain, theta[:5], given))
    mapped = with_x_map(plain, Moments.of(x))
    reader = x_reader(mapped)
    assert reader is not None
    with torch.no_grad():
        torch.testing.assert_close(_output(mapped, theta[:5], x[:5]), outputs[0])
        reader.read_x_through(
            AffineMap(torch.zeros(2), torch.ones(2), torch.full((2,), 3.0))
        )
        torch.testing.assert_close(_output(mapped, theta[:5], x[:5]), outputs[1])


def _output(network, theta, x):
    if isinstance(network, RatioEstimator):
        return network(theta, x)
    return network.ode_fn(theta, x, torch.full((len(x),), 0.5))


def test_tails_are_transformed_before_the_embedding():
    tails = TailTransform(torch.zeros(2), torch.ones(2), torch.full((2,), 0.5))
    x = torch.tensor([[1.0, -30.0]])
    assert torch.equal(TailMap(tails)(x), tails(x))
