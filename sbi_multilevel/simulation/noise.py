r"""The randomness of a simulation.

All randomness of simulation i is drawn outside the simulator, from seeds that depend
only on the root seed, the level and i:

.. math:: \mathrm{SeedSequence}((\mathrm{root}, \mathrm{stream}, l, i)).

So a simulation does not depend on the number of simulations, the batch size or the
number of workers, and a larger number later repeats the first ones. By default the
noise passed to a simulator is an int64 seed per simulation; a noise sampler draws from
this seed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.simulation.arguments import check_call
from sbi_multilevel.utils.seeds import derive_seed, seeded

Simulator = Callable[[Tensor, Any], Any]
NoiseSampler = Callable[[int, torch.Generator], Any]

_THETA_STREAM, _NOISE_STREAM = 0, 1
# theta is drawn in blocks, since drawing one theta at a time is slow; of constant size,
# so that theta does not depend on the number of simulations
_THETA_BLOCK = 1_000
_NOISE = (
    "It draws the noise of n simulations, with first dimension n, e.g. "
    "`lambda n, generator: torch.randn(n, 3, generator=generator)`."
)


def simulation_seeds(root: int, level: int, start: int, stop: int) -> Tensor:
    """Seeds of simulations `start` to `stop - 1` of a level, int64, shape `(n,)`."""
    seeds = [derive_seed(root, _NOISE_STREAM, level, i) for i in range(start, stop)]
    return torch.tensor(seeds, dtype=torch.int64)


def draw_noise(noise: NoiseSampler | None, seeds: Tensor) -> Any:
    """The noise of each simulation: the seeds themselves, or samples of `noise`.

    A sampler may return a tensor or a tuple or list of tensors, each with a leading
    dimension of one. The form of the noise of no simulation is that of one.
    """
    if noise is None:
        return seeds
    rows = [
        _checked(noise(1, torch.Generator().manual_seed(seed)))
        for seed in seeds.tolist() or [0]
    ]
    if isinstance(rows[0], (tuple, list)):
        columns = zip(*rows)
        return type(rows[0])(torch.cat(column)[: len(seeds)] for column in columns)
    return torch.cat(rows)[: len(seeds)]


def check_noise(noise: NoiseSampler | None) -> None:
    """Raise unless a sampler can be called and draws the noise of one simulation."""
    if noise is not None:
        check_call("noise", noise, ("n", "generator"), _NOISE)
        draw_noise(noise, torch.zeros(1, dtype=torch.int64))


def _checked(drawn: Any) -> Any:
    """The noise of one simulation, as tensors."""
    is_one = not isinstance(drawn, (tuple, list))
    parts = [
        torch.as_tensor(part)
        if isinstance(part, np.ndarray) and part.dtype != object
        else part
        for part in ([drawn] if is_one else drawn)
    ]
    if not all(isinstance(p, Tensor) and p.ndim > 0 and len(p) == 1 for p in parts):
        found = [
            f"shape {tuple(p.shape)}" if hasattr(p, "shape") else type(p).__name__
            for p in parts
        ]
        raise ValueError(
            f"noise(1, generator) returned {' and '.join(found)}, but must return a "
            f"tensor of shape (1, ...), or a tuple of these. {_NOISE}"
        )
    return parts[0] if is_one else type(drawn)(parts)


def draw_theta(
    prior: Any, root: int, level: int, stop: int, *, start: int = 0
) -> Tensor:
    """Parameters of simulations `start` to `stop - 1`, shape `(n, d_theta)`."""
    blocks = []
    first = start // _THETA_BLOCK
    for block in range(first, -(-stop // _THETA_BLOCK)):
        with seeded(derive_seed(root, _THETA_STREAM, level, block)):
            blocks.append(prior.sample((_THETA_BLOCK,)))
    offset = first * _THETA_BLOCK
    return torch.cat(blocks)[start - offset : stop - offset].to("cpu", torch.float32)


class vectorize_simulator:
    """Converts a simulator of one theta and one seed to a vectorised one.

    Args:
        simulator: Function of `(theta, seed)`, theta with shape `(d_theta,)` and an
            integer seed, that returns the features of one simulation. Seeds have 63
            bits: draw from `np.random.default_rng(seed)` or
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
        outputs = [self._simulator(one, int(seed)) for one, seed in zip(theta, noise)]
        return torch.stack([torch.atleast_1d(as_output(x)) for x in outputs])


def as_output(x: Any) -> Tensor:
    """What a simulator returned, as a float32 tensor.

    Args:
        x: A tensor, or what NumPy makes an array of.

    Raises:
        TypeError: If it is no array of real numbers.
    """
    try:
        value = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        value = _from_array(x)
    if value.is_complex():
        raise TypeError(
            "x has complex numbers, which networks do not take. Return real and "
            "imaginary parts as features, e.g. by `torch.view_as_real`."
        )
    return value.to(torch.float32)


def _from_array(x: Any) -> Tensor:
    try:
        array = np.array(x)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"x is a {type(x).__name__}, which is no array of numbers. Return one "
            "tensor or array, shape `(n, *x_shape)`."
        ) from None
