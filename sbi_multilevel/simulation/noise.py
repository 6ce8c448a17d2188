r"""Where the randomness of a simulation comes from.

All randomness of a row is drawn outside the simulator, from seeds that depend on
nothing but the root seed, the level and the row:

.. math:: \mathrm{SeedSequence}((\mathrm{root}, \mathrm{stream}, l, \mathrm{row})).

So a row is the same whatever the number of rows, the batch size or the number of
workers, and asking for more rows later repeats the first ones. By default the noise
handed to a simulator *is* an int64 seed a row; a noise sampler draws from it instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.simulation.calling import check_call

Simulator = Callable[[Tensor, Any], Any]
NoiseSampler = Callable[[int, torch.Generator], Any]

_THETA_STREAM, _NOISE_STREAM = 0, 1
# theta is drawn in blocks of this many rows, since a prior draws one row slowly;
# a constant, so that a row does not depend on how many were asked for
_THETA_BLOCK = 1_000
_NOISE = (
    "It draws the noise of n rows, with first dimension n, e.g. "
    "`lambda n, generator: torch.randn(n, 3, generator=generator)`."
)


def row_seeds(root: int, level: int, start: int, stop: int) -> Tensor:
    """Seeds of the rows `start` to `stop - 1` of a level, int64, shape `(n,)`."""
    seeds = [derive_seed(root, _NOISE_STREAM, level, row) for row in range(start, stop)]
    return torch.tensor(seeds, dtype=torch.int64)


def draw_noise(noise: NoiseSampler | None, seeds: Tensor) -> Any:
    """The noise of each row: the seeds themselves, or draws of `noise` from them.

    A sampler may return a tensor or a tuple or list of tensors, each with a leading
    dimension of one row.

    Raises:
        ValueError: If the sampler returns something else.
    """
    if noise is None:
        return seeds
    rows = [
        _checked(noise(1, torch.Generator().manual_seed(int(seed)))) for seed in seeds
    ]
    if isinstance(rows[0], (tuple, list)):
        return type(rows[0])(torch.cat(column) for column in zip(*rows))
    return torch.cat(rows)


def check_noise(noise: NoiseSampler | None) -> None:
    """Draw the noise of one row.

    Raises:
        ValueError: If `noise` cannot be called, or returns no tensors of one row.
    """
    if noise is None:
        return
    check_call("noise", noise, ("n", "generator"), _NOISE)
    draw_noise(noise, torch.zeros(1, dtype=torch.int64))


def _checked(drawn: Any) -> Any:
    """The noise of one row, as tensors."""
    if isinstance(drawn, (tuple, list)):
        return type(drawn)(_checked_tensor(part, drawn) for part in drawn)
    return _checked_tensor(drawn, drawn)


def _checked_tensor(part: Any, drawn: Any) -> Tensor:
    if isinstance(part, np.ndarray) and part.dtype != object:
        part = torch.as_tensor(part)
    if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != 1:
        parts = drawn if isinstance(drawn, (tuple, list)) else (drawn,)
        found = [
            f"shape {tuple(p.shape)}" if hasattr(p, "shape") else type(p).__name__
            for p in parts
        ]
        raise ValueError(
            f"noise(1, generator) returned {' and '.join(found)}, but must return a "
            f"tensor of shape (1, ...), or a tuple of such. {_NOISE}"
        )
    return part


def draw_theta(
    prior: Any, root: int, level: int, stop: int, *, start: int = 0
) -> Tensor:
    """Parameters of the rows `start` to `stop - 1` of a level, shape `(n, d_theta)`."""
    blocks = []
    first = start // _THETA_BLOCK
    for block in range(first, -(-stop // _THETA_BLOCK)):
        with seeded(derive_seed(root, _THETA_STREAM, level, block)):
            blocks.append(prior.sample((_THETA_BLOCK,)))
    offset = first * _THETA_BLOCK
    return torch.cat(blocks)[start - offset : stop - offset].to("cpu", torch.float32)


class vectorize_simulator:
    """Lets a simulator of one row, given a seed, stand in for a vectorised one.

    Args:
        simulator: Function of `(theta, seed)`, theta with shape `(d_theta,)` and an
            integer seed, that returns the features of one row. Seeds have 63 bits:
            draw from `np.random.default_rng(seed)` or
            `torch.Generator().manual_seed(seed)`; `np.random.seed` takes 32.

    Raises:
        ValueError: If the simulator does not take both.

    Example:
    --------

    ::

        >>> import numpy as np, torch
        >>> def simulate(theta, seed):
        ...     return theta.numpy() + np.random.default_rng(seed).normal(size=2)
        >>> batched = vectorize_simulator(simulate)
        >>> batched(torch.zeros(3, 2), torch.tensor([1, 2, 3])).shape
        torch.Size([3, 2])
    """

    def __init__(self, simulator: Callable[[Tensor, int], Any]):
        check_call(
            "simulator",
            simulator,
            ("theta", "seed"),
            "Draw its randomness from the seed, e.g. `np.random.default_rng(seed)`.",
        )
        self._simulator = simulator

    def __call__(self, theta: Tensor, noise: Tensor) -> Tensor:
        rows = [self._simulator(row, int(seed)) for row, seed in zip(theta, noise)]
        return torch.stack([
            torch.as_tensor(row, dtype=torch.float32).reshape(-1)
            if np.ndim(row) == 0
            else torch.as_tensor(row, dtype=torch.float32)
            for row in rows
        ])


def derive_seed(*key: int) -> int:
    """A seed of 63 bits that depends on the whole key."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1  # fits int64


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch and numpy inside the block, and leave no trace of it outside."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)
