"""The state of training on several levels, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.estimators.observations import TrainingRange
from sbi_multilevel.training.batches import Fold, LevelSplit, TermDataset, stage_loaders
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.contrasts import Contrasts
from sbi_multilevel.training.epochs import StageTraining
from sbi_multilevel.training.network import WarmStart
from sbi_multilevel.training.stages import Stage


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
        """Loaders of training batches and of held-out simulations."""
        return stage_loaders(
            self.dataset, self.split, stage, self.batch_size, self.loader_options
        )

    def indices(self, chosen: Sequence[Tensor]) -> Tensor:
        """Positions in the dataset of chosen simulations of the first stage."""
        return self.dataset.indices(chosen, self.stages[0].terms)

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

    def lay_out(
        self,
        simulations: MultilevelSimulations,
        config: MethodConfig,
        moments: Moments | None,
        batch_size: int,
        loader_options: dict | None,
    ) -> Layout:
        """Align the simulations and lay them out, split as `split` says."""
        assert self.split is not None
        self.layout = Layout(
            simulations,
            TermDataset.of(simulations, self.split, config, moments),
            config.stages(len(simulations), self.warm_start is not None),
            batch_size,
            loader_options or {},
            self.split,
        )
        return self.layout

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
