"""Seeds that depend on a key, blocks with a seed of their own, and repetition."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A seed of 63 bits that depends on the whole key."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1  # fits int64


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch and numpy inside the block, and restore their states after it."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


@dataclass(frozen=True, eq=False)
class RandomState:
    """The state of the random numbers of torch.

    Args:
        device: The device whose generator it includes, beside that of the CPU.
        states: State of the generator of the CPU, and of the device if it has its own.
    """

    device: torch.device
    states: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, device: str | torch.device) -> RandomState:
        """The present state."""
        device = torch.device(device)
        states = [torch.get_rng_state()]
        if device.type != "cpu":
            states.append(_generators_of(device).get_rng_state(*_index_of(device)))
        return cls(device, tuple(states))

    def restore(self) -> None:
        """Let random numbers repeat from here."""
        torch.set_rng_state(self.states[0])
        if self.device.type != "cpu":
            module, index = _generators_of(self.device), _index_of(self.device)
            module.set_rng_state(self.states[1], *index)


def _generators_of(device: torch.device) -> Any:
    return getattr(torch, device.type)  # torch.cuda, torch.mps, ...


def _index_of(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
