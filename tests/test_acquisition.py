"""Scores of acquisition functions, and importance weights of active points."""

import pickle

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from sbi_multilevel import MFTSNPE, Acquisition
from sbi_multilevel.allocation import fit_cost
from sbi_multilevel.methods.sequential.acquisition import (
    disagreement,
    importance_weights,
    propose_active,
)
from sbi_multilevel.methods.sequential.state import Proposals
from tests import rounds
from tests.test_mftsnpe import FINE, RUN, make, networks, simulate


def test_disagreement_is_the_variance_over_members():
    log_probs = torch.log(torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]]))
    density = disagreement(log_probs, "density")
    assert torch.allclose(density, torch.tensor([2.0, 0.0, 0.0]) / 9)  # scaled by max
    log = disagreement(log_probs, "log_density")
    assert log[1] == 0 and log[2] == 0
    assert log[0] == pytest.approx((torch.log(torch.tensor(3.0)) ** 2 / 2).item())
    nowhere = torch.full((2, 3), -torch.inf)
    assert torch.equal(disagreement(nowhere, "density"), torch.zeros(3))


@pytest.mark.parametrize("on", ("density", "log_density", "gain"))
def test_the_order_of_scores_does_not_depend_on_the_scale(on):
    log_probs = torch.randn(5, 50).double()
    order = disagreement(log_probs, on).argsort()
    assert torch.equal(order, disagreement(log_probs - 200, on).argsort())


# ------------------------------------------------------------- the gain


def gaussians(theta, shift):
    """Log densities of N(0, 1) and N(shift, 1), shape (2, n)."""
    return torch.stack([Normal(mean, 1.0).log_prob(theta) for mean in (0.0, shift)])


def gain(log_probs):
    """The gain without the common factor."""
    return disagreement(log_probs, "gain") * log_probs.max().exp()


def test_the_gain_of_two_gaussians_is_that_by_hand():
    theta = torch.tensor([0.0, 0.5, 2.0]).double()
    # densities 0.39894 and 0.24197 at 0, equal ones at 0.5, 0.05399 and 0.24197 at 2:
    # 0.5 (0.39894 log(0.39894 / 0.32046) + 0.24197 log(0.24197 / 0.32046)), and so on
    expected = torch.tensor([0.009710, 0.0, 0.032274]).double()
    assert torch.allclose(gain(gaussians(theta, 1.0)), expected, atol=2e-6)


@pytest.mark.parametrize("shift", (0.1, 1.0, 5.0))
def test_the_gain_integrates_to_the_divergence_of_members(shift):
    theta = torch.linspace(-12, 17, 20_001).double()
    log_probs = gaussians(theta, shift)
    mean = log_probs.exp().mean(0)
    # of Jensen and Shannon: entropy of the mean less the mean entropy
    entropy = torch.trapezoid(-torch.xlogy(mean, mean), theta)
    divergence = entropy - Normal(0.0, 1.0).entropy().double()
    assert torch.isclose(torch.trapezoid(gain(log_probs), theta), divergence, atol=1e-6)


def test_the_gain_of_similar_members_is_their_variance_over_twice_the_mean():
    log_probs = gaussians(torch.linspace(-3, 3, 50).double(), 0.01)
    values = log_probs.exp()
    expected = values.var(0, correction=0) / (2 * values.mean(0))
    assert torch.allclose(gain(log_probs), expected, rtol=1e-3, atol=0)


def test_the_gain_is_zero_where_members_agree_and_finite_where_one_has_no_density():
    members = torch.tensor([[0.1, 0.0, 0.4], [0.1, 0.0, 0.0], [0.1, 0.0, 0.0]]).log()
    scores = gain(members)
    assert scores[0] == 0 and scores[1] == 0
    assert scores[2].item() == pytest.approx(0.4 / 3 * torch.tensor(3.0).log().item())
    assert torch.equal(gain(torch.randn(1, 9).expand(5, 9)), torch.zeros(9).double())


