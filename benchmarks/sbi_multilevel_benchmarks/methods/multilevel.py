"""ML-NPE and ML-NLE, with several settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sbi_multilevel import (
    HybridConfig,
    LevelSimulations,
    MultilevelConfig,
    MultilevelSimulations,
)
from sbi_multilevel.level_maps import AlignmentKind
from sbi_multilevel.losses.gradients import ADJUSTMENTS
from sbi_multilevel_benchmarks.fit import Fit, evaluated
from sbi_multilevel_benchmarks.registry import register_method
from sbi_multilevel_benchmarks.task import BenchmarkTask
from sbi_multilevel_benchmarks.trainers import build_trainer


@dataclass(frozen=True)
class MultilevelMethod:
    """A trainer of simulations of several levels, with sbi's settings of training.

    Args:
        config: Settings of the method.
        high_only: Whether the trainer is given high-fidelity simulations only, as
            simulations of level 0.
    """

    config: MultilevelConfig | HybridConfig
    high_only: bool = False

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        trainer = self.build(task, simulations)
        estimator = trainer.train(**self.train_options(task, simulations))
        epochs = trainer.summary["epochs_trained"][-1]
        return Fit(evaluated(task, [estimator]), simulations[-1].x, epochs)

    def build(self, task: BenchmarkTask, simulations: MultilevelSimulations) -> Any:
        """An untrained trainer with the simulations."""
        if self.high_only:
            level = LevelSimulations(0, simulations[-1].theta, simulations[-1].x)
            simulations = MultilevelSimulations((level,))
        trainer = build_trainer(task, self.config)
        return trainer.append_multilevel_simulations(simulations)

    def train_options(
        self, task: BenchmarkTask, simulations: MultilevelSimulations
    ) -> dict:
        """Arguments of the trainer's `train`."""
        return {}


@dataclass(frozen=True)
class PaperMethod(MultilevelMethod):
    """ML-NPE or ML-NLE with the settings of the reference code.

    Full batches, a learning rate of 1e-4 and the number of epochs of the task.
    """

    needs_paper_settings: ClassVar[bool] = True

    def train_options(
        self, task: BenchmarkTask, simulations: MultilevelSimulations
    ) -> dict:
        return {
            "training_batch_size": 2 * sum(simulations.num_simulations),
            "learning_rate": 1e-4,
            "max_num_epochs": task.paper_epochs,
        }


def _paper(
    alignment: AlignmentKind | None, adjustment: str = "rescale_project"
) -> PaperMethod:
    return PaperMethod(
        MultilevelConfig(
            adjustment=adjustment,  # pyright: ignore[reportArgumentType]
            alignment=alignment,
            early_stopping=False,
            betas=(0.85, 0.999),
        )
    )


def _telescoping(alignment: AlignmentKind | None = None) -> MultilevelMethod:
    return MultilevelMethod(
        MultilevelConfig(alignment=alignment, stopping="telescoping")
    )


# the default, and the training loss as the rule of early stopping
register_method("ml-bounded", MultilevelMethod(MultilevelConfig()))
register_method("ml", _telescoping())
register_method("ml-paired", _telescoping("affine"))
register_method("ml-own", _telescoping("standardize"))
# the settings and the alignment of the reference code, with every adjustment
for _adjustment in ADJUSTMENTS:
    _end = "" if _adjustment == "rescale_project" else f"-{_adjustment}"
    register_method(f"ml-paper{_end}", _paper("standardize", _adjustment))
register_method("ml-paper-paired", _paper("affine"))
register_method("ml-paper-unaligned", _paper(None))
