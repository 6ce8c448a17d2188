"""MF-NPE and MF-NLE: networks pre-trained once, and fine-tuned many times.

Methods with the same simulations of level 0 start from the same pre-trained networks. A
process keeps the networks of its last runs, so runs that share them should follow each
other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from sbi_multilevel import (
    LevelSimulations,
    MultilevelSimulations,
    TransferConfig,
    train_ensemble,
)
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import train_members
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.seeds import derive_seed
from sbi_multilevel_benchmarks.fit import Fit, evaluated, runs_at
from sbi_multilevel_benchmarks.registry import register_method
from sbi_multilevel_benchmarks.task import BenchmarkTask
from sbi_multilevel_benchmarks.trainers import build_trainer

NUM_MEMBERS = 5
_PRETRAIN, _FINE_TUNE = 0, 1  # streams of seeds


@dataclass(frozen=True)
class PretrainingData:
    """Simulations of level 0, equal if task, number and seed are.

    Args:
        name: Name of the task.
        num_simulations: Number of simulations.
        seed: Their seed.
        task: The task.
        simulations: The simulations.
    """

    name: str
    num_simulations: int
    seed: int
    task: BenchmarkTask = field(compare=False)
    simulations: LevelSimulations = field(compare=False)


@dataclass(frozen=True)
class Pretrained:
    """A network trained on level 0, with the epochs and seconds of its training."""

    estimator: Any
    num_epochs: int
    seconds: float


@lru_cache(maxsize=16)
def pretrain(data: PretrainingData, index: int) -> Pretrained:
    """Train a member of an ensemble on level 0.

    Args:
        data: The simulations.
        index: Number of the member, which determines its seed and its held-out fold.
    """
    start = time.perf_counter()
    trainer = build_trainer(data.task, TransferConfig())
    trainer.append_lowfidelity_simulations(data.simulations.theta, data.simulations.x)
    fold = Fold(index, derive_seed(data.seed, _PRETRAIN))
    trained = train_members([trainer], [fold], 1, {})
    seconds = time.perf_counter() - start
    return Pretrained(trained[0]._neural_net, _epochs(trained), seconds)


def pretrain_all(
    task: BenchmarkTask, simulations: MultilevelSimulations, seed: int, num_members: int
) -> tuple[list[Pretrained], float]:
    """Pre-trained networks of all members, and the seconds that earlier runs spent."""
    low = simulations[0]
    data = PretrainingData(task.name, len(low), seed, task, low)
    start = time.perf_counter()
    networks = [pretrain(data, index) for index in range(num_members)]
    spent = time.perf_counter() - start
    return networks, max(0.0, sum(network.seconds for network in networks) - spent)


@dataclass(frozen=True)
class TransferMethod:
    """MF-NPE or MF-NLE, from pre-trained networks.

    Networks are pre-trained on the simulations of level 0 without those of pairs. A
    single network is the first member of the ensemble.

    Args:
        config: Settings of fine-tuning; pre-training is the same for all of them.
        num_members: Networks, each pre-trained and fine-tuned on its own folds.
    """

    config: TransferConfig
    num_members: int = 1

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        networks, before = pretrain_all(task, simulations, seed, self.num_members)
        trainers = [
            append_unpaired(
                build_trainer(task, self.config).warm_start(network.estimator),
                list(simulations)[1:],
            )
            for network in networks
        ]
        epochs = round(np.mean([network.num_epochs for network in networks]))
        return _fine_tune(task, simulations, trainers, seed, epochs, before)


def append_unpaired(trainer: Any, levels: Sequence[LevelSimulations]) -> Any:
    """Append simulations of all levels, without the lower sides of pairs."""
    *lower, high = levels
    for level, simulations in enumerate(lower):
        trainer.append_lowfidelity_simulations(simulations.theta, simulations.x, level)
    return trainer.append_simulations(high.theta, high.x)


def joint(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """MF-NPE or MF-NLE with pre-training on all levels, which cannot be shared."""
    trainer = build_trainer(task, TransferConfig(joint_pretraining=True))
    trainer = append_unpaired(trainer, list(simulations))
    return _fine_tune(task, simulations, [trainer], seed)


def high_ensemble(
    task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
) -> Fit:
    """Ensemble of NPE or NLE on the high-fidelity simulations of the pairs."""
    high = simulations[-1]
    trainer = build_trainer(task, TransferConfig())
    trainer.append_simulations(high.theta, high.x)
    ensemble = train_ensemble(trainer, NUM_MEMBERS, seed=seed)
    estimator = evaluated(task, ensemble.estimators)
    runs = runs_at(-1, len(high), task)
    return Fit(estimator, high.x, _epochs(ensemble.members), runs=runs)


def _fine_tune(
    task: BenchmarkTask,
    simulations: MultilevelSimulations,
    trainers: Sequence[MultilevelTrainer],
    seed: int,
    epochs_before: int = 0,
    seconds_before: float = 0.0,
) -> Fit:
    seed = derive_seed(seed, _FINE_TUNE)
    folds = [Fold(index, seed) for index in range(len(trainers))]
    trained = train_members(trainers, folds, 1, {})
    return Fit(
        evaluated(task, [trainer._neural_net for trainer in trained]),
        simulations[-1].x,
        epochs_before + _epochs(trained),
        seconds_before,
        simulations.num_simulations,
    )


def _epochs(trained: Sequence[MultilevelTrainer]) -> int:
    return round(np.mean([sum(each.summary["epochs_trained"]) for each in trained]))


register_method("high-ensemble", high_ensemble)
register_method("mf", TransferMethod(TransferConfig()))
register_method("mf-unaligned", TransferMethod(TransferConfig(alignment=None)))
register_method("mf-joint", joint)
register_method("mf-ensemble", TransferMethod(TransferConfig(), NUM_MEMBERS))
