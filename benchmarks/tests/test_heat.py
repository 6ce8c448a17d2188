"""The heat equation against solutions in closed form."""

import math

import numpy as np
import pytest
import torch

from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.tasks import heat

CENTRAL = torch.tensor([[-1.5, 0.45, 0.05], [-1.0, 0.55, 0.04], [-2.2, 0.5, 0.06]])


def cell_means_of_cosine(k, num_cells):
    edges = torch.arange(num_cells + 1, dtype=torch.float64) / num_cells
    return (math.pi * k * edges).sin().diff() / (math.pi * k) * num_cells


def by_images(theta):
    """Readings of a source that is negligible at the ends, by reflected sources."""
    log_kappa, middle, width = theta.double()[:, :, None, None].unbind(dim=1)
    sensors = torch.tensor(heat.SENSORS, dtype=torch.float64)
    times = torch.tensor(heat.TIMES, dtype=torch.float64)[:, None]
    variance = width**2 + 2 * 10**log_kappa * times
    total = 0.0
    for shift in range(-3, 4):
        for sign in (1, -1):
            distance = sensors - (sign * middle + 2 * shift)
            total = total + (-0.5 * distance**2 / variance).exp()
    return (width / variance.sqrt() * total).flatten(1)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_eigenmodes_decay_at_their_rate_with_an_error_of_second_order(k):
    kappa, time = 0.05, 0.7
    errors = []
    for num_cells in (16, 32, 64, 128):
        start = cell_means_of_cosine(k, num_cells)
        end = heat.evolve(start[None], torch.tensor([kappa]).double(), time)[0]
        exact = start * math.exp(-kappa * (math.pi * k) ** 2 * time)
        errors.append((end - exact).abs().max().item())
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.allclose(ratios, 4, atol=0.1)


def test_insulated_ends_keep_the_heat():
    start = torch.rand(5, 8, dtype=torch.float64)
    kappa = torch.tensor([0.1, 0.01, 0.0, 1.0, 0.3]).double()
    end = heat.evolve(start, kappa, 0.5)
    assert torch.allclose(end.mean(dim=1), start.mean(dim=1))
    assert torch.allclose(end[2], start[2])
    late = heat.evolve(start, torch.ones(5).double(), 50.0)
    assert torch.allclose(late, start.mean(dim=1, keepdim=True).expand(-1, 8))
    # two steps are one of twice the length
    again = heat.evolve(end, kappa, 0.5)
    assert torch.allclose(again, heat.evolve(start, kappa, 1.0))


def test_readings_converge_to_the_solution_by_reflected_sources():
    exact = by_images(CENTRAL)
    errors = [
        (heat.readings(CENTRAL, num_cells) - exact).abs().max().item()
        for num_cells in (8, 64, 512)
    ]
    # 64 times smaller at second order, up to the place of sensors between centers
    assert errors[0] > 0.03 and errors[1] < errors[0] / 25
    assert errors[2] < errors[1] / 25


def test_the_noise_is_that_of_the_sensors_and_shared():
    theta = CENTRAL[:1].expand(4_000, -1)
    noise = heat.Heat.noise(4_000, torch.Generator().manual_seed(0))
    low, high = (simulator(theta, noise) for simulator in heat.Heat.simulators)
    exact = heat.readings(CENTRAL[:1], 64).float()
    assert ((high.mean(dim=0) - exact).abs() < 5 * heat.ERROR / 4_000**0.5).all()
    spread = high.std(dim=0)
    assert torch.allclose(spread, torch.full_like(spread, heat.ERROR), rtol=0.06)
    gap = high - low
    assert torch.allclose(gap, gap[:1].expand(4_000, -1), atol=1e-6)
    assert gap[0].abs().max() > heat.ERROR


def test_levels_are_more_correlated_by_their_noise():
    task = get_task("heat")
    theta = task.prior.sample((2_000,))
    noise, other = (task.noise(2_000, torch.Generator().manual_seed(s)) for s in (0, 1))
    x = task.simulators[1](theta, noise)

    def correlations(coarse):
        return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, coarse.T)])

    shared = correlations(task.simulators[0](theta, noise))
    apart = correlations(task.simulators[0](theta, other))
    assert shared.min() > 0.95 and (shared > apart).all()


def test_the_exact_posterior_agrees_with_importance_weights():
    task = get_task("heat")
    x = task.observations[0]
    samples = task.exact_posterior(x, 4_000)
    draws = task.prior.sample((400_000,))
    weights = torch.softmax(heat.log_likelihood(draws, x), dim=0)
    effective = 1 / weights.square().sum()
    assert effective > 500
    mean = (weights[:, None] * draws).sum(dim=0)
    square = (weights[:, None] * (draws - mean) ** 2).sum(dim=0)
    error = (square * (1 / effective + 1 / 4_000)).sqrt()
    assert ((samples.mean(dim=0) - mean).abs() < 4 * error).all()
    assert ((samples.std(dim=0) - square.sqrt()).abs() < 6 * error).all()


def test_the_exact_posterior_is_narrower_than_the_prior_and_has_the_truth():
    task = get_task("heat")
    for i in range(3):
        samples = task.reference(i)
        assert (samples.std(dim=0) < 0.5 * task.prior.stddev).all()
        # of the true parameters, and not far in the tails
        distance = (samples.mean(dim=0) - task.true_theta[i]) / samples.std(dim=0)
        assert distance.abs().max() < 4


def test_the_cost_is_the_number_of_stable_explicit_steps():
    """At the limit of stability the fastest mode changes its sign in each step."""
    theta = heat.Heat.prior.sample((5,))
    steps = heat.Heat.cost_of(theta, heat.Heat.noise(5, torch.Generator()))
    fastest = 4 * 10 ** theta[:, 0] * 64**2  # decay rate of the fastest mode, at most
    assert torch.allclose(fastest / steps, torch.tensor(2.0))  # |1 - rate dt| = 1
