"""Simulators of different informativeness, and their simulations."""

import torch

from sbi_multilevel import LevelSimulations, MultilevelSimulations

FAST = {"max_num_epochs": 6, "training_batch_size": 200, "learning_rate": 5e-3}
COUNTS = (400, 60)


def level(n, seed, number, simulators):
    """Simulations with theta uniform on [-1, 1]^2 and four noises."""
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(n, 2, generator=generator) - 1
    noise = torch.randn(n, 4, generator=generator)
    x_coarse = simulators[number - 1](theta, noise) if number else None
    return LevelSimulations(number, theta, simulators[number](theta, noise), x_coarse)


def simulations(*simulators, counts=COUNTS, seed=0):
    return MultilevelSimulations(
        tuple(
            level(n, 10 * seed + number, number, simulators)
            for number, n in enumerate(counts)
        )
    )


def unpaired(sims):
    levels = (LevelSimulations(each.level, each.theta, each.x) for each in sims)
    return MultilevelSimulations(tuple(levels))


def high(theta, noise):
    return theta + 0.3 * noise[:, :2]


def near(theta, noise):
    return theta + 0.2 * theta**2 + 0.3 * noise[:, :2]


def useless(theta, noise):
    return 0.7 * noise[:, 2:]


def other_noise(theta, noise):
    return theta + 0.3 * noise[:, 2:]
