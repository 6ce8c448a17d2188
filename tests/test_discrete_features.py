"""Discrete features of x: what level maps and networks of sbi's MNLE see."""

import pickle
from dataclasses import replace

import pytest
import torch
from sbi.inference import MNLE
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.utils import BoxUniform
from torch.distributions import Bernoulli, LogNormal

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MFSNLE,
    MLNLE,
    HybridConfig,
    HybridNLE,
    LevelSimulations,
    MultilevelSimulations,
    simulate_multilevel,
)
from sbi_multilevel.level_maps.affine import AffineMap, Alignment
from sbi_multilevel.level_maps.discrete_features import DiscreteFeatures

pytestmark = pytest.mark.filterwarnings(
    "ignore:The mixed neural density estimator", "ignore:Maximum number of epochs"
)
PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
SMALL = HybridConfig(num_members=2, level_maps=("shift", "paired"), distill=False)


def simulator(bias):
    """A reaction time and a choice between two alternatives."""

    def simulate(theta, noise):
        time = torch.exp(theta[:, :1] + bias + 0.3 * noise[:, :1])
        share = torch.sigmoid(2 * theta[:, 1:] + bias)
        choice = (torch.special.ndtr(noise[:, 1:]) < share).float()
        return torch.cat((time, choice), dim=1)

    return simulate


def exact_log_prob(x, theta):
    of_time = LogNormal(theta[:, 0], 0.3).log_prob(x[:, 0])
    return of_time + Bernoulli(logits=2 * theta[:, 1]).log_prob(x[:, 1])


def noise(n, generator):
    return torch.randn(n, 2, generator=generator)


def simulated(n_low=300, n_high=40, seed=0):
    return simulate_multilevel(
        [simulator(0.5), simulator(0.0)],
        PRIOR,
        (n_low, n_high),
        noise=noise,
        seed=seed,
        show_progress_bars=False,
    )


def trained(cls, simulations=None, density_estimator="mnle", options=None, **kwargs):
    trainer = cls(
        PRIOR,
        density_estimator=density_estimator,
        show_progress_bars=False,
        **kwargs,
    )
    trainer.append_multilevel_simulations(simulations or simulated())
    torch.manual_seed(0)
    trainer.train(**({"max_num_epochs": 3} if options is None else options))
    return trainer


def level_of(x, level=0, x_coarse=None):
    return LevelSimulations(level, torch.zeros(len(x), 1), x, x_coarse)


