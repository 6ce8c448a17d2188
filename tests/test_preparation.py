"""Simulations that every method repairs in the same way, and its effect."""

import math
import statistics

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    HybridNLE,
    LevelSimulations,
    MultilevelSimulations,
)
from sbi_multilevel.data.outputs import varies
from sbi_multilevel.data.preparation import fill_constant, limit_extremes
from tests.linear_gaussian import SilentTracker

COUNTS, FEATURES = (400, 60), 3
PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
OPTIONS = dict(max_num_epochs=25, learning_rate=5e-3, training_batch_size=100)
WEIGHTS = torch.tensor([[1.0, 0.0, 0.7], [0.0, 1.0, 0.7]])

pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:Data has"),
]


def draw(count, seed, extra=0):
    """Theta and x; features beyond the first three are noise."""
    generator = torch.Generator().manual_seed(seed)
    theta = 4 * torch.rand(count, 2, generator=generator) - 2
    noise = torch.randn(count, FEATURES + extra, generator=generator)
    signal = torch.cat([theta @ WEIGHTS, torch.zeros(count, extra)], dim=1)
    return theta, signal + 0.3 * noise


def simulations(change=lambda low, pairs, high: None, extra=0):
    """Two levels that differ a little, after a change of their outputs."""
    theta_low, x_low = draw(COUNTS[0], 1, extra)
    theta, x_coarse = draw(COUNTS[1], 2, extra)
    x = x_coarse + 0.1
    change(x_low, x_coarse, x)
    return MultilevelSimulations((
        LevelSimulations(0, theta_low, x_low),
        LevelSimulations(1, theta, x, x_coarse),
    ))


def score(cls, sims):
    """Mean log density on fresh simulations; the median over trainings."""
    return statistics.median(score_of_seed(cls, sims, seed) for seed in range(3))


