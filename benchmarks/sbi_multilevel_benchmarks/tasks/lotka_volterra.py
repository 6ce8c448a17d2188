r"""Lotka-Volterra: a Markov jump process of predators and prey, and tau-leaping.

Prey :math:`X_1` and predators :math:`X_2` change by three reactions with hazards

.. math::

    a_1 = c_1 X_1 \;\text{(birth)}, \qquad a_2 = c_2 X_1 X_2 \;\text{(predation)},
    \qquad a_3 = c_3 X_2 \;\text{(death)},

whose changes of :math:`(X_1, X_2)` are :math:`\nu = (1, 0), (-1, 1), (0, -1)`. In the
random time change of Kurtz (Ethier and Kurtz 1986, *Markov Processes*, Chapter 6),

.. math:: X(t) = X(0) + \sum_k \nu_k\, Y_k\!\left(\int_0^t a_k(X(s))\, ds\right)

with independent Poisson processes :math:`Y_k` of unit rate. These are the noise, and
both levels use the same.

*Level 1* is exact. With the internal time :math:`T_k = \int a_k` and the next arrival
:math:`P_k` of :math:`Y_k`, reaction k is due in :math:`(P_k - T_k) / a_k`, and the
first one takes place (modified next reaction method, Anderson 2007, J. Chem. Phys. 127,
214107).

*Level 0* is tau-leaping (Gillespie 2001, J. Chem. Phys. 115, 1716): hazards are
constant in steps of :math:`\tau = 0.2`, in which reaction k takes place :math:`Y_k(T_k
+ a_k \tau) - Y_k(T_k)` times. Predation stops for the rest of a step when as many prey
are eaten as there were at its start, and so does death with the predators. For
:math:`\tau \to 0` it is level 1 on the same noise.

The start of 50 prey and 100 predators and the rates :math:`c = (1, 0.005, 0.6)` are
those of the package smfsb of Wilkinson (*Stochastic Modelling for Systems Biology*),
where time has no unit. Theta is :math:`\log c`, with a uniform prior within a factor of
2 of these rates. The prior of Papamakarios et al. (2019), arXiv:1805.07226, for a model
of four reactions, is uniform on :math:`[-5, 2]^4`, where populations often die out or
explode. From `CAPACITY` prey on none are born, at both levels, so that all simulations
end; few reach it.

x is :math:`\log(1 + X)` of both species at the times 1, 2, ..., 10: a subsampled time
series, without summary statistics. The cost of level 1 is its number of reactions,
which depends on theta (`cost_of`), that of level 0 the number of its steps. The exact
posterior is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.registry import register_task

RATES = (1.0, 0.005, 0.6)  # of birth, predation and death
FACTOR = 2.0  # of the prior around the rates
START = (50, 100)
CAPACITY = 10_000
TIMES = np.arange(1.0, 11.0)
STEPS = 5  # of tau-leaping in a unit of time

_CHANGES = np.array([[1, -1, 0], [0, 1, -1]])  # of a species by a reaction
_DUE = np.append(TIMES, np.inf)
_FIRST_DRAW = 256  # arrivals of a process, a power of 2
_BLOCK = 1_000  # simulations whose arrivals are in memory at once

Place = tuple[np.ndarray, ...]  # indices of reactions and of simulations


class Arrivals:
    """Arrivals of unit-rate Poisson processes, three for each simulation.

    Args:
        seeds: A seed for each process, shape `(3, n)`.
    """

    def __init__(self, seeds: np.ndarray):
        self._seeds = seeds
        self._drawn = np.zeros(seeds.shape, dtype=np.int64)
        self._times = np.empty((*seeds.shape, 0))  # infinite where none is drawn yet
        self._draw(np.ones(seeds.shape, dtype=bool))

    def _draw(self, chosen: np.ndarray) -> None:
        """Double the number of arrivals of some processes."""
        self._drawn[chosen] = np.maximum(2 * self._drawn[chosen], _FIRST_DRAW)
        missing = int(self._drawn.max()) - self._times.shape[2]
        if missing > 0:
            unknown = np.full((*self._seeds.shape, missing), np.inf)
            self._times = np.concatenate((self._times, unknown), axis=2)
        for place in zip(*np.nonzero(chosen)):
            # a longer draw of a generator begins with the shorter one
            gaps = np.random.default_rng(self._seeds[place]).standard_exponential(
                self._drawn[place]
            )
            self._times[place][: len(gaps)] = gaps.cumsum()

    @property
    def first(self) -> np.ndarray:
        """The first arrival of each process, shape `(3, n)`."""
        return self._times[:, :, 0].copy()

    def following(self, count: np.ndarray, place: Place) -> np.ndarray:
        """The arrival after the first `count` ones of each process at a place."""
        while (short := count >= self._drawn[place]).any():
            chosen = np.zeros(self._drawn.shape, dtype=bool)
            chosen[place] = short
            self._draw(chosen)
        return self._times[(*place, count)]

    def until(
        self, time: np.ndarray, most: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Arrivals of each process until a time of its own, but at most some number.

        Args:
            time: Times, shape `(3, n)`.
            most: Largest numbers of arrivals, shape `(3, n)`.

        Returns:
            Numbers of arrivals, and times: that of the last arrival where there would
            be more, else `time`.
        """
        every = tuple(np.indices(time.shape, sparse=True))
        while True:
            all_passed = self._times[(*every, self._drawn - 1)] <= time
            if not (short := all_passed & (self._drawn <= most)).any():
                break
            self._draw(short)
        count, step = np.zeros(time.shape, dtype=np.int64), self._times.shape[2] // 2
        while step > 0:  # bisection, as the number of arrivals is a power of 2
            count += step * (self._times[(*every, count + step - 1)] <= time)
            step //= 2
        last = self._times[(*every, np.minimum(most, self._drawn) - 1)]
        return np.minimum(count, most), np.where(count > most, last, time)

    def keep(self, rows: np.ndarray) -> None:
        """Drop all simulations but some."""
        self._seeds, self._drawn = self._seeds[:, rows], self._drawn[:, rows]
        self._times = self._times[:, rows]


