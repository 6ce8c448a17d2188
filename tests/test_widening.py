"""Flows with a wider base distribution, and the choice of its scale."""

import math
import pickle

import numpy as np
import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn

from sbi_multilevel import (
    HybridConfig,
    HybridNLE,
    HybridNPE,
    HybridTSNPE,
    LevelSimulations,
    MultilevelSimulations,
    OneCycle,
)
from sbi_multilevel.estimators.transformed import unconstrained
from sbi_multilevel.estimators.widening import can_be_widened, widened
from sbi_multilevel.methods.hybrid.calibration import held_out_ranks

FLOWS = ("maf", "nsf", "maf_rqs", "zuko_maf", "zuko_nsf", "zuko_gf")
PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def simulations(seed: int = 0, num: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    theta = PRIOR.sample((num,))
    return theta, theta + 0.3 * torch.randn(num, 2)


@pytest.mark.parametrize("name", FLOWS)
def test_the_density_is_that_of_scaled_base_variables(name):
    theta, x = simulations()
    network = posterior_nn(name)(theta, x).eval()
    scale = 1.7
    if hasattr(network.net, "transform_to_noise"):  # of nflows
        z = network.net.transform_to_noise(theta, x)
    else:
        z = network.net(network.embedding_net(x)).transform(theta)
    with torch.no_grad():
        plain = network.log_prob(theta[None], x)[0]
        wide = widened(network, scale).log_prob(theta[None], x)[0]
    base = 0.5 * (1 - scale**-2) * z.square().sum(dim=1) - 2 * math.log(scale)
    torch.testing.assert_close(wide, (plain + base).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ("maf", "zuko_nsf"))
def test_widening_leaves_the_estimator_as_it_is_and_multiplies(name):
    theta, x = simulations()
    network = posterior_nn(name)(theta, x).eval()
    with torch.no_grad():
        before = network.log_prob(theta[None], x)
        twice = widened(widened(network, 1.5), 1.2).log_prob(theta[None], x)
        once = widened(network, 1.8).log_prob(theta[None], x)
        torch.testing.assert_close(network.log_prob(theta[None], x), before)
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ("maf", "zuko_nsf"))
def test_samples_are_those_of_the_density(name):
    theta, x = simulations()
    network = unconstrained(name, PRIOR)(theta, x).eval()
    wide = widened(network, 1.5)
    with torch.no_grad():
        samples = wide.sample((4_000,), x[:1])
        ratios = network.log_prob(samples, x[:1]) - wide.log_prob(samples, x[:1])
    ratios = ratios.exp()  # at most 1.5^2
    error = float(ratios.std()) / 4_000**0.5
    assert float(ratios.mean()) == pytest.approx(1, abs=5 * error)


def test_other_densities_cannot_be_widened():
    theta, x = simulations()
    network = posterior_nn("mdn")(theta, x)
    assert not can_be_widened(network)
    with pytest.raises(ValueError, match="must be a flow with a normal base"):
        widened(network, 1.5)


class Normal(ConditionalDensityEstimator):
    """A normal distribution around its condition."""

    def __init__(self, scale):
        super().__init__(nn.Linear(1, 1), torch.Size((1,)), torch.Size((1,)))
        self.scale = scale

    @property
    def embedding_net(self):
        return None

    def log_prob(self, input, condition, **kwargs):
        return -((input - condition).squeeze(-1) ** 2) / 2 / self.scale**2

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        noise = torch.randn(*sample_shape, *condition.shape)
        return condition + self.scale * noise


@pytest.mark.parametrize("scale", (0.5, 1.0, 2.0))
def test_mean_ranks_of_normal_distributions(scale):
    torch.manual_seed(0)
    x = torch.randn(4_000, 1)
    theta = x + torch.randn(4_000, 1)
    folds = np.array_split(np.arange(4_000), 2)
    ranks = held_out_ranks(Normal(scale), [Normal(3.0)] * 2, folds, theta, x)
    # the share of draws that are farther from x than theta
    expected = 2 / math.pi * math.atan(scale)
    error = float(ranks.std()) / 4_000**0.5
    assert float(ranks.mean()) == pytest.approx(expected, abs=5 * error)


