"""Trainers of this package for the tasks of the benchmark."""

from __future__ import annotations

from typing import Any

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    HybridConfig,
    HybridNLE,
    HybridNPE,
    MultilevelConfig,
    TransferConfig,
)
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.task import BenchmarkTask

_TRAINERS = {
    MultilevelConfig: {"npe": MLNPE, "nle": MLNLE},
    TransferConfig: {"npe": MFNPE, "nle": MFNLE},
    HybridConfig: {"npe": HybridNPE, "nle": HybridNLE},
}


def build_trainer(task: BenchmarkTask, config: MethodConfig) -> Any:
    """An untrained trainer, with the network and the family of a task.

    Args:
        task: The task.
        config: Settings of the method, whose type determines the method.
    """
    return _TRAINERS[type(config)][task.family](
        task.prior,
        density_estimator=task.build_network(),
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
