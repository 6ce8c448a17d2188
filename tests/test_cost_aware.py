"""Proposals that prefer parameters of low cost: density, weights, savings, trainers."""

import copy
import math
import pickle

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch.distributions import MultivariateNormal

from sbi_multilevel import (
    MFNPE,
    MLNPE,
    HybridConfig,
    HybridNPE,
    HybridNRE,
    OneCycle,
    SimulationStore,
    simulate_multilevel,
)
from sbi_multilevel.allocation import CostAwareProposal, fit_cost
from sbi_multilevel.utils.seeds import seeded
from tests import linear_gaussian as problem

UNIT = BoxUniform(torch.zeros(1), torch.ones(1))


def exponential(theta):
    """From 1 to 100 over the unit interval."""
    return 100 ** theta[:, 0]


def proposal(cost=exponential, prior=UNIT, **options):
    return CostAwareProposal(prior, cost, **options)


def draws(distribution, count, seed=0):
    with seeded(seed):
        return distribution.sample((count,))


def error(values):
    return 4 * values.std() / math.sqrt(len(values))


# ------------------------------------------------------------- density and weights


@pytest.mark.parametrize("exponent", (0.0, 0.5, 1.0))
def test_the_density_is_known_for_an_exponential_cost(exponent):
    """With g = 100^(k theta), Z = (1 - 100^-k) / (k log 100)."""
    log_cost = math.log(100) * exponent
    constant = -math.expm1(-log_cost) / log_cost if exponent else 1.0
    theta = torch.tensor([[0.1], [0.5], [0.9]])
    exact = -log_cost * theta[:, 0] - math.log(constant)
    found = proposal(exponent=exponent, num_draws=100_000).log_prob(theta)
    # the lowest cost is a quantile: costs below it count as it, 0.01 of theta
    assert torch.allclose(found, exact, atol=0.02)


def test_draws_have_the_density():
    inference = proposal(num_draws=100_000)
    theta = draws(inference, 20_000)[:, 0]
    log_cost = 0.5 * math.log(100)
    # mean of a truncated exponential of rate log_cost
    mean = 1 / log_cost - 1 / math.expm1(log_cost)
    assert abs(theta.mean() - mean) < error(theta) + 0.002


def test_weights_turn_means_under_the_proposal_into_means_under_the_prior():
    inference = proposal(exponent=1.0)
    theta = draws(inference, 50_000)
    weights = inference.weights(theta)
    for values, exact in ((torch.ones(50_000), 1.0), (theta[:, 0] ** 2, 1 / 3)):
        weighted = weights * values
        assert abs(weighted.mean() - exact) < error(weighted) + 0.01


def test_weights_are_bounded():
    inference = proposal(exponent=1.0, max_ratio=9.0)
    theta = draws(UNIT, 5_000)
    weights = inference.weights(theta)
    assert weights.max() / weights.min() == pytest.approx(9.0, rel=1e-5)
    assert inference.weights(theta.reshape(50, 100, 1)).shape == (50, 100)


def test_the_exponent_0_is_the_prior():
    inference = proposal(exponent=0.0)
    theta = draws(UNIT, 10)
    assert torch.equal(inference.weights(theta), torch.ones(10))
    assert torch.equal(inference.log_prob(theta), UNIT.log_prob(theta))
    assert inference.relative_cost == pytest.approx(1.0)
    assert inference.effective_sample_size(theta) == pytest.approx(10.0)


# ------------------------------------------------------------- savings


