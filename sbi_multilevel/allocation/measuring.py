"""Measures variances by quick fits, or by the norms of outputs and derivatives.

Both need extra runs at the theta and noise of a pilot: of the levels further below, and
of all levels after a small step in theta. They are made once. If the simulations have a
store, the extra runs are kept in a file next to it, so that a resumed run does not
repeat them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.allocation.optimal import check_costs, simulation_costs
from sbi_multilevel.allocation.quick_fit import Inference, get_trainer, held_out_losses
from sbi_multilevel.allocation.variances import (
    Measurements,
    Method,
    loss_measurements,
    norm_measurements,
)
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.utils.files import (
    expect,
    read_arrays,
    replacing,
    tensor_of,
    understood,
)
from sbi_multilevel.utils.seeds import derive_seed

# length of a step in theta, in standard deviations of the prior
_STEP = 0.01
_STEP_STREAM, _STEP_TRIES = 12, 50


class Measuring:
    """The simulations of a pilot and later ones, their cost, and their variances.

    Arguments are those of `pilot`; `num_simulations` are those of the pilot.
    """

    def __init__(
        self,
        growing: GrowingSimulations,
        num_simulations: Sequence[int],
        inference: Inference | None,
        method: Method,
        num_folds: int,
        train_options: Mapping[str, Any],
    ):
        if method not in get_args(Method):
            raise ValueError(
                f"method must be one of {get_args(Method)}, but is {method!r}."
            )
        if num_folds < 2:
            raise ValueError(
                f"num_folds must be >= 2, but is {num_folds}: losses are evaluated by "
                "a fit to other simulations."
            )
        if growing.options.costs is not None:
            check_costs(growing.options.costs)
        self.growing, self.method = growing, method
        self.num_simulations = tuple(map(int, num_simulations))
        self._losses, self._extra, self._num_folds = None, None, 1
        if method == "loss":
            trainer = get_trainer(inference, growing.prior)
            if trainer._neural_net is None:  # a trained one is used without folds
                self._num_folds = num_folds
            _check_folds(self._num_folds, self.num_simulations)
            self._losses = functools.partial(
                held_out_losses,
                trainer,
                seed=growing.seed,
                num_folds=num_folds,
                train_options=train_options,
            )

    def simulate(
        self, num_simulations: Sequence[int]
    ) -> tuple[MultilevelSimulations, tuple[float, ...]]:
        """Simulations, and the cost of a run of each simulator, which must be known."""
        simulations = self.growing.simulate(num_simulations)
        if simulations.costs is None:
            raise ValueError(
                "costs is None and the cost of some level is unknown: the store holds "
                "simulations that were recorded without it. Pass costs, one number per "
                "level."
            )
        check_costs(simulations.costs)
        return simulations, simulations.costs

    def cost(self, num_simulations: Sequence[int], costs: Sequence[float]) -> float:
        """Cost of simulations and of the extra runs of the pilot."""
        pairs = float(np.dot(simulation_costs(costs), num_simulations))
        return pairs + self.extra_cost(costs)

    def extra_cost(self, costs: Sequence[float]) -> float:
        """Cost of the extra runs of the pilot."""
        total = 0.0
        for level, number in enumerate(self.num_simulations):
            total += number * sum(costs[: max(level - 1, 0)])
            if self.method == "norm":
                total += number * sum(costs[: level + 1])
        return total

    def measure(self, simulations: MultilevelSimulations) -> Measurements:
        """Measurements of all simulations; those after the pilot have only pairs.

        The first call is with the simulations of the pilot, and makes its extra runs.
        """
        # again, since some simulations may have failed
        _check_folds(self._num_folds, [len(data) for data in simulations], "valid ")
        if self._extra is None:
            self._extra = ExtraRuns(self.growing, simulations, self.num_simulations)
        outputs = [
            [_padded(x, len(data)) for x in sides[:-2]] + _sides(data)
            for data, sides in zip(simulations, self._extra.below())
        ]
        if self._losses is not None:
            return loss_measurements(*self._losses(simulations, outputs))
        theta = torch.cat([data.theta for data in simulations])
        aside = self._extra.aside(_STEP * theta.std(dim=0))
        top = simulations[-1].x.flatten(1).double()
        # in units of the spread of level L; constant features do not contribute
        scale = torch.where(top.std(dim=0) > 0, top.std(dim=0), torch.inf)

        def standardised(x: Tensor) -> np.ndarray:
            return ((x.flatten(1).double() - top.mean(dim=0)) / scale).numpy()

        here, there = (
            [[standardised(x) for x in sides] for sides in table]
            for table in (outputs, aside)
        )
        slopes = [
            [(b - a) / _STEP for a, b in zip(*sides)] for sides in zip(here, there)
        ]
        return norm_measurements(here, slopes)


def _check_folds(num_folds: int, counts: Sequence[int], kind: str = "") -> None:
    """Raise unless each fold has a simulation of each level, and some have several.

    One alone does not differ from the mean of its fold.
    """
    level = int(np.argmin(counts))
    if num_folds >= counts[level]:
        raise ValueError(
            f"num_folds={num_folds} must be smaller than the number of {kind}"
            f"simulations of each level, but level {level} has {counts[level]}. Use "
            f"fewer folds, or more simulations of level {level}."
        )


class ExtraRuns:
    """Runs the simulators again at the theta and noise of existing simulations.

    Args:
        growing: The source of the simulations.
        simulations: The simulations.
        num_simulations: Number of simulations of each level, including failed ones.
    """

    def __init__(
        self,
        growing: GrowingSimulations,
        simulations: MultilevelSimulations,
        num_simulations: Sequence[int],
    ):
        self._growing, self._simulations = growing, simulations
        self._counts = num_simulations
        store = growing.store
        self._path = None if store is None else Path(f"{os.fspath(store)}.pilot.npz")
        self._known = self._read()

    def below(self) -> list[list[Tensor]]:
        """Outputs of levels 0 to m for the simulations of each level m.

        Those of m and m - 1 exist, those of the levels below are run.
        """
        return [
            [self._run("below", m, k, data.theta) for k in range(m - 1)] + _sides(data)
            for m, data in enumerate(self._simulations)
        ]

    def aside(self, step: Tensor) -> list[list[Tensor]]:
        """The same as `below`, at theta moved by `step` in a random direction.

        The step, shape `(d_theta,)`, has a random sign for each parameter and
        simulation. If all tried directions leave the support of the prior, outputs are
        NaN.
        """
        outputs = []
        for m in range(len(self._simulations)):
            theta = self._moved(m, step)
            outputs.append([self._run("aside", m, k, theta) for k in range(m + 1)])
        return outputs

    def _run(self, kind: str, level: int, simulator: int, theta: Tensor) -> Tensor:
        """Outputs at theta and the noise of a level; NaN where theta is."""
        name, known = f"{kind}_{level}_{simulator}", self._known
        if name not in known:
            seeds = self._growing.seeds(level, self._counts[level])
            inside = theta.isfinite().all(dim=1)
            x = self._growing.run_again(simulator, theta[inside], seeds[inside])
            known[name] = torch.full((len(theta), *x.shape[1:]), torch.nan)
            known[name][inside] = x
            self._write()
        reference = self._simulations[level].x
        if known[name].shape != reference.shape and known[name].isnan().all():
            return torch.full_like(reference, torch.nan)  # all runs failed
        return known[name]

    def _moved(self, level: int, step: Tensor) -> Tensor:
        theta, prior = self._simulations[level].theta, self._growing.prior
        seed = derive_seed(self._growing.seed, _STEP_STREAM, level)
        generator = torch.Generator().manual_seed(seed)
        moved = torch.full_like(theta, torch.nan)
        for _ in range(_STEP_TRIES):
            signs = torch.randint(0, 2, theta.shape, generator=generator) * 2 - 1
            tried = theta + signs * step
            is_new = prior.log_prob(tried).isfinite() & moved.isnan().any(dim=1)
            moved[is_new] = tried[is_new]
        return moved

    def _read(self) -> dict[str, Tensor]:
        if self._path is None or not self._path.exists():
            return {}
        remedy = "Delete the file: the runs are made again."
        with understood("path", self._path, "runs of a pilot", remedy):
            arrays = read_arrays(self._path)
            expect("digest" in arrays, f"it lacks digest, and has {sorted(arrays)}")
            if str(arrays.pop("digest")) != digest(self._simulations):
                return {}  # of other simulations
            known = {name: tensor_of(arrays, name) for name in arrays}
            for name, x in known.items():
                wanted = len(self._simulations[int(name.split("_")[1])])
                expect(
                    x.dtype == torch.float32 and x.ndim > 1 and len(x) == wanted,
                    f"{name} is {x.dtype} of shape {tuple(x.shape)}, not float32 with "
                    f"length {wanted}",
                )
            return known

    def _write(self) -> None:
        if self._path is None:
            return
        arrays = {"digest": np.array(digest(self._simulations))}
        arrays |= {name: x.numpy() for name, x in self._known.items()}
        with replacing(self._path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def digest(simulations: MultilevelSimulations) -> str:
    """A hash of the simulations."""
    state = hashlib.sha256()
    for data in simulations:
        for column in (data.theta, data.x, data.x_coarse):
            if column is not None:
                state.update(column.numpy().tobytes())
    return state.hexdigest()


def _sides(data: LevelSimulations) -> list[Tensor]:
    """Outputs of the level below, if there is one, and of the level."""
    return [x for x in (data.x_coarse, data.x) if x is not None]


def _padded(x: Tensor, length: int) -> Tensor:
    """x, extended by NaN to a length."""
    behind = torch.full((length - len(x), *x.shape[1:]), torch.nan)
    return torch.cat([x, behind])
