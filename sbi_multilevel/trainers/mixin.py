"""What makes a single-level trainer of sbi one of several levels.

The mixin sits in front of a trainer of sbi in the method resolution order and takes
over the steps of training that see more than one level: the batches, the rows the
network is built from, the stages, and, in `sbi_multilevel.trainers.epochs`, an epoch
and when to stop. Everything else, from the loss of a row to the posterior, is the
parent's. With `append_simulations` alone every method hands over to the parent at once.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from sbi.inference.trainers._contracts import LossArgs, TrainConfig
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_multilevel.estimators import Builder, MappedEstimator, Modelled
from sbi_multilevel.recipes import Recipe, Stage, get_recipe
from sbi_multilevel.trainers.batches import Fold, LevelSplit, TermRows, stage_loaders
from sbi_multilevel.trainers.data import MultilevelDataMixin
from sbi_multilevel.trainers.network import (
    WarmStart,
    builder_for,
    check_builder,
    check_enough_to_train,
    check_named,
    frees_theta,
    frozen,
    moments_of,
    read_weights,
    take_over,
)
from sbi_multilevel.trainers.preparing import PreparingMixin
from sbi_multilevel.validation import check_inside, check_prior


class MultilevelMixin(PreparingMixin):
    """Trains a network of sbi on rows of several levels, as a recipe says.

    Args:
        recipe: Name of a recipe (`"hybrid"`, `"multilevel"`, `"transfer"`), or a
            recipe, e.g. `Multilevel(adjustment="project")` or
            `Transfer(fine_tuning_rate=0.1)`.
        parameters: Names of the columns of theta that each level has, the highest
            included, where levels differ, e.g. `{0: ("mu",), 1: ("mu", "sigma")}`. See
            `sbi_multilevel.parameters`.

    All other arguments are those of the parent.
    """

    _modelled: ClassVar[Modelled]
    _default_recipe: ClassVar[str] = "hybrid"

    def __init__(
        self,
        *args: Any,
        recipe: str | Recipe | None = None,
        parameters: Mapping[int, Sequence[str]] | None = None,
        **kwargs: Any,
    ):
        self._recipe = get_recipe(self._default_recipe if recipe is None else recipe)
        self._split: LevelSplit | None = None
        self._fold: Fold | None = None
        self._network_rows: tuple[Tensor, ...] | None = None
        self._warm_start: WarmStart | None = None
        self._stage_index = 0
        self._trained: dict[Stage, tuple[int, ...]] = {}
        given = inspect.signature(type(self)).bind(*args, **kwargs).arguments
        check_prior(given.get("prior"))
        density_estimator = given.get("density_estimator", "maf")
        check_named(density_estimator)
        self._is_named = isinstance(density_estimator, str)
        super().__init__(*args, parameters=parameters, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the parent's arguments beside ours in `help` and in editors."""
        super().__init_subclass__(**kwargs)
        following = cls.__mro__[cls.__mro__.index(MultilevelDataMixin) + 1 :]
        parent = next(base for base in following if "__init__" in vars(base))
        own = inspect.signature(MultilevelMixin).parameters
        added = (
            own["recipe"].replace(default=cls._default_recipe),
            own["parameters"],
        )
        parameters = [*inspect.signature(parent).parameters.values(), *added]
        cls.__signature__ = inspect.Signature(parameters)

    def __getstate__(self) -> dict:
        """As the parent, without the copy of the rows that training works on."""
        state = super().__getstate__()
        copies = ("_term_rows", "_held_out")
        return {k: v for k, v in state.items() if k not in copies}

    def warm_start(self, source: WarmStart) -> Self:
        """Start training from weights that were trained before, of any trainer of sbi.

        Args:
            source: An estimator, as `train` of a trainer of sbi returns it (it is
                copied), its `state_dict()`, or a file written by
                `torch.save(estimator.state_dict(), path)`, which is read without
                unpickling.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the trainer was trained already, its recipe cannot, or the
                file holds something else.
        """
        if self._neural_net is not None:
            raise ValueError(
                "warm_start was called after training. Call it before, on a new "
                "trainer with the same simulations."
            )
        if isinstance(source, (str, os.PathLike)):
            source = read_weights(source)
        self._warm_start = source
        return self

    # Batches and network

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """Return loaders of batches of `training_batch_size` rows over all terms.

        Arguments are those of the parent. With rows of several levels a batch is
        `(theta, x, prior_masks, weight, term)`, see `sbi_multilevel.trainers.batches`,
        and the loaders are those of the first stage; a batch size of at least the
        number of all rows (a pair counting as two) is full batch.
        """
        if not self._uses_recipe:
            if self._fold is not None and not resume_training:
                self._hold_out_fold(starting_round, validation_fraction)
            return super().get_dataloaders(
                starting_round,
                training_batch_size,
                validation_fraction,
                resume_training or self._fold is not None,
                dataloader_kwargs,
            )
        simulations = self._prepared_simulations()
        if frees_theta(self._recipe, self._modelled, self._prior, self._is_named):
            for level in simulations:
                check_inside(self._prior, level)
        if not resume_training or self._split is None:
            fraction = validation_fraction if self._recipe.early_stopping else 0.0
            counts = simulations.num_simulations
            self._split = LevelSplit.random(
                counts, fraction, self._fold, self._recipe.min_held_out
            )
            check_enough_to_train(self._split)
        network = self._warm_start if self._neural_net is None else self._neural_net
        moments = moments_of(network, simulations[-1].x)
        rows = TermRows.of(simulations, self._split, self._recipe, moments)
        self._term_rows = rows
        self._counts = simulations.num_simulations
        self._loader_options = (training_batch_size, dataloader_kwargs or {})
        first = self._stages[0]
        self.train_indices = rows.indices(self._split.train, first.terms)
        self.val_indices = rows.indices(self._split.validation, first.terms)
        return stage_loaders(rows, self._split, first, *self._loader_options)

    def _hold_out_fold(self, starting_round: int, validation_fraction: float) -> None:
        """Set sbi's own indices to those of a fold, for rows of one level."""
        assert self._fold is not None
        count = len(super().get_simulations(starting_round)[0])
        split = LevelSplit.random([count], validation_fraction, self._fold)
        (self.train_indices,), (self.val_indices,) = split.train, split.validation

    @property
    def _network_builder(self) -> Builder:
        """The builder that the recipe asks for, around the user's own."""
        return builder_for(
            self._recipe,
            self._build_neural_net,
            self._modelled,
            self._prior,
            self._is_named,
        )

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return self._recipe.stages(len(self._counts), self._warm_start is not None)

    def get_simulations(self, starting_round: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return theta, x and prior masks: as the parent; fine sides of all levels."""
        if self._network_rows is not None:
            return self._network_rows
        return super().get_simulations(starting_round)

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        """Build the network on the rows of the first stage: they set its z-scoring."""
        if retrain_from_scratch or self._neural_net is None:
            check_builder(self)
        if not self._uses_recipe:
            super()._initialize_neural_network(  # pyright: ignore[reportAbstractUsage]
                retrain_from_scratch, start_idx
            )
            return
        build, wanted = self._build_neural_net, self._network_builder
        rows = self._term_rows.dataset.tensors[:3]
        is_new = self._neural_net is None or retrain_from_scratch
        if is_new and self._warm_start is not None:
            theta, x = (column[self.train_indices].cpu() for column in rows[:2])
            self._neural_net = take_over(
                self._warm_start, wanted, self._modelled, theta, x
            )
            return
        self._network_rows = self._rows_to_build_on()
        self._build_neural_net = wanted
        try:
            super()._initialize_neural_network(  # pyright: ignore[reportAbstractUsage]
                retrain_from_scratch, start_idx
            )
        finally:
            self._network_rows, self._build_neural_net = None, build

    # Stages

    def _run_training_loop(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Train the stages whose rows are new, each until it stops by itself."""
        run = super()._run_training_loop
        if not self._uses_recipe:
            return run(
                train_loader, val_loader, train_config, loss_args, summarization_kwargs
            )
        if train_config.retrain_from_scratch:
            self._trained.clear()
        resume, network = train_config.resume_training, self._neural_net
        self._align_network(None)
        try:
            for index in self._stages_to_run(resume):
                stage = self._stages[index]
                self._stage = stage
                config = replace(
                    train_config,
                    learning_rate=train_config.learning_rate * stage.rate,
                    resume_training=resume and index == self._stage_index,
                )
                self._stage_index = index
                loaders = stage_loaders(
                    self._term_rows, self._split, stage, *self._loader_options
                )
                self._held_out = (loaders[1], loss_args)
                with frozen(network, stage.freeze):
                    run(*loaders, config, loss_args, summarization_kwargs)
                self._trained[stage] = self._rows_of_stage(stage)
        finally:
            self._align_network(self._stages[-1])
        return network

    def _stages_to_run(self, resume: bool) -> range | list[int]:
        """Indices of the stages to train; all but the last only on new rows."""
        stages = self._stages
        if resume:
            return range(self._stage_index, len(stages))
        last = len(stages) - 1
        return [
            index
            for index, stage in enumerate(stages)
            if index == last or self._trained.get(stage) != self._rows_of_stage(stage)
        ]

    def _rows_of_stage(self, stage: Stage) -> tuple[int, ...]:
        return tuple(self._counts[level] for level in stage.levels)

    def _align_network(self, stage: Stage | None) -> None:
        """Let the network read x as the rows of a stage are moved; `None`: as it is.

        Where no rows are moved, it goes on reading x as it did.
        """
        network, alignments = self._neural_net, self._term_rows.alignments
        is_moved = any(align.x for align in alignments)
        if not isinstance(network, MappedEstimator) or not is_moved:
            return
        if stage is None:
            network.read_x_through(None)
            return
        fine = [term for term in stage.terms if not term.coarse]
        highest = max(fine, key=lambda term: term.level)
        (position,) = self._term_rows.positions([highest])
        maps = alignments[position].x
        network.read_x_through(maps[0] if maps else None)
