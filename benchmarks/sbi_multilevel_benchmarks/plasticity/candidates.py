"""Simulations of the network at draws from the prior, kept if they are plausible.

Candidate i has theta and noise of its own seed, so that a larger number later repeats
the first ones. Kept simulations may be written to a folder, one file for each network
and seed, so that several processes and runs simulate them once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.utils.files import expect, read_arrays, understood
from sbi_multilevel.utils.seeds import derive_seed, seeded
from sbi_multilevel_benchmarks.plasticity.config import NetworkConfig

_THETA, _NOISE = 0, 1  # streams of seeds


@dataclass
class Candidates:
    """Plausible simulations of one root seed.

    Args:
        config: The network; names the file.
        prior: The prior.
        noise: Function `(n, generator)` that draws noise.
        simulate: Function of theta and noise; NaN where the network is not plausible.
        seed: Root seed.
        folder: Folder of the file; `None` keeps simulations in memory.
    """

    config: NetworkConfig
    prior: Any
    noise: Callable[[int, torch.Generator], Tensor]
    simulate: Callable[[Tensor, Tensor], Tensor]
    seed: int
    folder: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        self._theta: list[Tensor] = []
        self._x: list[Tensor] = []
        self._next = 0

    def first(self, n: int) -> tuple[Tensor, Tensor]:
        """Theta and x of the first n plausible candidates.

        Args:
            n: Number of simulations.
        """
        if len(self._x) < n and self.path is not None and self.path.exists():
            self._read()
        if len(self._x) < n:
            while len(self._x) < n:
                self._try_next()
            self._write()
        return torch.stack(self._theta[:n]), torch.stack(self._x[:n])

    @property
    def path(self) -> Path | None:
        """The file, if any."""
        if self.folder is None:
            return None
        key = hashlib.sha256(repr(self.config).encode()).hexdigest()[:12]
        return Path(self.folder) / f"plasticity-{key}-{self.seed}.npz"

    def _try_next(self) -> None:
        with seeded(derive_seed(self.seed, _THETA, self._next)):
            theta = self.prior.sample((1,))
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, _NOISE, self._next))
        x = self.simulate(theta, self.noise(1, generator))
        self._next += 1
        if x.isfinite().all():
            self._theta.append(theta[0])
            self._x.append(x[0])

    def _read(self) -> None:
        remedy = "Delete the file; it is then simulated again."
        with understood("data", self.path, "simulations of the network", remedy):
            arrays = read_arrays(self.path)
            names = {"theta", "x", "next"}
            expect(set(arrays) == names, f"its arrays are not {sorted(names)}")
            theta, x = (torch.as_tensor(arrays[name]) for name in ("theta", "x"))
            shapes = theta.shape[1:], x.shape[1:]
            expect(shapes == ((24,), (2,)) and len(theta) == len(x), "wrong shapes")
            self._next = int(arrays["next"])
        self._theta, self._x = list(theta), list(x)

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.stem}.{os.getpid()}.tmp.npz")
        arrays = {"theta": torch.stack(self._theta), "x": torch.stack(self._x)}
        np.savez(temporary, next=np.int64(self._next), **arrays)
        os.replace(temporary, self.path)
