"""Lotka-Volterra against closed forms of birth and death processes."""

import math

import numpy as np
import pytest
import torch

from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.tasks import lotka_volterra as lv

NEVER = -math.inf  # log rate of a reaction that does not take place
TIMES = torch.as_tensor(lv.TIMES).double()
MIDDLE = torch.tensor(lv.RATES).log()


def noise_of(num, seed=0):
    return lv.LotkaVolterra.noise(num, torch.Generator().manual_seed(seed))


def populations(log_rates, num, simulator=lv.exact, **options):
    """Prey and predators of `num` simulations at one theta, double precision."""
    theta = torch.as_tensor(log_rates, dtype=torch.float32).expand(num, -1)
    x = simulator(theta, noise_of(num), **options).double()
    return x.expm1().unflatten(1, (2, -1)).unbind(dim=1)


def within_errors(values, mean, variance, width=4.5):
    """Whether means and variances over simulations are the exact ones."""
    error = values.std(dim=0) / len(values) ** 0.5
    squares = (values - mean) ** 2
    spread = squares.std(dim=0) / len(values) ** 0.5
    assert ((values.mean(dim=0) - mean).abs() <= width * error + 1e-3).all()
    assert ((squares.mean(dim=0) - variance).abs() <= width * spread + 1e-2).all()


def test_births_alone_are_a_yule_process():
    prey, predators = populations([math.log(0.2), NEVER, NEVER], 1_000)
    growth = (0.2 * TIMES).exp()
    start, constant = map(float, lv.START)
    within_errors(prey, start * growth, start * growth * (growth - 1))
    assert torch.allclose(predators, torch.full_like(predators, constant))


def test_deaths_alone_are_binomial():
    prey, predators = populations([NEVER, NEVER, math.log(0.3)], 1_000)
    alive = (-0.3 * TIMES).exp()
    within_errors(predators, 100 * alive, 100 * alive * (1 - alive))
    assert torch.allclose(prey, torch.full_like(prey, 50.0))


def test_predation_alone_keeps_the_sum_and_ends_with_the_prey():
    for simulator in (lv.exact, lv.leaping):
        prey, predators = populations([NEVER, math.log(0.05), NEVER], 50, simulator)
        assert torch.allclose(prey + predators, torch.full_like(prey, 150.0))
        assert prey.min() >= 0 and prey[:, -1].abs().max() < 1e-3


def test_leaping_has_the_moments_of_a_discrete_branching_process():
    """A step multiplies by 1 + Poisson(c tau) on average: moments by recursion."""
    prey, _ = populations([math.log(0.4), NEVER, NEVER], 1_000, lv.leaping, steps=1)
    mean, variance, means, variances = 50.0, 0.0, [], []
    for _ in lv.TIMES:
        mean, variance = 1.4 * mean, 1.4**2 * variance + 0.4 * mean
        means.append(mean)
        variances.append(variance)
    within_errors(prey, torch.tensor(means), torch.tensor(variances))


def test_leaping_tends_to_the_exact_process_on_the_same_noise():
    theta, noise = MIDDLE.expand(40, -1), noise_of(40)
    x = lv.exact(theta, noise)
    errors = [
        (lv.leaping(theta, noise, steps) - x)[:, :5].abs().mean().item()
        for steps in (2, 10, 50, 250)
    ]
    ratios = np.array(errors[1:]) / np.array(errors[:-1])
    assert (ratios < 0.7).all() and errors[-1] < 0.02


def test_levels_are_correlated_beyond_theta_by_their_noise():
    theta, noise = MIDDLE.expand(400, -1), noise_of(400)
    x, same = lv.exact(theta, noise), lv.leaping(theta, noise)
    other = lv.leaping(theta, noise_of(400, seed=1))

    def correlations(coarse):
        return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, coarse.T)])

    assert correlations(same).min() > 0.3 and correlations(same).mean() > 0.7
    assert np.abs(correlations(other)).max() < 4.5 / 400**0.5


def test_simulations_do_not_depend_on_their_batch():
    task = get_task("lotka-volterra")
    theta, noise = task.prior.sample((3,)), noise_of(3)
    for simulator in task.simulators:
        x = simulator(theta, noise)
        assert torch.equal(x, simulator(theta, noise))
        alone = [simulator(theta[i : i + 1], noise[i : i + 1]) for i in range(3)]
        assert torch.allclose(x, torch.cat(alone))


def test_the_number_of_arrivals_drawn_at_first_does_not_matter(monkeypatch):
    theta, noise = MIDDLE.expand(5, -1), noise_of(5)
    before = [each(theta, noise) for each in (lv.exact, lv.leaping)]
    monkeypatch.setattr(lv, "_FIRST_DRAW", 4)
    again = [each(theta, noise) for each in (lv.exact, lv.leaping)]
    assert all(torch.equal(a, b) for a, b in zip(before, again))


def test_the_cost_is_the_number_of_reactions():
    # predators only die, once each
    theta = torch.tensor([[NEVER, NEVER, math.log(0.3)]]).expand(20, -1)
    dead = 100 - lv.exact(theta, noise_of(20))[:, -1].expm1()
    assert torch.allclose(lv.cost_of(theta, noise_of(20)), dead, atol=1e-3)
    # faster reactions, more of them
    task = get_task("lotka-volterra")
    slow = task.cost_of(MIDDLE.expand(200, -1), noise_of(200))
    fast = task.cost_of((MIDDLE + math.log(1.5)).expand(200, -1), noise_of(200))
    assert fast.mean() > 1.2 * slow.mean()
    theta = task.prior.sample((300,))
    mean = task.cost_of(theta, noise_of(300)).mean().item()
    assert mean == pytest.approx(task.costs[1], rel=0.3)


def test_prey_are_born_up_to_the_capacity():
    theta = [math.log(2.0), NEVER, math.log(1.2)]
    for simulator in (lv.exact, lv.leaping):
        prey, _ = populations(theta, 3, simulator)
        # a step of tau-leaping starts below, and may end above
        assert prey.max() < 1.5 * lv.CAPACITY
        assert prey[:, -1].min() > 0.999 * lv.CAPACITY


def test_the_exact_posterior_is_not_known():
    task = get_task("lotka-volterra")
    assert not task.has_reference and len(task.observations) == 100
    with pytest.raises(TypeError, match="not known"):
        task.reference(0)
