"""Duration of a training step, relative to a step of sbi."""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import torch
from sbi.inference import NPE
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


def step_costs(
    batch_sizes: tuple[int, ...] = (200, 2_000, 10_000),
    models: tuple[str, ...] = ("nsf", "maf", "zuko_nsf"),
) -> Table:
    """Milliseconds of a step of MLNPE and of NPE, and their ratio.

    Both train the same network on batches of the same size, with data loading, clipping
    and the optimizer; MLNPE with two levels.

    Args:
        batch_sizes: Simulations of a step.
        models: Names of networks.
    """
    rows = []
    for model in models:
        for size in batch_sizes:
            plain = _seconds_per_step(None, model, size)
            for adjustment in ("rescale_project", "none"):
                config = MultilevelConfig(adjustment=adjustment)
                ours = _seconds_per_step(config, model, size)
                times = (
                    f"{plain * 1e3:.1f}",
                    f"{ours * 1e3:.1f}",
                    f"{ours / plain:.2f}",
                )
                rows.append((model, adjustment, str(size), *times))
    header = ("network", "adjustment", "batch size", "NPE, ms", "MLNPE, ms", "ratio")
    return Table(header, tuple(rows))


def _seconds_per_step(config: MultilevelConfig | None, model: str, size: int) -> float:
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(4), torch.ones(4))
    options: dict[str, Any] = {
        "prior": prior,
        "density_estimator": posterior_nn(model),
        "tracker": SilentTracker(),
        "show_progress_bars": False,
    }
    steps = max(4, 2_000 // size)
    trainer = NPE(**options) if config is None else MLNPE(config=config, **options)
    total = int(size * steps / 0.9) + 10
    if config is None:
        theta = prior.sample((total,))
        trainer.append_simulations(theta, _x(theta))
    else:
        trainer.append_multilevel_simulations(_two_levels(prior, total))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(training_batch_size=size, max_num_epochs=1)
        loader, _ = trainer.get_dataloaders(training_batch_size=size)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        trainer._train_epoch(loader, 5.0, _loss_args(trainer))
        seconds.append((time.perf_counter() - start) / len(loader))
    return statistics.median(seconds)


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


def _loss_args(trainer: Any) -> Any:
    from sbi.inference.trainers._contracts import LossArgsNPE

    def kernel(x: Tensor) -> Tensor:
        return torch.ones(len(x))

    return LossArgsNPE(calibration_kernel=kernel)
