"""Invalid or unusual simulations of two levels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import (
    Beta,
    Cauchy,
    Exponential,
    Gamma,
    HalfCauchy,
    Independent,
    LogNormal,
    Normal,
    Pareto,
)

COUNTS = (60, 24)
NAN, INF = float("nan"), float("inf")
ONE = torch.ones(1)


def box():
    return BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))


@dataclass(frozen=True)
class Case:
    """A change of good simulations, and its expected outcome.

    Args:
        change: Changes the columns of the two levels, in place.
        refused: Pattern of the error; `None` where training must work.
        may_train: Whether training may work by some methods all the same.
        prior: The prior.
        num_features: Features of x.
    """

    change: Callable = lambda low, high: None
    refused: str | None = None
    may_train: bool = False
    prior: Callable = box
    num_features: int = 3


def simulate(case):
    """The columns of both levels after the change."""
    prior, generator = case.prior(), torch.Generator().manual_seed(1)
    weights = torch.randn(2, case.num_features, generator=generator)

    def run(theta, noise, bend):
        return theta @ weights + bend * theta[:, :1] + 0.5 * noise

    levels = []
    for level, count in enumerate(COUNTS):
        theta = prior.sample((count,))
        noise = torch.randn(count, case.num_features, generator=generator)
        columns = {"theta": theta, "x": run(theta, noise, 0.1 * level)}
        if level > 0:
            columns["x_coarse"] = run(theta, noise, 0.0)
        levels.append(columns)
    case.change(*levels)
    return prior, *levels


def outputs(levels, low, high):
    """The outputs of the simulators that are meant."""
    if 0 in levels:
        yield from (low["x"], high["x_coarse"])
    if 1 in levels:
        yield high["x"]


def constant(value, levels=(0,), features=(0,)):
    def change(low, high):
        for x in outputs(levels, low, high):
            x[:, list(features)] = value

    return change


def single(value, level, column="x", row=0):
    def change(*levels):
        levels[level][column][int(row), 0] = value

    return change


def times(factor, levels=(0, 1), shift=0.0):
    def change(low, high):
        for x in outputs(levels, low, high):
            x[:, 0] = factor * x[:, 0] + shift

    return change


def every_column(level, function):
    def change(*levels):
        levels[level].update({k: function(v) for k, v in levels[level].items()})

    return change


def one_column(level, column, function):
    def change(*levels):
        levels[level][column] = function(levels[level][column])

    return change


def copy_feature(factor):
    def change(low, high):
        for x in outputs((0, 1), low, high):
            x[:, 1] = factor * x[:, 0]

    return change


def same_pairs(low, high):
    high["x_coarse"] = high["x"].clone()


def first(count):
    return lambda column: column[:count]


def repeated(times):
    return lambda column: column[: len(column) // times].repeat(times, 1)


def of_one_theta(columns):
    columns["theta"][:] = columns["theta"][0]


def two_of(distribution, *parameters):
    both = [parameter * torch.ones(2) for parameter in parameters]
    return lambda: Independent(distribution(*both), 1)


LARGE = "too large for single precision"

CASES = {
    "nothing wrong": Case(),
    "constant at level 0": Case(constant(1.0)),
    "another constant at each level": Case(
        lambda low, high: [constant(v, (v,))(low, high) for v in (0, 1)]
    ),
    "constant at all levels": Case(constant(1.0, (0, 1))),
    "large constant": Case(constant(12_345.678, (0, 1))),
    "1e30 at level 0": Case(single(1e30, 0)),
    "1e30 at level 1": Case(single(1e30, 1)),
    "scale 1e30": Case(times(1e30), LARGE),
    "scale 1e-30": Case(times(1e-30)),
    "one simulation of level 1": Case(every_column(1, first(1)), "1 valid"),
    "no simulation of level 1": Case(every_column(1, first(0)), "0 valid"),
    "NaN in theta of level 1": Case(
        single(NAN, 1, "theta"), "theta of level 1 has NaN", may_train=True
    ),
    "collinear features": Case(copy_feature(2.0)),
    "duplicated simulations": Case(every_column(1, repeated(12))),
    "double precision": Case(one_column(1, "x", torch.Tensor.double), "float32"),
    "theta outside of the prior": Case(
        single(9.0, 1, "theta"), "outside the support", may_train=True
    ),
    "exponential prior": Case(prior=two_of(Exponential, 1.0)),
    "500 features": Case(num_features=500),
    "constant at level 1": Case(constant(1.0, (1,))),
    "all features constant at level 0": Case(constant(1.0, (0,), (0, 1, 2))),
    "all features constant": Case(constant(1.0, (0, 1), (0, 1, 2))),
    "constant 1e30": Case(constant(1e30, (0, 1)), LARGE),
    "3e38 at level 0": Case(single(3e38, 0)),
    "3e38 at level 1": Case(single(3e38, 1)),
    "3e38 in x_coarse": Case(single(3e38, 1, "x_coarse")),
    "1e10 at level 0": Case(single(1e10, 0)),
    "3e38 of both signs": Case(
        lambda *levels: [single(v, 0, row=v > 0)(*levels) for v in (3e38, -3e38)]
    ),
    "scale 1e30 at level 0": Case(times(1e30, (0,)), LARGE),
    "scale 1e30 at level 1": Case(times(1e30, (1,)), LARGE),
    "scale 1e-30 at level 0": Case(times(1e-30, (0,))),
    "scale 1e-30 at level 1": Case(times(1e-30, (1,))),
    "scale 1e10": Case(times(1e10)),
    "scale 1e-10": Case(times(1e-10)),
    "offset 1e8": Case(times(1.0, shift=1e8)),
    "offset 1e30": Case(times(1.0, shift=1e30), LARGE),
    "one simulation of level 0": Case(every_column(0, first(1)), "1 valid"),
    "no simulation of level 0": Case(every_column(0, first(0)), "0 valid"),
    "five simulations of level 1": Case(every_column(1, first(5))),
    "two simulations of level 0": Case(every_column(0, first(2)), "left to train on"),
    "NaN in x of level 0": Case(single(NAN, 0)),
    "inf in x of level 0": Case(single(INF, 0)),
    "NaN in x_coarse": Case(single(NAN, 1, "x_coarse")),
    "NaN in all x of level 0": Case(one_column(0, "x", lambda x: NAN * x), "0 valid"),
    "NaN in all x of level 1": Case(one_column(1, "x", lambda x: NAN * x), "0 valid"),
    "the same feature twice": Case(copy_feature(1.0)),
    "duplicated simulations of level 0": Case(every_column(0, repeated(30))),
    "one theta at level 0": Case(
        lambda low, high: of_one_theta(low), "theta are the same in all 60"
    ),
    "x is x_coarse": Case(same_pairs),
    "integers": Case(one_column(0, "x", torch.Tensor.int), "float32"),
    "booleans": Case(one_column(1, "x", torch.Tensor.bool), "float32"),
    "theta in double precision": Case(
        one_column(0, "theta", torch.Tensor.double), "float32"
    ),
    "an array": Case(one_column(0, "x", torch.Tensor.numpy), "float32|torch.Tensor"),
    "a list": Case(one_column(1, "x", torch.Tensor.tolist), "float32|torch.Tensor"),
    "x without a feature dimension": Case(
        one_column(1, "x", lambda x: x[:, 0]), "at least two dimensions|shape"
    ),
    "theta outside of the prior at level 0": Case(
        single(9.0, 0, "theta"), "outside the support", may_train=True
    ),
    "gamma prior": Case(prior=two_of(Gamma, 0.05, 1.0)),
    "beta prior": Case(prior=two_of(Beta, 0.3, 0.3)),
    "prior with a bound on one side": Case(
        prior=lambda: MultipleIndependent([Exponential(ONE), BoxUniform(0 * ONE, ONE)])
    ),
    "prior with a bound for one parameter": Case(
        prior=lambda: MultipleIndependent([Gamma(ONE, ONE), Normal(0 * ONE, ONE)])
    ),
    "half-Cauchy prior": Case(prior=two_of(HalfCauchy, 1.0)),
    "Pareto prior": Case(prior=two_of(Pareto, 1.0, 1.0)),
    "log-normal prior": Case(prior=two_of(LogNormal, 0.0, 3.0)),
    "Cauchy prior": Case(prior=two_of(Cauchy, 0.0, 1.0), refused="no finite mean"),
}