def test_the_gain_is_relative_to_the_density_of_the_prior():
    theta = torch.linspace(-2, 3, 20).double()[:, None]
    prior = torch.distributions.Independent(Normal(torch.zeros(1), 2.0), 1)
    log_probs = gaussians(theta[:, 0], 1.0)
    scores = Acquisition(on="gain").scores(theta, log_probs, prior)
    factors = scores * prior.log_prob(theta).exp() / gain(log_probs)
    assert torch.allclose(factors, factors[0])


# ------------------------------------------------------------- costs


SCORE_AND_COST = torch.tensor([[9.0, 9.0], [8.0, 2.0], [2.0, 1.0], [1.0, 4.0]])


def scores_of(theta, acquisition):
    """Scores at theta = (variance of the density of two members, cost)."""
    log_probs = torch.stack([torch.full((len(theta),), -torch.inf), theta[:, 0].log()])
    log_probs[1] = (log_probs[1] + torch.tensor(2.0).log()) / 2
    return acquisition.scores(theta, log_probs, None)


def by_cost(**options):
    return Acquisition(cost=lambda theta: theta[:, 1], **options)


def test_costs_change_the_order_of_points():
    order = scores_of(SCORE_AND_COST, Acquisition()).argsort(descending=True)
    assert order.tolist() == [0, 1, 2, 3]
    scores = scores_of(SCORE_AND_COST, by_cost())
    by_hand = torch.tensor([1.0, 4.0, 2.0, 0.25]).double()
    assert torch.allclose(scores / scores[0], by_hand)


def test_weights_follow_from_scores_over_costs():
    acquisition = by_cost(share=0.4, pool_size=4, correct=True)
    passive = torch.tensor([[10.0, 2.0], [5.0, 5.0], [3.0, 1.0]])  # ratios 5, 1, 3

    scores = scores_of(torch.cat([passive, SCORE_AND_COST]), acquisition)
    proposals = propose_active(
        Proposals(passive, torch.ones(3)),
        SCORE_AND_COST,
        scores.split([3, 4]),
        acquisition.num_active(5),
        acquisition.correct,
        acceptance=lambda: 0.5,
    )
    assert torch.equal(proposals.theta[3:], SCORE_AND_COST[1:3])  # ratios 4 and 2
    # 1 / (1 - 0.4 + 0.4 * 0.5 * 4 / 2) from the ratio 2 on, 1 / (1 - 0.4) below
    expected = torch.tensor([1.0, 1 / 0.6, 1.0, 1.0, 1.0])
    assert torch.allclose(proposals.weights, expected)


@pytest.mark.parametrize(
    "cost, named",
    (
        (lambda theta: theta, r"cost returned the shape \(4, 2\).*Return one cost"),
        (lambda theta: theta[:, 0] - 9, "cost returned 0.0 at theta=.*Return positive"),
        (lambda theta: theta[:, 0] / 0, "cost returned inf"),
        (lambda theta: theta[:, 0] * torch.nan, "cost returned nan"),
    ),
)
def test_costs_must_be_positive_and_finite(cost, named):
    with pytest.raises(ValueError, match=named):
        scores_of(SCORE_AND_COST, Acquisition(cost=cost))


def active(cost=None, **options):
    """An inference whose members differ from the first round on."""
    acquisition = Acquisition(on="gain", cost=cost, **options)
    return make(num_members=2, shared_pretraining=False, acquisition=acquisition)


def test_a_round_prefers_points_of_low_cost():
    measured, means = torch.randn(300, 2), []
    for slope in (3, -3):
        cost = fit_cost(measured, (slope * measured[:, 0]).exp())
        inference = active(cost)
        theta = inference.propose(100)
        means.append(theta[80:, 0].mean())  # of 20 points from a pool of 250
    assert means[0] + 1 < means[1]
    inference.append_simulations(theta, simulate(theta)).train()
    assert inference.summary["num_active"] == [20]