def simulated(
    noise: tuple[float, float], num_features: int = 2
) -> MultilevelSimulations:
    """Levels of different noise, not paired."""
    torch.manual_seed(0)
    levels = []
    for level, (num, scale) in enumerate(zip((500, 40), noise)):
        theta = PRIOR.sample((num,))
        x = theta.repeat(1, 2)[:, :num_features]
        x = x + scale * torch.randn(num, num_features)
        levels.append(LevelSimulations(level, theta, x))
    return MultilevelSimulations(tuple(levels))


def trained(levels: MultilevelSimulations, cls=HybridNPE, build=None, **options):
    options = {
        "num_members": 2,
        "level_maps": ("none",),
        "mix": False,
        "distill": False,
        "shared_start": False,
        "schedule": OneCycle(num_steps=200, fine_tuning_steps=20),
        **options,
    }
    nn = posterior_nn if cls is HybridNPE else likelihood_nn
    build = build or nn("maf", hidden_features=10, num_transforms=2)
    config = HybridConfig(**options)
    trainer = cls(PRIOR, build, config=config, show_progress_bars=False)
    torch.manual_seed(0)
    trainer.append_multilevel_simulations(levels).train()
    return trainer


def test_a_mixture_that_is_too_narrow_is_made_wider():
    levels = simulated(noise=(0.15, 0.4))
    plain, wide = (trained(levels, widen=widen) for widen in (False, True))
    assert plain.hybrid_summary.calibration is None
    found = wide.hybrid_summary.calibration
    assert found.error == pytest.approx((12 * 40) ** -0.5)
    assert found.rank < 0.5 - found.error and found.base_scale > 1
    assert f"wider by the factor {found.base_scale:g}" in str(wide.hybrid_summary)
    theta = PRIOR.sample((1_000,))
    x = theta + 0.4 * torch.randn(1_000, 2)
    with torch.no_grad():
        gain, base = (
            trainer._neural_net.log_prob(theta[None], x)[0] for trainer in (wide, plain)
        )
    difference = gain - base
    assert difference.mean() > 3 * difference.std() / 1_000**0.5


def test_a_mixture_that_is_wide_enough_stays():
    trainer = trained(simulated(noise=(0.6, 0.3)), widen=True)
    found = trainer.hybrid_summary.calibration
    assert found.base_scale == 1
    assert "wider" not in str(found)


def test_likelihoods_are_made_wider():
    trainer = trained(simulated((0.15, 0.4), 3), HybridNLE, widen=True)
    assert trainer.hybrid_summary.calibration.base_scale > 1


def test_one_network_takes_the_place_of_a_wider_mixture():
    trainer = trained(simulated(noise=(0.15, 0.4)), distill=True, widen=True)
    assert trainer.hybrid_summary.calibration.base_scale > 1
    assert trainer.hybrid_summary.distillation.is_used
    loaded = pickle.loads(pickle.dumps(trainer))
    x = torch.zeros(1, 2)
    with torch.no_grad():
        log_probs = [
            each._neural_net.log_prob(x[None], x) for each in (trainer, loaded)
        ]
    torch.testing.assert_close(*log_probs)


def test_the_prior_remains_a_component():
    trainer = trained(simulated(noise=(0.15, 0.4)), mix=True, widen=True)
    assert trainer.hybrid_summary.calibration is not None
    assert trainer._neural_net.prior is not None


def test_densities_that_cannot_be_made_wider_are_named():
    with pytest.warns(UserWarning, match="widen=True has no effect"):
        trainer = trained(simulated(noise=(0.3, 0.3)), build="mdn", widen=True)
    assert trainer.hybrid_summary.calibration is None


def test_rounds_do_not_widen():
    with pytest.raises(ValueError, match="widen=True, which is not available"):
        HybridTSNPE(PRIOR, torch.zeros(2), config=HybridConfig(widen=True))


def test_equal_densities_count_as_one_half():
    class Flat(Normal):
        def log_prob(self, input, condition, **kwargs):
            return torch.zeros(input.shape[:-1])

    x = torch.randn(10, 1)
    ranks = held_out_ranks(Normal(1.0), [Flat(1.0)], [np.arange(10)], x, x)
    assert (ranks == 0.5).all()
