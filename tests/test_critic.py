"""Critic of the mutual information and its training."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch.distributions import MultivariateNormal

from sbi_multilevel.diagnostics import critic as critics
from sbi_multilevel.diagnostics.critic import Critic, contributions, train_critic
from tests.test_information import exact_normal, normals


def test_the_bound_is_that_computed_by_hand():
    log2 = math.log(2)
    table = torch.tensor([[log2, 0.0], [math.log(3), 2 * log2]])
    # mean of log 2 and log 4, minus log of the mean of 1 and 3
    values = contributions(table)
    assert values.mean().item() == pytest.approx(1.5 * log2 - log2)
    # both pairs have ratios 1 and 3, with a mean of 2
    assert values.tolist() == pytest.approx([0.0, log2], abs=1e-6)


def test_the_bound_of_a_constant_critic_is_zero():
    assert contributions(torch.full((5, 5), 3.0)).tolist() == pytest.approx([0.0] * 5)


def test_contributions_give_the_error_of_the_bound():
    """The error is the spread over data sets, for a fixed critic."""
    rho, n = 0.6, 200

    def table(seed):
        x, y = normals(rho, n, 1, seed)
        # the exact log ratio, up to a constant
        return (rho * x @ y.T - rho**2 / 2 * (x**2 + y.T**2)) / (1 - rho**2)

    found = [contributions(table(seed)) for seed in range(200)]
    spread = np.std([float(values.mean()) for values in found], ddof=1)
    claimed = np.mean([float(values.std() / math.sqrt(n)) for values in found])
    assert claimed == pytest.approx(spread, rel=4 / math.sqrt(400))
    assert np.mean([float(v.mean()) for v in found]) == pytest.approx(
        exact_normal(rho), abs=4 * spread / math.sqrt(200)
    )


def test_the_initial_critic_is_the_ratio_of_normal_densities():
    x, y = normals(0.7, 300, 3)
    y = y[:, :2] + 0.3 * x[:, 1:]
    covariance = LedoitWolf().fit(torch.cat([x, y], 1).numpy()).covariance_
    covariance = torch.from_numpy(covariance).float()
    parts = (slice(None), slice(3), slice(3, None))
    joint, of_x, of_y = (
        MultivariateNormal(torch.zeros(len(c)), c)
        for c in (covariance[part, part] for part in parts)
    )
    exact = joint.log_prob(torch.cat([x, y], 1)) - of_x.log_prob(x) - of_y.log_prob(y)
    with torch.no_grad():
        start = Critic(x, y)(x, y).diagonal()
    assert torch.allclose(start - start[0], exact - exact[0], atol=1e-3)


def test_values_of_a_batch_are_those_of_single_pairs():
    x, y = normals(0.7, 50, 3)
    torch.manual_seed(0)
    critic = train_critic(x, y)
    with torch.no_grad():
        table = critic(x, y)
        assert torch.allclose(table[4, 7], critic(x[4:5], y[7:8])[0, 0], atol=1e-5)


def gradient_of(value, critic):
    return torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)


@pytest.mark.parametrize("factor", (None, 1.0, 4.0))
def test_the_moving_average_corrects_the_gradient(factor):
    """One step of gradient descent is that computed by hand."""
    x, y = normals(0.7, 40, 2)
    torch.manual_seed(0)
    critic = Critic(x, y)
    with torch.no_grad():  # at the initial weights some gradients vanish
        for parameter in critic.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    table = critic(x, y)
    mean = critics.off_diagonal(table).exp().mean()
    average = None if factor is None else factor * mean.detach()
    # without an average it is the mean itself: the gradient of the bound
    weight = 0.99 * (factor or 1.0) + 0.01
    expected = gradient_of(
        table.diagonal().mean() - mean / (weight * mean.detach()), critic
    )
    if factor is None:
        bound = gradient_of(contributions(critic(x, y)).mean(), critic)
        for one, two in zip(expected, bound):
            assert torch.allclose(one, two, atol=1e-5)
    before = copy.deepcopy(list(critic.parameters()))
    optimizer = torch.optim.SGD(critic.parameters(), 1e-2)
    torch.manual_seed(1)
    average = critics._epoch(critic, (x, y), optimizer, average)
    assert average.item() == pytest.approx(weight * mean.item(), rel=1e-5)
    for old, new, step in zip(before, critic.parameters(), expected):
        assert torch.allclose(new - old, 1e-2 * step, atol=1e-6)


def test_a_critic_with_a_negative_bound_is_zero():
    """The held-out fifth has the opposite correlation."""
    x, y = normals(0.9, 25, 12)
    y[:5] = -y[:5]
    torch.manual_seed(0)
    critic = train_critic(x, y)
    with torch.no_grad():
        assert (critic(*normals(0.5, 9, 12)) == 0).all()


def test_critics_are_bounded():
    x, y = normals(0.99, 60, 4)
    torch.manual_seed(0)
    critic = train_critic(x, y)
    with torch.no_grad():
        far = critic(10 * x, 10 * y)
        assert far.max() == critic.ceiling
        assert critic(x[:12], y[:12]).max() <= critic.ceiling


def test_ratios_are_bounded_by_the_squared_number_of_pairs():
    """Unpaired combinations have T = 0, so that the logarithm of the mean is 0."""
    table = 50 * torch.eye(20)
    pairs = torch.zeros(20, 1), torch.zeros(20, 1)
    values = critics._held_out(lambda x, y: table, pairs, 100)
    assert values.mean().item() == pytest.approx(2 * math.log(100))


def test_the_ceiling_depends_on_the_number_of_pairs_if_these_are_nearly_equal(
    monkeypatch,
):
    monkeypatch.setattr(critics, "_MAX_STEPS", 0)
    x, y = normals(1 - 1e-7, 200, 12)
    critic = train_critic(x, y)
    ceiling = critic.ceiling.clone()
    critic.ceiling.fill_(math.inf)
    with torch.no_grad():
        table = critic(x[:40], y[:40])
    unpaired = critics.off_diagonal(table)
    limit = torch.logsumexp(unpaired, 0) - math.log(40 * 39) + 2 * math.log(200)
    assert ceiling == pytest.approx(limit.item(), abs=1e-3)
    assert ceiling < table.diagonal().max() - 1


def test_the_first_epoch_within_an_error_of_the_best_is_kept(monkeypatch):
    spread = torch.tensor([-1.0, 1.0]).repeat(10)
    # bounds of the initial weights and of each epoch
    means = [0.0, 1.0, 1.9, 2.0, 1.5]
    epoch = 0

    def step(critic, pairs, optimizer, average):
        nonlocal epoch
        epoch += 1
        with torch.no_grad():
            critic.of_x[-1].bias.fill_(epoch)

    def bound(critic, pairs, num_pairs):
        return means[epoch] + (epoch % 2) * spread

    monkeypatch.setattr(critics, "_epoch", step)
    monkeypatch.setattr(critics, "_held_out", bound)
    monkeypatch.setattr(critics, "_MAX_STEPS", 4)
    critic = train_critic(*normals(0.5, 100, 1))
    # epoch 2 is 0.1 below epoch 3, less than the error of 0.23 of 20 pairs
    assert (critic.of_x[-1].bias == 2).all()
