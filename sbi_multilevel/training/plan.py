"""The state of training on several levels, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader

from sbi_multilevel.data.preparation import (
    check_pretrained,
    check_theta_varies,
    check_vectors,
    fill_constant,
    without_extremes,
)
from sbi_multilevel.data.simulations import MultilevelSimulations, Target
from sbi_multilevel.estimators.observations import TrainingRange
from sbi_multilevel.training.batches import (
    Fold,
    LevelBatchSampler,
    LevelSplit,
    TermDataset,
    held_out_chunks,
)
from sbi_multilevel.training.common_noise import Contrasts
from sbi_multilevel.training.epochs import StageTraining
from sbi_multilevel.training.network import WarmStart, moments_of
from sbi_multilevel.training.schedule import Stage

_SEED_OF_NOISE = 0  # the same in all trainings on the same simulations


@dataclass(frozen=True, eq=False)
class Layout:
    """The simulations of one call of `train`, as batches are drawn from them.

    Args:
        simulations: The simulations, prepared, as the method uses them.
        dataset: The simulations of all terms.
        stages: The stages to train.
        batch_size: Simulations in a batch.
        loader_options: Further options of the loaders.
        split: Which simulations are trained on, and which are held out.
    """

    simulations: MultilevelSimulations
    dataset: TermDataset
    stages: tuple[Stage, ...]
    batch_size: int
    loader_options: dict
    split: LevelSplit

    def loaders(self, stage: Stage) -> tuple[DataLoader, DataLoader]:
        """Loaders of whole training batches, and of chunks of held-out simulations."""
        dataset, size = self.dataset, self.batch_size
        options = {"batch_size": None, **self.loader_options}
        batches = LevelBatchSampler(dataset, self.split.train, size, stage)
        chunks = held_out_chunks(dataset, self.split.validation, size, stage)
        return (
            DataLoader(dataset.dataset, sampler=batches, **options),
            DataLoader(dataset.dataset, sampler=chunks, **options),
        )

    @cached_property
    def contrasts(self) -> Contrasts:
        """Parameters of all training simulations, for contrastive losses."""
        dataset = self.dataset
        training = dataset.indices(self.split.train, dataset.terms)
        return Contrasts.of(dataset.columns[0][training])

    def counts_of(self, stage: Stage) -> tuple[int, ...]:
        """Simulations of the levels of a stage."""
        return tuple(len(self.simulations[level]) for level in stage.levels)


@dataclass
class TrainingPlan:
    """What a trainer keeps between and during calls of `train`.

    Args:
        warm_start: The estimator, or weights, that training starts from.
        fold: Which simulations are held out; drawn at random if `None`.
        prepares: Whether simulations are prepared; not if another trainer did so.
        reports_convergence: Whether the end of training is reported.
        split: The split into training and held-out simulations, once it is drawn.
        layout: The simulations as batches are drawn from them; not pickled.
        training_range: The range of x that was trained on.
        stage_index: The stage that is trained, or was trained last.
        trained: How many simulations of its levels each stage was trained on.
        running: The stage under training; not pickled.
    """

    warm_start: WarmStart | None = None
    fold: Fold | None = None
    prepares: bool = True
    reports_convergence: bool = True
    split: LevelSplit | None = None
    layout: Layout | None = None
    training_range: TrainingRange | None = None
    stage_index: int = 0
    trained: dict[Stage, tuple[int, ...]] = field(default_factory=dict)
    running: StageTraining | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but copies of the simulations."""
        return {**vars(self), "layout": None, "running": None}

    def prepare(
        self, simulations: MultilevelSimulations, target: Target, is_new: bool
    ) -> MultilevelSimulations:
        """Move single extreme values, fill constant features, and check the rest.

        Args:
            simulations: Simulations of all levels.
            target: `"theta"` or `"x"`.
            is_new: Whether there is no network yet.

        Raises:
            ValueError: If no network can be trained on them.
        """
        if not self.prepares:
            return simulations
        if target == "x":
            check_vectors(simulations[0])
        simulations = without_extremes(simulations)
        highest, *lower = (level.x for level in reversed(simulations.levels))
        training_range = TrainingRange.of(highest, lower)
        simulations = fill_constant(simulations, target, _SEED_OF_NOISE)
        if self.warm_start is not None:
            moments = moments_of(self.warm_start, simulations[-1].x)
            check_pretrained(moments, simulations)
        elif is_new:
            check_theta_varies(simulations[0])
        self.training_range = training_range
        return simulations

    def stages_to_train(self, resume: bool) -> list[int]:
        """Indices of the stages to train; all but the last on new simulations only."""
        assert self.layout is not None
        layout = self.layout
        last = len(layout.stages) - 1
        if resume:
            return list(range(self.stage_index, last + 1))
        return [
            index
            for index, stage in enumerate(layout.stages)
            if index == last or self.trained.get(stage) != layout.counts_of(stage)
        ]