def hazards(rates: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Hazards of the reactions, from rates `(3, n)` and populations `(2, n)`."""
    prey, predators = state
    return rates * np.stack((prey * (prey < CAPACITY), prey * predators, predators))


def _start(num: int) -> np.ndarray:
    return np.repeat(np.array(START, dtype=np.float64)[:, None], num, axis=1)


def _exact_paths(rates: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Populations at all times, `(n, 2, times)`, and reactions until then, `(n,)`."""
    num = rates.shape[1]
    paths, totals = np.empty((num, 2, len(TIMES))), np.zeros(num)
    arrivals, index, row = Arrivals(seeds), np.arange(num), np.arange(num)
    state, time = _start(num), np.zeros(num)
    internal, counts = np.zeros((3, num)), np.zeros((3, num), dtype=np.int64)
    due, following = np.zeros(num, dtype=np.int64), arrivals.first
    while len(row) > 0:
        speed, gaps = hazards(rates, state), np.maximum(following - internal, 0.0)
        waits = np.divide(gaps, speed, out=np.full_like(gaps, np.inf), where=speed > 0)
        place = reaction, row = waits.argmin(axis=0), row
        time = time + waits[place]
        while (late := time > _DUE[due]).any():  # before the reaction
            paths[index[late], :, due[late]] = state[:, late].T
            totals[index[late]] = counts[:, late].sum(axis=0)
            due = due + late
        running = due < len(TIMES)
        internal = internal + speed * np.where(running, waits[place], 0.0)
        internal[place] = following[place]
        counts[place] += running
        following[place] = arrivals.following(counts[place], place)
        state = state + running * _CHANGES[:, reaction]
        if 2 * running.sum() < len(row):
            arrivals.keep(running)
            index, time, due = index[running], time[running], due[running]
            rates, state, internal = (v[:, running] for v in (rates, state, internal))
            counts, following = counts[:, running], following[:, running]
            row = np.arange(len(index))
    return paths, totals


def _leaping_paths(rates: np.ndarray, seeds: np.ndarray, steps: int) -> np.ndarray:
    """Populations at all times, `(n, 2, times)`, with a number of steps between."""
    num = rates.shape[1]
    arrivals, state, paths = Arrivals(seeds), _start(num), []
    internal, counts = np.zeros((3, num)), np.zeros((3, num), dtype=np.int64)
    unlimited = np.full((1, num), 2.0**40)
    for _ in TIMES:
        for _ in range(steps):
            until = internal + hazards(rates, state) / steps
            most = counts + np.concatenate((unlimited, state)).astype(np.int64)
            before, (counts, internal) = counts, arrivals.until(until, most)
            state = state + _CHANGES @ (counts - before)
        paths.append(state)
    return np.stack(paths, axis=2).transpose(1, 0, 2)


def _blocks(theta: Tensor, noise: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rates and seeds, both `(3, n)`, of some of the simulations at a time."""
    rates, seeds = theta.double().exp().T.numpy(), noise.T.numpy()
    for start in range(0, len(theta), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield rates[:, part], seeds[:, part]


def _features(paths: list[np.ndarray]) -> Tensor:
    logs = np.log1p(np.concatenate(paths)).reshape(-1, 2 * len(TIMES))
    return torch.as_tensor(logs, dtype=torch.float32)


def exact(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: the exact process, 10 times of prey and then of predators."""
    return _features([_exact_paths(*block)[0] for block in _blocks(theta, noise)])


def leaping(theta: Tensor, noise: Tensor, steps: int = STEPS) -> Tensor:
    """Level 0: tau-leaping with a number of steps in a unit of time."""
    blocks = _blocks(theta, noise)
    return _features([_leaping_paths(*block, steps) for block in blocks])


def cost_of(theta: Tensor, noise: Tensor) -> Tensor:
    """Reactions of the exact process until the last time, shape `(n,)`.

    Args:
        theta: Log rates, shape `(n, 3)`.
        noise: Seeds of the Poisson processes, shape `(n, 3)`.
    """
    totals = [_exact_paths(*block)[1] for block in _blocks(theta, noise)]
    return torch.as_tensor(np.concatenate(totals), dtype=torch.float32)


class LotkaVolterra(PosteriorTask):
    """Posterior of the log rates of birth, predation and death."""

    name, metric = "lotka-volterra", "nltp"
    simulators = (leaping, exact)
    # steps, and reactions averaged over the prior
    costs = (float(STEPS * len(TIMES)), 4_500.0)
    cost_of = staticmethod(cost_of)
    prior = BoxUniform(
        torch.tensor(RATES).log() - math.log(FACTOR),
        torch.tensor(RATES).log() + math.log(FACTOR),
    )
    has_reference = False

    def __init__(self):
        self.true_theta, self.observations = _test_simulations()

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """A seed for the Poisson process of each reaction, shape `(n, 3)`."""
        return torch.randint(2**62, (n, 3), generator=generator)

    def reference(self, index: int) -> Tensor:
        raise TypeError(f"The exact posterior of task={self.name!r} is not known.")


@cache
def _test_simulations() -> tuple[Tensor, Tensor]:
    """Parameters and observations that posteriors are evaluated at."""
    with seeded(10_000):
        theta = LotkaVolterra.prior.sample((100,))
    noise = LotkaVolterra.noise(100, torch.Generator().manual_seed(10_000))
    return theta, exact(theta, noise)


register_task("lotka-volterra", lambda data: LotkaVolterra())
