"""Duration of a training step, relative to a step of sbi."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sbi.inference import NPE
from sbi.inference.trainers._contracts import LossArgsNPE
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel import (
    MLNPE,
    LevelSimulations,
    MultilevelConfig,
    MultilevelSimulations,
)
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.records import Table

_ADJUSTMENTS = ("rescale_project", "none")
_NUM_PER_EPOCH = 4_000  # simulations of a run of a few steps


def step_costs(
    batch_sizes: tuple[int, ...] = (200, 2_000, 10_000),
    models: tuple[str, ...] = ("maf", "nsf", "zuko_nsf"),
    repeats: int = 5,
) -> Table:
    """Milliseconds of a step of MLNPE and of NPE, and their ratio.

    Both train the same network on batches of the same size, with data loading, clipping
    and the optimizer; MLNPE with two levels. Times are medians of CPU time over runs
    that alternate between the methods.

    Args:
        batch_sizes: Simulations of a step.
        models: Names of networks.
        repeats: Runs of each method.
    """
    rows = []
    for model in models:
        for size in batch_sizes:
            plain, *ours = step_seconds(model, size, _ADJUSTMENTS, repeats)
            for adjustment, seconds in zip(_ADJUSTMENTS, ours, strict=True):
                times = (f"{plain * 1e3:.1f}", f"{seconds * 1e3:.1f}")
                ratio = f"{seconds / plain:.2f}"
                rows.append((model, adjustment, str(size), *times, ratio))
    header = ("network", "adjustment", "batch size", "NPE, ms", "MLNPE, ms", "ratio")
    return Table(header, tuple(rows))


def step_seconds(
    model: str, size: int, adjustments: tuple[str, ...], repeats: int
) -> list[float]:
    """Seconds of a step of NPE, and of MLNPE with each adjustment.

    Args:
        model: Name of the network.
        size: Simulations of a step.
        adjustments: Settings of `MultilevelConfig`.
        repeats: Runs of each.
    """
    configs = [MultilevelConfig(adjustment=name) for name in adjustments]  # pyright: ignore[reportArgumentType]
    runs = [_steps(config, model, size) for config in (None, *configs)]
    return interleaved(runs, repeats)


def interleaved(runs: list[Callable[[], float]], repeats: int) -> list[float]:
    """Median of each of several measurements that alternate.

    Other work on the machine then slows all of them down alike.

    Args:
        runs: Measurements, which return seconds.
        repeats: How often each is called.
    """
    rounds = [[run() for run in runs] for _ in range(repeats)]
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def _steps(
    config: MultilevelConfig | None, model: str, size: int
) -> Callable[[], float]:
    """A measurement of the seconds of a step; of NPE for `None`."""
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(4), torch.ones(4))
    options: dict[str, Any] = {
        "prior": prior,
        "density_estimator": posterior_nn(model),
        "tracker": SilentTracker(),
        "show_progress_bars": False,
    }
    trainer = NPE(**options) if config is None else MLNPE(config=config, **options)
    total = int(size * max(3, _NUM_PER_EPOCH // size) / 0.9) + 10
    if isinstance(trainer, MLNPE):
        trainer.append_multilevel_simulations(_two_levels(prior, total))
    else:
        theta = prior.sample((total,))
        trainer.append_simulations(theta, _x(theta))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(training_batch_size=size, max_num_epochs=1)
        loader, _ = trainer.get_dataloaders(training_batch_size=size)
    arguments = LossArgsNPE(calibration_kernel=lambda x: torch.ones(len(x)))

    def seconds() -> float:
        start = time.process_time()
        trainer._train_epoch(loader, 5.0, arguments)
        return (time.process_time() - start) / len(loader)

    return seconds


def _two_levels(prior: BoxUniform, total: int) -> MultilevelSimulations:
    """Half of the outputs are those of level 0, half those of pairs of level 1."""
    theta_0, theta_1 = prior.sample((total // 2,)), prior.sample((total // 4,))
    coarse = _x(theta_1)
    return MultilevelSimulations((
        LevelSimulations(0, theta_0, _x(theta_0)),
        LevelSimulations(1, theta_1, 1.1 * coarse, coarse),
    ))


def _x(theta: Tensor) -> Tensor:
    return torch.cat([theta, theta**2], dim=1) + 0.1 * torch.randn(len(theta), 8)
