"""Seeds that depend on a key, blocks with a seed of their own, and repetition."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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
    # `manual_seed` seeds GPUs too; asking for their number would start CUDA in workers
    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    with torch.random.fork_rng(devices=range(count)):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def repetition(device: str | torch.device) -> Callable[[], None]:
    """A function that lets the random numbers of torch repeat from here.

    Args:
        device: The device whose generator repeats too, beside that of the CPU.
    """
    device = torch.device(device)
    own = None if device.type == "cpu" else getattr(torch, device.type)  # torch.cuda
    index = () if device.type == "mps" else (device,)
    state, own_state = torch.get_rng_state(), own and own.get_rng_state(*index)

    def repeat() -> None:
        torch.set_rng_state(state)
        if own is not None:
            own.set_rng_state(own_state, *index)

    return repeat
