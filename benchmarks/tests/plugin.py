"""A plugin: a task without a network, and methods that work, fail or crash."""

import os

import torch
from sbi.utils import BoxUniform

from sbi_multilevel_benchmarks import (
    BenchmarkTask,
    Fit,
    register_method,
    register_task,
)


class Middle(BenchmarkTask):
    """Distance of test parameters to an estimate."""

    family, metric = "npe", "gap"
    num_simulations = (6, 3)
    costs = (1.0, 10.0)
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    simulators = (
        lambda theta, noise: theta + noise,
        lambda theta, noise: theta + 2 * noise,
    )

    @staticmethod
    def noise(n, generator):
        return torch.randn(n, 1, generator=generator)

    def build_network(self):
        raise NotImplementedError

    def evaluate(self, estimator, trained_on):
        theta, _ = self.simulate_high(20, seed=10_000)
        return {"gap": (theta - estimator).abs()[:, 0].tolist(), "other": [1.0]}


def average(task, simulations, seed):
    high = simulations[-1]
    return Fit(high.theta.mean(), high.x, 1, runs=(0, len(high)))


def of_all(task, simulations, seed):
    theta = torch.cat([level.theta for level in simulations])
    return Fit(theta.mean(), simulations[-1].x, 1)


def failing(task, simulations, seed):
    if os.environ.get("FAILING_SEED") == str(seed):
        raise RuntimeError("a failure")
    return average(task, simulations, seed)


def crashing(task, simulations, seed):
    os._exit(1)


register_task("middle", lambda data: Middle())
register_task("middle-again", lambda data: Middle())
register_method("average", average)
register_method("of-all", of_all)
register_method("failing", failing)
register_method("crashing", crashing)
