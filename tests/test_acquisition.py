"""Disagreement of members, and importance weights of active points."""

import pytest
import torch

from sbi_multilevel import MFTSNPE, Acquisition
from sbi_multilevel.methods.sequential.acquisition import (
    disagreement,
    importance_weights,
)
from tests.test_mftsnpe import make, simulate


def test_disagreement_is_the_variance_over_members():
    log_probs = torch.log(torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]]))
    density = disagreement(log_probs, "density")
    assert torch.allclose(density, torch.tensor([2.0, 0.0, 0.0]) / 9)  # scaled by max
    log = disagreement(log_probs, "log_density")
    assert log[1] == 0 and log[2] == 0
    assert log[0] == pytest.approx((torch.log(torch.tensor(3.0)) ** 2 / 2).item())
    nowhere = torch.full((2, 3), -torch.inf)
    assert torch.equal(disagreement(nowhere, "density"), torch.zeros(3))


def test_the_order_of_scores_does_not_depend_on_the_scale():
    log_probs = torch.randn(5, 50)
    order = disagreement(log_probs, "density").argsort()
    assert torch.equal(order, disagreement(log_probs - 200, "density").argsort())


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
