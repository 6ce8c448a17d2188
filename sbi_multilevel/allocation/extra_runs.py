"""Extra runs of a pilot: at levels further below, and at theta after a small step.

They are made once. If the simulations have a store, the extra runs are kept in a file
next to it, so that a resumed run does not repeat them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.utils.files import (
    expect,
    read_arrays,
    replacing,
    tensor_of,
    understood,
)
from sbi_multilevel.utils.seeds import derive_seed

_STEP_STREAM, _STEP_TRIES = 12, 50


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
        self._growing = growing
        self._simulations = simulations
        self._counts = tuple(num_simulations)
        store = growing.store
        self._path = None if store is None else Path(f"{os.fspath(store)}.pilot.npz")
        self._known = self._read()

    def below(self) -> list[list[Tensor]]:
        """Outputs of levels 0 to m for the simulations of each level m.

        Those of m and m - 1 exist, those of the levels below are run.
        """
        outputs = []
        for level, data in enumerate(self._simulations):
            own = [x for x in (data.x_coarse, data.x) if x is not None]
            further = range(level + 1 - len(own))
            below = [self._run("below", level, k, data.theta) for k in further]
            outputs.append(below + own)
        return outputs

    def aside(self, step: Tensor) -> list[list[Tensor]]:
        """The same as `below`, at theta moved by `step` in a random direction.

        The step, shape `(d_theta,)`, has a random sign for each parameter and
        simulation. If all tried directions leave the support of the prior, outputs are
        NaN.
        """
        outputs = []
        for level in range(len(self._simulations)):
            theta = self._moved(level, step)
            outputs.append([
                self._run("aside", level, k, theta) for k in range(level + 1)
            ])
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
        generator = torch.Generator().manual_seed(
            derive_seed(self._growing.seed, _STEP_STREAM, level)
        )
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
                level = int(name.split("_")[1])
                wanted = len(self._simulations[level])
                expect(
                    x.dtype == torch.float32 and x.ndim > 1 and len(x) == wanted,
                    f"{name} is {x.dtype} of shape {tuple(x.shape)}, not float32 with "
                    f"length {wanted}",
                )
            return known

    def _write(self) -> None:
        if self._path is None:
            return
        arrays = {name: x.numpy() for name, x in self._known.items()}
        with replacing(self._path) as unfinished, unfinished.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                digest=np.array(digest(self._simulations)),
                **arrays,
            )


def digest(simulations: MultilevelSimulations) -> str:
    """A hash of the simulations."""
    state = hashlib.sha256()
    for data in simulations:
        for column in (data.theta, data.x, data.x_coarse):
            if column is not None:
                state.update(column.numpy().tobytes())
    return state.hexdigest()
