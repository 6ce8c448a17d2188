"""What makes two runs the same: prior, levels, seeds and noise.

The prior and a noise sampler are told by their first draws, which need no comparison of
code, and may differ in the last digits from one machine to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    draw_noise,
    draw_theta,
    row_seeds,
)

_DRAWS = 4  # first rows that are kept
_VALUES = 8  # first values a row that are kept of the noise
_MEANINGS = {
    "num_levels": "number of levels",
    "simulators": "simulators",
    "seed": "seed",
    "prior": "first draws from the prior",
    "noise": "first draws of the noise",
}


@dataclass(frozen=True)
class Fingerprint:
    """Prior, levels, seeds and noise of a run, as plain values.

    Args:
        num_levels: Number of levels.
        seed: Root seed.
        prior: First draws from the prior.
        noise: First draws of the noise sampler; "seeds" where there is none.
        simulators: Names of the simulators; `None` where others run them.
    """

    num_levels: int
    seed: int
    prior: list[list[float]]
    noise: str | list[list[float]]
    simulators: list[str] | None = None

    @classmethod
    def of(
        cls,
        prior: Any,
        num_levels: int,
        seed: int,
        noise: NoiseSampler | None,
        simulators: Sequence[Simulator] | None = None,
    ) -> Fingerprint:
        """The fingerprint of a run; the prior is sbi's, already processed."""
        names = None if simulators is None else [name_of(s) for s in simulators]
        draws = draw_theta(prior, 0, 0, _DRAWS).tolist()
        return cls(num_levels, int(seed), draws, noise_draws(noise), names)

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs, in words: this one is stored, the other one asked for."""
        found = []
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if name == "simulators" and (mine is None or theirs is None):
                continue
            if not _same(mine, theirs):
                found.append(
                    f"{_MEANINGS[name]}: {_brief(mine)} stored, {_brief(theirs)} asked"
                )
        return found


def noise_draws(noise: NoiseSampler | None) -> str | list[list[float]]:
    """First values of the noise of a few rows; "seeds" without a sampler."""
    if noise is None:
        return "seeds"
    drawn = draw_noise(noise, row_seeds(0, 0, 0, _DRAWS))
    parts = drawn if isinstance(drawn, (tuple, list)) else (drawn,)
    return [
        [float(value) for part in parts for value in part[row].flatten()[:_VALUES]]
        for row in range(_DRAWS)
    ]


def name_of(simulator: Simulator) -> str:
    """The name of a function, or of the class of another callable."""
    return getattr(simulator, "__qualname__", type(simulator).__qualname__)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list) and a and isinstance(a[0], list):
        shapes = [len(row) for row in a], [len(row) for row in b]
        return shapes[0] == shapes[1] and np.allclose(a, b, rtol=1e-4, atol=1e-6)
    return a == b


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[" + ", ".join(f"{number:.4g}" for number in value[0]) + ", ...]"
    return repr(value)