def test_rounds_with_costs_can_be_pickled_and_resumed(tmp_path):
    path, cost = tmp_path / "run.pt", lambda theta: (2 * theta[:, 0]).exp()
    unbroken = active(cost)
    unbroken.run(FINE, 40, 2, **RUN)
    inference = active(cost)
    inference.run(FINE, 20, 1, checkpoint=path, **RUN)
    for again in (active(cost).load(path), pickle.loads(pickle.dumps(inference))):
        again.run(FINE, 40, 2, **RUN)
        assert torch.equal(networks(again), networks(unbroken))
    with pytest.raises(ValueError, match="has_cost was True, is False"):
        active().load(path)


def test_rounds_of_all_levels_score_by_the_gain_for_the_cost():
    options = {"on": "gain", "pool_size": 100, "correct": True}
    exponents = []
    for cost in (None, lambda theta: (6 * theta[:, 0]).exp()):
        acquisition = Acquisition(cost=cost, **options)
        inference = rounds.hybrid(acquisition=acquisition)
        rounds.step(inference)
        _, high = inference.propose((50, 40))
        exponents.append(high[32:, 0].mean())
        pending = inference._state.pending[1]
        assert pending.is_active.sum() == 8 and pending.weights.min() < 1
    assert exponents[1] < exponents[0] - 0.1


# ------------------------------------------------------------- importance weights


SMOOTH = lambda theta: torch.where(theta < 0.6, theta**2, 0.0)
STEPS = lambda theta: (theta > 0.4).float() + (theta > 0.65).float()  # many tie
EQUAL = torch.zeros_like


@pytest.mark.parametrize("score", (SMOOTH, STEPS, EQUAL), ids=("all", "some", "none"))
@pytest.mark.parametrize("active", (4, 40))
def test_weighted_simulations_have_the_moments_of_the_truncated_prior(active, score):
    """Prior U(0, 1), region (0.2, 0.7), scores that differ or tie: known moments."""
    torch.manual_seed(0)
    pool_size, n, rounds = 400, 100, 1_000
    low, high = 0.2, 0.7
    values = []
    for _ in range(rounds):
        passive = low + (high - low) * torch.rand(n - active)
        pool = torch.rand(pool_size)
        acquired = pool[score(pool).argsort(descending=True, stable=True)[:active]]
        theta = torch.cat([passive, acquired])
        weights = importance_weights(
            (theta > low) & (theta < high),
            score(theta),
            score(pool),
            high - low,
            active,
        )
        assert weights.max() <= 1 / (1 - active / n) + 1e-6
        means = [weights.mean(), (weights * theta).mean(), theta.mean()]
        values.append(torch.stack(means))
    values = torch.stack(values)
    error = values.std(0) / rounds**0.5
    truth = torch.tensor([1.0, (low + high) / 2])
    assert ((values.mean(0)[:2] - truth).abs() < 4 * error[:2] + 0.01).all()
    if active == 40:  # without weights the mean is that of the acquired points, too
        assert values.mean(0)[2] - truth[1] > 0.015


def test_corrected_simulations_must_have_been_proposed():
    options = {"num_members": 2, "acquisition": Acquisition(correct=True, pool_size=50)}
    inference: MFTSNPE = make(**options)
    theta = inference.propose(20)
    inference.append_simulations(theta, simulate(theta)).train()
    theta = inference.propose(20)
    with pytest.raises(ValueError, match="not proposed in this round"):
        inference.append_simulations(theta + 0.01, simulate(theta))
    inference.append_simulations(theta.flip(0)[:15], simulate(theta)[:15])
    last = inference._state.parts[-1]
    assert last.weights is not None and len(last) <= 15
    assert last.weights.max() <= 1 / 0.8 + 1e-5 and last.weights.min() > 0
    inference.train()
    with pytest.raises(ValueError, match="propose"):
        inference.append_simulations(theta, simulate(theta))


@pytest.mark.parametrize("on", ("density", "gain"))
def test_a_member_without_density_at_a_point_leaves_the_other_scores(on):
    theta, prior = torch.zeros(3, 1), MultivariateNormal(torch.zeros(1), torch.eye(1))
    log_probs = torch.tensor([[0.0, -1.0, torch.nan], [-1.0, -1.0, -2.0]])
    scores = Acquisition(on=on).scores(theta, log_probs, prior)
    assert scores.isfinite().all() and scores[0] > 0 and scores[1] == 0