def score_of_seed(cls, sims, seed):
    """Mean log density of theta given x (NPE), or the other way."""
    torch.manual_seed(seed)
    trainer = cls(
        PRIOR,
        density_estimator="mdn",
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_multilevel_simulations(sims)
    estimator = trainer.train(**OPTIONS)
    theta, x = draw(500, 3)
    x = torch.cat([x + 0.1, sims[1].x[:1, FEATURES:].expand(500, -1)], dim=1)
    pair = (theta, x) if cls in (MLNPE, MFNPE) else (x, theta)
    with torch.no_grad():
        return -estimator.eval().loss(*pair).mean().item()


@pytest.fixture(scope="module")
def reference():
    known = {}

    def of(cls):
        if cls not in known:
            known[cls] = score(cls, simulations())
        return known[cls]

    return of


def one_level(x):
    return MultilevelSimulations((LevelSimulations(0, torch.rand(len(x), 1), x),))


def set_to(value, row=slice(None), sides=(0, 1, 2), feature=0):
    def change(*outputs):
        for side in sides:
            outputs[side][row, feature] = value

    return change


# ----------------------------------------------------------------- effect


@pytest.mark.parametrize("cls", (MLNPE, MFNPE))
@pytest.mark.parametrize(
    "sides, value",
    [
        ((0,), 1e30),
        pytest.param((0,), 1e10, marks=pytest.mark.slow),
        ((2,), -3e38),
    ],
)
def test_one_extreme_value_costs_little(cls, sides, value, reference):
    sims = simulations(set_to(value, row=5, sides=sides))
    level = 0 if sides == (0,) else 1
    with pytest.warns(UserWarning, match=f"Features 0 of x of level {level} have sing"):
        found = score(cls, sims)
    assert found > reference(cls) - 0.5


@pytest.mark.parametrize("cls", (MLNPE, MFNPE))
def test_a_feature_constant_at_level_0_costs_its_information(cls, reference):
    sims = simulations(set_to(1.0, sides=(0, 1)))
    with pytest.warns(UserWarning, match="Features 0 of x are constant at level 0, "):
        found = score(cls, sims)
    # two of three features are left, which determine both parameters
    assert reference(cls) - 1.5 < found
    assert found > PRIOR.log_prob(torch.zeros(1, 2)).item() + 0.5


@pytest.mark.parametrize("cls", (MLNPE, MFNPE))
@pytest.mark.parametrize("value", (0.0, 1000.1, -12_345.678))
@pytest.mark.slow
def test_a_constant_feature_costs_a_posterior_nothing(cls, value, reference):
    sims = simulations(set_to(value, feature=FEATURES), extra=1)
    assert score(cls, sims) > reference(cls) - 0.5


@pytest.mark.parametrize("value", (0.0, 20.0))
@pytest.mark.slow
def test_the_likelihood_of_a_constant_feature_is_bounded(value, reference):
    sims = simulations(set_to(value, feature=FEATURES), extra=1)
    with pytest.warns(UserWarning, match="Features 3 of x are constant at all levels"):
        found = score(MLNLE, sims)
    # the density at the mean of a normal that is as wide as the value is large
    most = -math.log(math.sqrt(2 * math.pi) * max(value, 1.0))
    assert found < reference(MLNLE) + most + 0.5


# -------------------------------------------------------- the simulations


def test_good_simulations_stay_as_they_are():
    sims = simulations()
    assert limit_extremes(sims) is sims
    for target in ("theta", "x"):
        assert fill_constant(sims, target, 0) is sims


HEAVY = {
    "Cauchy": lambda n: torch.distributions.Cauchy(0.0, 1.0).sample((n, 2)),
    "log-normal": lambda n: (4 * torch.randn(n, 2)).exp(),
    "mostly zero": lambda n: 1e8 * torch.poisson(torch.full((n, 2), 0.05)),
    "far from zero": lambda n: 1e7 + torch.randn(n, 2),
}


@pytest.mark.parametrize("law", HEAVY)
@pytest.mark.parametrize("num_simulations", (30, 20_000))
def test_heavy_tails_are_not_extreme(law, num_simulations):
    sims = one_level(HEAVY[law](num_simulations))
    assert limit_extremes(sims) is sims


def test_many_values_are_not_extreme():
    is_dust = torch.rand(5_000, 2) < 0.95
    sims = one_level(torch.where(is_dust, 1e-12, 1.0) * torch.randn(5_000, 2))
    assert limit_extremes(sims) is sims


@pytest.mark.filterwarnings("ignore:Features")
def test_the_same_map_acts_wherever_a_simulator_appears():
    sims = simulations(set_to(1e30, row=7, sides=(1,)))
    moved = limit_extremes(sims)
    usual = torch.cat([sims[0].x[:, 0], sims[1].x_coarse[:, 0]])
    usual = usual[usual < 1e10]
    assert moved[1].x_coarse[7, 0] == usual.max()
    assert torch.equal(moved[0].x, sims[0].x) and torch.equal(moved[1].x, sims[1].x)
    others = torch.arange(COUNTS[1]) != 7
    assert torch.equal(moved[1].x_coarse[others], sims[1].x_coarse[others])
    assert torch.equal(moved[1].x_coarse[:, 1:], sims[1].x_coarse[:, 1:])


@pytest.mark.filterwarnings("ignore:Features")
def test_both_sides_of_a_sum_get_the_same_noise_law():
    filled = fill_constant(simulations(set_to(1.0, sides=(0, 1))), "theta", 0)
    high = filled[1].x[:, 0]
    for x in (filled[0].x, filled[1].x_coarse):
        # four standard errors
        assert (x[:, 0].mean() - high.mean()).abs() < 4 * high.std() / len(x) ** 0.5
        assert 0.6 < x[:, 0].std() / high.std() < 1.4
    assert torch.equal(filled[1].x, simulations(set_to(1.0, sides=(0, 1)))[1].x)


@pytest.mark.filterwarnings("ignore:Features")
def test_two_constants_are_as_wide_as_they_are_apart():
    sims = simulations(
        lambda *sides: [
            set_to(v, sides=s)(*sides) for v, s in ((1.0, (0, 1)), (5.0, (2,)))
        ]
    )
    filled = fill_constant(sims, "theta", 0)
    assert 3.0 < filled[0].x[:, 0].std() < 5.0
    assert bool((filled[1].x[:, 0] == 5.0).all())


def test_rounding_is_no_variation():
    x = torch.full((50, 1), 1000.1)
    x[::2] = torch.nextafter(x[::2], 2 * x[::2])
    assert not varies(x).any() and varies(x + torch.linspace(0, 1, 50)[:, None]).all()
    assert not varies(1e-20 * torch.randn(50, 1)).any()


# ---------------------------------------------------------------- refused


def test_constants_of_pretraining_cannot_be_read_later():
    sims = simulations(set_to(1.0, sides=(0,)))
    options = dict(tracker=SilentTracker(), show_progress_bars=False)
    first = MFNPE(PRIOR, density_estimator="mdn", **options)
    first.append_lowfidelity_simulations(sims[0].theta, sims[0].x)
    network = first.train(max_num_epochs=2)
    second = MFNPE(PRIOR, density_estimator="mdn", **options)
    second.append_lowfidelity_simulations(sims[1].theta, sims[1].x)
    with pytest.raises(ValueError, match="Features 0 of x vary at level 0, but were"):
        second.warm_start(network).train(max_num_epochs=2)


@pytest.mark.parametrize("cls", (HybridNLE, MFNLE))
def test_likelihoods_are_of_vectors(cls):
    trainer = cls(PRIOR, tracker=SilentTracker())
    theta, x = draw(40, 1)
    trainer.append_lowfidelity_simulations(theta, x.reshape(40, 3, 1))
    trainer.append_simulations(theta[:20] + 0.1, x[:20].reshape(20, 3, 1))
    with pytest.raises(ValueError, match=r"x has shape \(3, 1\), but likelihoods"):
        trainer.train(max_num_epochs=2)