def three_categories(n=60):
    """Values 0, 2 and 5; categories of pairs differ in every third simulation."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, 2.0, 5.0])
    index = torch.arange(n) % 3
    time = torch.rand(n, 1, generator=generator) + 0.1
    fine = torch.cat((time, values[index, None]), dim=1)
    other = torch.where(torch.arange(n) % 9 == 0, 1, index)
    coarse = torch.cat((time, values[other, None]), dim=1)
    return MultilevelSimulations((level_of(coarse), level_of(fine, 1, coarse)))


@pytest.mark.parametrize("takes_log", (False, True))
def test_categories_become_real_numbers_and_come_back(takes_log):
    simulations = three_categories()
    features = DiscreteFeatures.of(simulations, 1, takes_log)
    low, high = (features.continuous(level, seed=3) for level in simulations)
    for level, converted in zip(simulations, (low, high)):
        torch.testing.assert_close(features.restored(converted.x), level.x)
    ranks = torch.arange(60) % 3
    distance = high.x[:, 1] - ranks
    assert distance.abs().max() <= 0.5 and distance.unique().numel() > 50
    # the sides of a pair of the same category are equal
    gap = (high.x - high.x_coarse)[:, 1]
    differs = simulations[1].x[:, 1] != simulations[1].x_coarse[:, 1]
    assert torch.equal(gap[~differs], torch.zeros(int((~differs).sum())))
    assert differs.any() and (gap[differs].abs() > 0.99).all()
    # levels have noise of their own
    noises = (each.x[:, 1] - each.x[:, 1].round() for each in (low, high))
    assert not torch.allclose(*noises, atol=1e-4)
    moved = features.restored(high.x - torch.tensor([9.0, 9.0]))
    assert (moved[:, 1] == 0).all() and bool((moved[:, 0] > 0).all()) == takes_log


def test_examples_have_each_category_once_from_the_highest_level():
    simulations = three_categories()
    low, high = simulations
    rare = torch.tensor([[0.5, 0.0], [0.5, 7.0]])
    low = replace(low, theta=low.theta[:2] + 1, x=rare)
    simulations = MultilevelSimulations((low, high))
    theta, x = DiscreteFeatures.of(simulations, 1).examples(simulations)
    assert x[:, 1].tolist() == [0.0, 2.0, 5.0, 7.0]
    assert theta[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_features_that_are_no_categories_are_refused():
    low, high = three_categories()
    between = replace(low, x=low.x + 0.5)
    with pytest.raises(ValueError, match="in x of level 0 they are not all integers"):
        DiscreteFeatures.of((between, high), 1)
    negative = replace(low, x=low.x - torch.tensor([1.0, 0.0]))
    sims = (negative, high)
    assert not DiscreteFeatures.of(sims, 1).takes_log
    with pytest.raises(ValueError, match="but x of level 0 is as small as -0"):
        DiscreteFeatures.of(sims, 1, takes_log=True)


def test_alignments_leave_discrete_features():
    align = AffineMap(torch.ones(3), torch.zeros(3), 2 * torch.ones(3))
    x = torch.tensor([[5.0, 5.0, 5.0]])
    assert Alignment((align, align)).leaving(2)(x, x)[1].tolist() == [[14, 5, 5]]
    assert Alignment((align,)).leaving(0)(x, x)[1].tolist() == [[8, 8, 8]]


def total_mass(likelihood, theta):
    """Sum over choices of the integral over reaction times."""
    grid = torch.linspace(-6, 6, 2_001).exp()
    total = 0.0
    for choice in (0.0, 1.0):
        x = torch.stack((grid, torch.full_like(grid, choice)), dim=1)
        with torch.no_grad():
            density = likelihood.log_prob(x[:, None], theta[None]).exp()[:, 0]
        total += torch.trapezoid(density, grid).item()
    return total


@pytest.mark.parametrize(
    ("cls", "options", "takes_log"),
    (
        (MFNLE, {}, False),
        (MFNLE, {}, True),
        (MLNLE, {}, True),
        (HybridNLE, {"config": SMALL}, True),
    ),
)
def test_likelihoods_of_discrete_features_are_normalized(cls, options, takes_log):
    build = likelihood_nn("mnle", log_transform_x=takes_log)
    likelihood = trained(cls, density_estimator=build, **options)._neural_net
    if cls is MFNLE:
        assert (likelihood.x_scale == 1).tolist() == [takes_log, True]
    for theta in (torch.zeros(1, 2), torch.tensor([[0.5, -0.9]])):
        mass = total_mass(likelihood, theta)
        # without logarithms there is mass at negative reaction times
        assert mass == pytest.approx(1, abs=0.01) if takes_log else 0.2 < mass < 1.01


def test_a_category_may_be_missing_in_a_fold():
    low, high = simulated()
    x = high.x.clone()
    x[:, 1] = 0.0
    x[:1, 1] = 3.0  # one simulation of the 40
    pairs = LevelSimulations(1, high.theta, x, high.x_coarse)
    inference = trained(HybridNLE, MultilevelSimulations((low, pairs)), config=SMALL)
    likelihood = inference._neural_net
    assert all(v > -1e5 for v in inference.hybrid_summary.log_scores.values())
    drawn = likelihood.sample((200,), torch.zeros(1, 2))
    assert set(drawn[..., 1].flatten().tolist()) <= {0.0, 1.0, 3.0}
    trials, theta = x[:3], PRIOR.sample((5,))  # independent trials of one parameter
    posterior = inference.build_posterior()
    with torch.no_grad():
        each = likelihood.log_prob(trials[:, None].expand(-1, 5, -1), theta)
        expected = each.sum(dim=0) + PRIOR.log_prob(theta)
    torch.testing.assert_close(posterior.potential(theta, x=trials), expected)


@pytest.mark.slow
def test_the_hybrid_is_closer_to_the_exact_likelihood_than_mnle():
    simulations = simulated(1_000, 50)
    hybrid = trained(HybridNLE, simulations, options={})._neural_net
    plain = MNLE(PRIOR, show_progress_bars=False)
    plain.append_simulations(simulations[1].theta, simulations[1].x)
    torch.manual_seed(0)
    plain = plain.train()
    (test,) = simulate_multilevel(
        [simulator(0.0)], PRIOR, (2_000,), noise=noise, seed=1, show_progress_bars=False
    )
    exact = exact_log_prob(test.x, test.theta)
    with torch.no_grad():
        excess = [
            (exact + each.loss(test.x, test.theta)).mean() for each in (hybrid, plain)
        ]
    assert excess[0] < 0.2 < excess[1]


def test_coarse_sides_have_categories_too():
    low, high = three_categories()
    coarse = high.x_coarse.clone()
    coarse[0, 1] = 7.0
    features = DiscreteFeatures.of((low, replace(high, x_coarse=coarse)), 1)
    assert features.values[0].tolist() == [0.0, 2.0, 5.0, 7.0]
    coarse[0, 1] = 0.5
    with pytest.raises(ValueError, match="in x_coarse of level 1 they are not all"):
        DiscreteFeatures.of((low, replace(high, x_coarse=coarse)), 1)


def heavy(n, seed):
    """A feature with heavy tails, and whether it is far out."""
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(n, 2, generator=generator) - 1
    noise = torch.randn(n, 3, generator=generator)
    x = theta[:, :1] + noise[:, :1] / noise[:, 1:2].abs()
    return theta, torch.cat((x, (x.abs() > 100).float()), dim=1)


def test_examples_have_the_transformed_tails_of_the_simulations(tmp_path):
    log = tmp_path / "spreads"  # builders are copied

    def build(theta, x):
        with log.open("a") as file:
            file.write(f"{float(x[:, 0].std())} ")
        return likelihood_nn("mnle")(theta, x)

    inference = HybridNLE(
        PRIOR, density_estimator=build, config=SMALL, show_progress_bars=False
    )
    inference.append_lowfidelity_simulations(*heavy(400, 0))
    inference.append_simulations(*heavy(60, 1)).train(max_num_epochs=2)
    assert inference._neural_net.tails is not None
    *_, alone_0, alone_1 = map(float, log.read_text().split())
    assert max(alone_0, alone_1) < 3


@pytest.mark.parametrize("cls", (MFNLE, MLNLE))
def test_a_pickled_trainer_of_discrete_x_trains_on(cls):
    loaded = pickle.loads(pickle.dumps(trained(cls)))
    before = sum(loaded.summary["epochs_trained"])
    loaded.train(resume_training=True, max_num_epochs=4)
    assert sum(loaded.summary["epochs_trained"]) > before
    assert cls is MLNLE or loaded._neural_net.x_scale[1] == 1


def test_logarithms_are_left_unaligned():
    low = simulated(200, 30)[0]
    generator = torch.Generator().manual_seed(0)
    # of which the spread of level 0 would make some negative
    times = 2 + 0.1 * torch.randn(40, 1, generator=generator)
    narrow = torch.cat((times, low.x[:40, 1:]), dim=1)
    inference = MFNLE(
        PRIOR,
        density_estimator=likelihood_nn("mnle", log_transform_x=True),
        show_progress_bars=False,
    )
    inference.append_lowfidelity_simulations(low.theta, low.x)
    theta = low.theta[:40] + 1e-3
    likelihood = inference.append_simulations(theta, narrow).train(max_num_epochs=2)
    assert likelihood.loss(narrow, theta).isfinite().all()


def test_x_of_a_posterior_of_discrete_theta_is_aligned():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(200, 2, generator=generator)
    theta[:, 1] = (theta[:, 1] > 0).float()
    x = theta + 0.3 * torch.randn(200, 2, generator=generator)

    def made():
        builder = posterior_nn("mnpe")
        inference = MFNPE(density_estimator=builder, show_progress_bars=False)
        inference.append_lowfidelity_simulations(theta, x)
        return inference.append_simulations(theta[:40] + 0, 2 * x[:40] + 5)

    first = made().train(max_num_epochs=2)
    second = made().warm_start(first).train(max_num_epochs=2)
    for estimator in (first, second):
        assert bool((estimator.x_scale < 0.7).all())


def test_a_builder_that_fails_is_named():
    def build(theta, x):
        raise RuntimeError("mine")

    with pytest.raises(ValueError, match="density_estimator could not build a network"):
        trained(MFNLE, density_estimator=build)


def test_a_builder_that_refuses_few_simulations_can_be_used():
    def build(theta, x):
        assert len(x) > 100
        return likelihood_nn("maf")(theta, x)

    low, high = simulated()
    counts = replace(high, x=high.x.round(), x_coarse=None)
    sims = MultilevelSimulations((replace(low, x=low.x.round()), counts))
    assert trained(MFNLE, sims, density_estimator=build)._neural_net is not None


def test_rounds_refuse_discrete_x():
    with pytest.raises(ValueError, match="rounds do not take discrete x"):
        MFSNLE(PRIOR, torch.ones(1, 2), density_estimator="mnle")
