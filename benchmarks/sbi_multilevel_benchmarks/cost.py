"""What a training step costs beside one of sbi, as a ratio in one run."""

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

from sbi_multilevel import MLNPE, LevelSimulations, MultilevelSimulations
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.training.tracking import SilentTracker


def step_costs(
    batch_sizes: tuple[int, ...] = (200, 2_000, 10_000),
    models: tuple[str, ...] = ("nsf", "maf", "zuko_nsf"),
) -> str:
    """Markdown table of the seconds of a step of MLNPE relative to one of NPE.

    Both train the same network on the same number of rows a step, two levels, data
    loading, clipping and the optimizer included.
    """
    lines = ["| network | adjustment | rows a step | NPE, ms | MLNPE, ms | ratio |"]
    lines.append("| --- " * 6 + "|")
    for model in models:
        for rows in batch_sizes:
            plain = _seconds_per_step(None, model, rows)
            for adjustment in ("rescale_project", "none"):
                config = MultilevelConfig(adjustment=adjustment)
                ours = _seconds_per_step(config, model, rows)
                lines.append(
                    f"| {model} | {adjustment} | {rows} | {plain * 1e3:.1f} | "
                    f"{ours * 1e3:.1f} | {ours / plain:.2f} |"
                )
    return "\n".join(lines)


def _seconds_per_step(config: MultilevelConfig | None, model: str, rows: int) -> float:
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(4), torch.ones(4))
    options: dict[str, Any] = {
        "prior": prior,
        "density_estimator": posterior_nn(model),
        "tracker": SilentTracker(),
        "show_progress_bars": False,
    }
    steps = max(4, 2_000 // rows)
    trainer = NPE(**options) if config is None else MLNPE(config=config, **options)
    total = int(rows * steps / 0.9) + 10
    if config is None:
        theta = prior.sample((total,))
        trainer.append_simulations(theta, _x(theta))
    else:
        trainer.append_multilevel_simulations(_two_levels(prior, total))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(training_batch_size=rows, max_num_epochs=1)
        loader, _ = trainer.get_dataloaders(training_batch_size=rows)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        trainer._train_epoch(loader, 5.0, _loss_args(trainer))
        seconds.append((time.perf_counter() - start) / len(loader))
    return statistics.median(seconds)


def _two_levels(prior: BoxUniform, total: int) -> MultilevelSimulations:
    """Level 0 with half of the rows, pairs of level 1 with the other half."""
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