def test_the_square_root_is_the_best_exponent():
    """E[sqrt c]^2 / E[c] = (9 / 0.5)^2 / (99 log 100) for costs from 1 to 100."""
    exact = (9 / (0.5 * math.log(100))) ** 2 / (99 / math.log(100))
    costs = {
        k: proposal(exponent=k, num_draws=100_000).relative_cost
        for k in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    assert min(costs, key=costs.get) == 0.5
    assert costs[0.5] == pytest.approx(exact, rel=0.02)
    assert costs[0.25] > exact + 0.05 and costs[0.75] > exact + 0.05


def test_the_relative_cost_is_that_of_simulations():
    """Cost over effective sample size, relative to the prior."""
    inference = proposal(num_draws=100_000)
    theta, of_prior = draws(inference, 50_000), draws(UNIT, 50_000)
    spent = exponential(theta).sum() / inference.effective_sample_size(theta)
    relative = spent / exponential(of_prior).mean()
    assert relative == pytest.approx(inference.relative_cost, rel=0.05)


def test_a_constant_cost_saves_nothing():
    inference = proposal(lambda theta: torch.full((len(theta),), 3.0))
    assert inference.relative_cost == pytest.approx(1.0)
    assert torch.allclose(inference.weights(draws(UNIT, 5)), torch.ones(5))


# ------------------------------------------------------------- a distribution


@pytest.mark.parametrize(
    "prior", (UNIT, MultivariateNormal(torch.zeros(2), torch.eye(2)))
)
def test_it_is_a_distribution(prior):
    inference = proposal(prior=prior, cost=lambda theta: theta[:, 0].abs() + 0.1)
    size = prior.event_shape[0]
    assert draws(inference, 7).shape == (7, size)
    assert inference.sample().shape == (size,)
    assert inference.sample((0,)).shape == (0, size)
    assert inference.sample((2, 3)).shape == (2, 3, size)
    assert inference.log_prob(draws(inference, 7)).shape == (7,)
    assert torch.equal(draws(inference, 7), draws(inference, 7))
    assert inference.support.check(draws(inference, 7)).all()


def test_it_can_be_pickled():
    for copied in (
        pickle.loads(pickle.dumps(proposal())),
        copy.deepcopy(proposal()),
    ):
        assert torch.equal(draws(copied, 5), draws(proposal(), 5))


# ------------------------------------------------------------- trainers


def weighted_simulations(cost):
    inference = proposal(cost, problem.prior())
    simulations = simulate_multilevel(
        (problem.SIMULATORS[0], problem.SIMULATORS[2]),
        inference,
        (2_000, 400),
        noise=problem.noise,
        seed=3,
        show_progress_bars=False,
    )
    return inference, inference.weighted(simulations)


SMALL = HybridConfig(
    num_members=2,
    level_maps=("shift",),
    distill=False,
    schedule=OneCycle(num_steps=50, fine_tuning_steps=20),
)
SHORT = {"max_num_epochs": 25, "learning_rate": 1e-2, "training_batch_size": 500}


@pytest.mark.parametrize(
    ("method", "options", "training"),
    (
        (MFNPE, {}, SHORT),
        pytest.param(MLNPE, {}, SHORT, marks=pytest.mark.slow),
        (HybridNPE, {"config": SMALL}, {}),
    ),
    ids=("MFNPE", "MLNPE", "HybridNPE"),
)
def test_trainers_use_the_weights(method, options, training):
    """At an x without information the posterior is the prior, not the proposal."""
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    inference = CostAwareProposal(prior, lambda theta: 10 ** (2 * theta[:, 0]))
    simulations = simulate_multilevel(
        (lambda theta, noise: noise, lambda theta, noise: 1.1 * noise),
        inference,
        (1_500, 500),
        noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        seed=1,
        show_progress_bars=False,
    )
    means = []
    for given in (simulations, inference.weighted(simulations)):
        with seeded(0):
            trainer = method(
                prior,
                posterior_nn("mdn", num_components=3),
                show_progress_bars=False,
                **options,
            )
            trainer.append_multilevel_simulations(given)
            estimator = trainer.train(**training)
            means.append(estimator.sample((2_000,), torch.zeros(1, 1)).mean().item())
    assert means[0] < -0.3  # the mean of the proposal is -0.57
    assert abs(means[1]) < 0.25


def test_weights_are_those_of_theta_at_each_level():
    inference, weighted = weighted_simulations(lambda theta: theta[:, 0].exp())
    for level in weighted:
        assert torch.equal(level.weights, inference.weights(level.theta))
    assert weighted.num_simulations == (2_000, 400)
    with pytest.raises(ValueError, match="have weights"):
        inference.weighted(weighted)


def test_ratios_refuse_weights():
    _, weighted = weighted_simulations(lambda theta: theta[:, 0].exp())
    trainer = HybridNRE(problem.prior(), show_progress_bars=False)
    with pytest.raises(ValueError, match="weights"):
        trainer.append_multilevel_simulations(weighted)


# ------------------------------------------------------------- measured costs


def test_a_fitted_cost_predicts_and_keeps_the_mean():
    with seeded(0):
        theta, noise = torch.rand(2_000, 2), torch.randn(2_000)
    expected = (1 + 2 * theta[:, 0] - theta[:, 0] * theta[:, 1]).exp()
    costs = expected * (0.3 * noise).exp()  # of mean exp(0.3^2 / 2)
    cost = fit_cost(theta, costs)
    ratio = cost(theta) / (expected * math.exp(0.045))
    assert (ratio.log().abs() < 0.1).float().mean() > 0.95
    assert cost(theta).mean() == pytest.approx(costs.mean().item(), rel=0.01)


def test_a_fitted_cost_stays_in_the_range_that_was_measured():
    theta = torch.linspace(0, 1, 100)[:, None]
    cost = fit_cost(theta, (5 * theta[:, 0]).exp())
    far = cost(torch.tensor([[-50.0], [50.0]]))
    assert far.tolist() == pytest.approx([1.0, math.exp(5)], rel=1e-5)


def test_a_store_has_the_cost_of_each_simulation(tmp_path):
    store = SimulationStore.create(tmp_path / "s", UNIT, (20, 12))
    pending = store.pending(1)
    store.record(
        pending.ids,
        pending.theta,
        x_coarse=pending.theta,
        cost=exponential(pending.theta),
    )
    theta, costs = store.costs_of(1)
    assert theta.shape == (12, 1) and torch.allclose(costs, exponential(theta).double())
    with pytest.raises(ValueError, match="level=2 "):
        store.costs_of(2)


# ------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"exponent": -1.0}, "exponent"),
        ({"exponent": float("nan")}, "exponent"),
        ({"max_ratio": 0.5}, "max_ratio"),
        ({"max_ratio": float("inf")}, "max_ratio"),
        ({"num_draws": 10}, "num_draws"),
        ({"seed": -1}, "seed"),
        ({"cost": lambda theta: theta}, "shape"),
        ({"cost": lambda theta: theta[:, 0] - 0.5}, "positive"),
        ({"cost": lambda theta: theta[:, 0] / 0}, "positive"),
    ),
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        proposal(**options)


@pytest.mark.parametrize(
    ("theta", "costs", "message"),
    (
        (torch.rand(20, 1), torch.rand(19), "shape"),
        (torch.rand(20), torch.rand(20), "shape"),
        (torch.rand(5, 1), torch.ones(5), "at least 10"),
        (torch.rand(20, 1), torch.zeros(20), "positive"),
        (torch.rand(0, 1), torch.zeros(0), "at least 10"),
    ),
)
def test_bad_costs(theta, costs, message):
    with pytest.raises(ValueError, match=message):
        fit_cost(theta, costs)
