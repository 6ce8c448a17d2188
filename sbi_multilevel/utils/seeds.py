"""Seeds that depend on a key, and blocks of code with a seed of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
