"""Identifies a run by its prior, levels, seeds and noise.

The prior and the noise sampler are identified by their first samples. So no code is
compared, and the samples may differ in the last digits between machines.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    draw_noise,
    draw_theta,
    simulation_seeds,
)
from sbi_multilevel.utils.files import expect

_DRAWS = 4  # number of samples that are kept
_VALUES = 8  # number of values that are kept of each sample of the noise
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
        simulators: Names of the simulators; `None` if they are run elsewhere.
    """

    num_levels: int
    seed: int
    prior: list[list[float]]
    noise: str | list[list[float]]
    simulators: list[str] | None = None

    @classmethod
    def of(
        cls, prior: Any, num_levels: int, seed: int, noise: NoiseSampler | None
    ) -> Fingerprint:
        """The fingerprint of a run; the prior must be processed by sbi."""
        draws = draw_theta(prior, 0, 0, _DRAWS).tolist()
        return cls(num_levels, int(seed), draws, noise_draws(noise))

    @classmethod
    def from_json(cls, values: Any) -> Fingerprint:
        """The fingerprint in a store, from `dataclasses.asdict` by JSON."""
        names = {field.name for field in fields(cls)}
        is_complete = isinstance(values, dict) and set(values) == names
        expect(is_complete, f"the fingerprint must have {sorted(names)}")
        found = cls(**values)
        names = found.simulators
        are_names = isinstance(names, list) and all(isinstance(n, str) for n in names)
        for name, is_sound in (
            ("num_levels", type(found.num_levels) is int and found.num_levels > 0),
            ("seed", type(found.seed) is int and found.seed >= 0),
            ("prior", _are_draws(found.prior)),
            ("noise", found.noise == "seeds" or _are_draws(found.noise)),
            ("simulators", names is None or are_names),
        ):
            expect(is_sound, f"the fingerprint has {name} {values[name]!r:.60}")
        return found

    def check_same(self, asked: Fingerprint, path: Path, remedy: str = "") -> None:
        """Raise unless this fingerprint, stored at `path`, is the requested one."""
        differences = []
        for name, stored in vars(self).items():
            requested = getattr(asked, name)
            is_unknown = name == "simulators" and None in (stored, requested)
            if not is_unknown and not _same(stored, requested):
                differences.append(
                    f"{_MEANINGS[name]}: {_brief(stored)} stored, {_brief(requested)} "
                    "requested"
                )
        if differences:
            raise ValueError(
                f"store={str(path)!r} belongs to another run; "
                f"{'; '.join(differences)}. Pass another path, or the arguments of "
                f"that run{remedy}. Nothing was changed."
            )


def noise_draws(noise: NoiseSampler | None) -> str | list[list[float]]:
    """First values of a few samples of the noise; "seeds" without a sampler."""
    if noise is None:
        return "seeds"
    drawn = draw_noise(noise, simulation_seeds(0, 0, 0, _DRAWS))
    parts = drawn if isinstance(drawn, (tuple, list)) else (drawn,)
    return [
        [float(value) for part in parts for value in part[row].flatten()[:_VALUES]]
        for row in range(_DRAWS)
    ]


def name_of(simulator: Simulator) -> str:
    """The name of a function, or of the class of another callable."""
    return getattr(simulator, "__qualname__", type(simulator).__qualname__)


def _same(a: Any, b: Any) -> bool:
    if _are_draws(a) and _are_draws(b):
        return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-4, atol=1e-6)
    return a == b


def _are_draws(values: Any) -> bool:
    """Whether values are a list of at least one list of numbers, all equally long."""
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(row, list) for row in values)
        and all(len(row) == len(values[0]) for row in values)
        and all(type(number) in (int, float) for row in values for number in row)
    )


def _brief(value: Any) -> str:
    if _are_draws(value):
        return "[" + ", ".join(f"{number:.4g}" for number in value[0]) + ", ...]"
    return repr(value)
