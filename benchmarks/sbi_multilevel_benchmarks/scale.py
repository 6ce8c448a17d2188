"""The simulations of the command `speed`, and training on many of them."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel import (
    MFNPE,
    MLNPE,
    HybridNPE,
    LevelSimulations,
    MultilevelSimulations,
)
from sbi_multilevel.training.tracking import SilentTracker

PRIOR = BoxUniform(-torch.ones(5), torch.ones(5))
SCALED = {"NPE": NPE, "MFNPE": MFNPE, "MLNPE": MLNPE, "HybridNPE": HybridNPE}
_CHUNK = 10_000  # simulated at once, so that the simulator needs little memory


def simulations(num_low: int, num_high: int) -> MultilevelSimulations:
    """Simulations of 5 parameters and 10 outputs, and pairs that share noise.

    The lower level has another gain and an offset.
    """
    generator = torch.Generator().manual_seed(0)
    linear, inner = torch.randn(2, 5, 10, generator=generator)

    def high(theta: Tensor) -> Tensor:
        noise = 0.1 * torch.randn(len(theta), 10)
        return theta @ linear + 0.3 * (theta @ inner) ** 2 + noise

    theta_low, theta_high = PRIOR.sample((num_low,)), PRIOR.sample((num_high,))
    x_high, x_low = high(theta_high), torch.empty(num_low, 10)
    for theta, x in zip(theta_low.split(_CHUNK), x_low.split(_CHUNK)):
        x.copy_(0.9 * high(theta) + 0.2)
    return MultilevelSimulations((
        LevelSimulations(0, theta_low, x_low),
        LevelSimulations(1, theta_high, x_high, 0.9 * x_high + 0.2),
    ))


def append_all(trainer: Any, simulations: MultilevelSimulations) -> Any:
    """Append simulations of two levels; to a trainer of sbi, the pool of both."""
    if hasattr(trainer, "append_multilevel_simulations"):
        return trainer.append_multilevel_simulations(simulations)
    low, high = simulations
    theta, x = torch.cat([low.theta, high.theta]), torch.cat([low.x, high.x])
    return trainer.append_simulations(theta, x)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of a call, without its warnings, e.g. of `max_num_epochs`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        run()
        return time.process_time() - start


def training_costs(name: str, counts: tuple[int, int]) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a process that trains for two epochs a stage.

    Args:
        name: One of `SCALED`.
        counts: Simulations of each level.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_many, args=(name, counts, sender))
    process.start()
    sender.close()  # so that the end of a process that fails is noticed
    seconds, peak = receiver.recv()
    process.join()
    return seconds, peak


def _train_many(name: str, counts: tuple[int, int], sender: Connection) -> None:
    torch.set_num_threads(1)
    options = {"tracker": SilentTracker(), "show_progress_bars": False}
    trainer = append_all(SCALED[name](PRIOR, **options), simulations(*counts))
    seconds = cpu_seconds(partial(trainer.train, max_num_epochs=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send((seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)))
