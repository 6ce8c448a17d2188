"""Transfer methods of the benchmark: pre-training once, fine-tuning many times.

Methods with the same rows of level 0 start from the same pre-trained networks. A
process keeps those of its last runs, so runs that share them should follow each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    LevelSimulations,
    MultilevelSimulations,
    TransferConfig,
    train_ensemble,
)
from sbi_multilevel.simulation.noise import derive_seed
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.ensemble import train_members
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel_benchmarks.fitted import Fit, evaluated, only
from sbi_multilevel_benchmarks.tasks import BenchmarkTask

NUM_MEMBERS = 5
_PRETRAIN, _FINE_TUNE = 0, 1  # streams of seeds


@dataclass(frozen=True)
class LowRows:
    """Rows of level 0, told apart by what made them.

    Args:
        name: Name of the task.
        num_rows: Number of rows.
        seed: Seed they were simulated with.
        task: The task.
        rows: The rows.
    """

    name: str
    num_rows: int
    seed: int
    task: BenchmarkTask = field(compare=False)
    rows: LevelSimulations = field(compare=False)


@dataclass(frozen=True)
class Pretrained:
    """A network trained on level 0, with the epochs and seconds it took."""

    estimator: Any
    num_epochs: int
    seconds: float


def build_trainer(task: BenchmarkTask, config: MethodConfig | None = None) -> Any:
    """NPE or NLE of several levels, whichever the task needs; transfer by default."""
    return {"nle": MFNLE, "npe": MFNPE}[task.family](
        task.prior,
        density_estimator=task.build_network(),
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )


@lru_cache(maxsize=16)
def pretrain(low: LowRows, index: int) -> Pretrained:
    """Train a member of an ensemble on level 0.

    Args:
        low: The rows.
        index: Which member: the fold of the rows it holds out, and its seed.
    """
    trainer = build_trainer(low.task)
    trainer.append_lowfidelity_simulations(low.rows.theta, low.rows.x)
    start = time.perf_counter()
    fold = Fold(index, derive_seed(low.seed, _PRETRAIN))
    (trained,) = train_members([trainer], [fold], 1, {})
    seconds = time.perf_counter() - start
    return Pretrained(trained._neural_net, _epochs([trained]), seconds)


def pretrain_all(
    task: BenchmarkTask, simulations: MultilevelSimulations, seed: int, num_members: int
) -> tuple[list[Pretrained], float]:
    """Pre-trained networks of all members, and the seconds spent on them before."""
    rows = simulations[0]
    low = LowRows(task.name, len(rows), seed, task, rows)
    start = time.perf_counter()
    networks = [pretrain(low, index) for index in range(num_members)]
    spent = time.perf_counter() - start
    return networks, max(0.0, sum(network.seconds for network in networks) - spent)


@dataclass(frozen=True)
class TransferMethod:
    """MF-NPE or MF-NLE, from pre-trained networks.

    Rows of level 0 alone are pre-trained on, not the coarse sides of pairs. A network
    alone is the first member of the ensemble.

    Args:
        config: The recipe to train with; pre-training is that of all settings.
        num_members: Networks, each pre-trained and fine-tuned on folds of its own.
    """

    config: TransferConfig
    num_members: int = 1

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        networks, before = pretrain_all(task, simulations, seed, self.num_members)
        trainers = [self._fine_tuner(task, simulations, each) for each in networks]
        folds = _folds(self.num_members, derive_seed(seed, _FINE_TUNE))
        trained = train_members(trainers, folds, 1, {})
        epochs = round(np.mean([network.num_epochs for network in networks]))
        fit = _fit(task, simulations, trained, epochs, before)
        return replace(fit, runs=simulations.num_simulations)

    def _fine_tuner(
        self,
        task: BenchmarkTask,
        simulations: MultilevelSimulations,
        network: Pretrained,
    ) -> Any:
        trainer = build_trainer(task, self.config).warm_start(network.estimator)
        *between, high = list(simulations)[1:]
        for level, rows in enumerate(between):  # of tasks with three levels
            trainer.append_lowfidelity_simulations(rows.theta, rows.x, level)
        return trainer.append_simulations(high.theta, high.x)


def joint(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """Pre-training on all levels together, hence anew for each number of rows."""
    trainer = build_trainer(task, TransferConfig(joint_pretraining=True))
    *lower, high = list(simulations)
    for level, rows in enumerate(lower):
        trainer.append_lowfidelity_simulations(rows.theta, rows.x, level)
    trainer.append_simulations(high.theta, high.x)
    folds = _folds(1, derive_seed(seed, _FINE_TUNE))
    fit = _fit(task, simulations, train_members([trainer], folds, 1, {}))
    return replace(fit, runs=simulations.num_simulations)


def high_ensemble(
    task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
) -> Fit:
    """Ensemble of NPE/NLE on the high-fidelity rows of the pairs."""
    rows = simulations[-1]
    trainer = build_trainer(task).append_simulations(rows.theta, rows.x)
    ensemble = train_ensemble(trainer, NUM_MEMBERS, seed=seed)
    fit = _fit(task, simulations, ensemble.members)
    return replace(fit, runs=only(-1, len(rows), task))


def _folds(num_members: int, seed: int) -> list[Fold]:
    return [Fold(index, seed) for index in range(num_members)]


def _fit(
    task: BenchmarkTask,
    simulations: MultilevelSimulations,
    trained: Sequence[MultilevelTrainer],
    epochs_before: int = 0,
    seconds_before: float = 0.0,
) -> Fit:
    estimators = [trainer._neural_net for trainer in trained]
    epochs = epochs_before + _epochs(trained)
    x = simulations[-1].x
    return Fit(evaluated(task, estimators), x, epochs, seconds_before)


def _epochs(trained: Sequence[MultilevelTrainer]) -> int:
    return round(np.mean([sum(each.summary["epochs_trained"]) for each in trained]))


TRANSFER_METHODS = {
    "high-ensemble": high_ensemble,
    "mf": TransferMethod(TransferConfig()),
    "mf-unaligned": TransferMethod(TransferConfig(alignment=None)),
    "mf-joint": joint,
    "mf-ensemble": TransferMethod(TransferConfig(), NUM_MEMBERS),
}
