"""The training loop of sbi, over stages and epochs of several levels.

`StagedTrainer` overrides the steps of sbi's loop: it trains the stages of a method one
after the other, takes steps on the terms of a batch, and decides when a stage ends.
With `append_simulations` alone every method calls the parent's at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from sbi.inference.trainers._contracts import LossArgs, TrainConfig
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

from sbi_multilevel.estimators.reading import x_reader
from sbi_multilevel.training.appending import AppendingTrainer
from sbi_multilevel.training.epochs import NotFinite, StageTraining
from sbi_multilevel.training.network import frozen
from sbi_multilevel.training.plan import Layout, TrainingPlan
from sbi_multilevel.training.schedule import Cycle, Stage
from sbi_multilevel.training.tracking import TrainingLog


class StagedTrainer(AppendingTrainer):
    """Trains a network in stages, each on the terms of a loss over levels."""

    _plan: TrainingPlan
    _has_random_loss: ClassVar[bool] = False

    @property
    def _is_multilevel(self) -> bool:
        """Whether anything was appended that the parent does not know."""
        return bool(self._appended) or self._plan.warm_start is not None

    @property
    def _layout(self) -> Layout:
        """The simulations of the present call of `train`."""
        assert self._plan.layout is not None
        return self._plan.layout

    # Stages

    def _run_training_loop(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._is_multilevel:
            return self._train_levels(train_config, loss_args, summarization_kwargs)
        return super()._run_training_loop(
            train_loader, val_loader, train_config, loss_args, summarization_kwargs
        )

    def _train_levels(
        self,
        train_config: TrainConfig,
        loss_args: LossArgs | None,
        summarization_kwargs: dict[str, Any] | None,
    ) -> Any:
        """Train the stages with new simulations, each until it stops by itself."""
        run = super()._run_training_loop
        plan, layout = self._plan, self._layout
        network = self._neural_net.to(self._device)
        if train_config.retrain_from_scratch:
            plan.trained.clear()
        resume = train_config.resume_training
        self._read_x_of(None)
        try:
            for index in plan.stages_to_train(resume):
                stage = layout.stages[index]
                config = replace(
                    train_config,
                    learning_rate=train_config.learning_rate * stage.rate,
                    resume_training=resume and index == plan.stage_index,
                )
                plan.stage_index = index
                batches, held_out = layout.loaders(stage)
                cycle = Cycle.of(
                    stage.schedule,
                    batches.sampler.num_available,
                    len(batches),
                    config.max_num_epochs,
                )
                with frozen(network, stage.freeze):
                    plan.running = StageTraining(
                        stage,
                        layout.dataset.marked(stage.terms),
                        network,
                        self._log,
                        held_out,
                        partial(self._weighted_losses, loss_args=loss_args),
                        self._has_random_loss,
                        cycle,
                    )
                    run(batches, held_out, config, loss_args, summarization_kwargs)
                plan.trained[stage] = layout.counts_of(stage)
        finally:
            self._read_x_of(layout.stages[-1])
        return network

    def _weighted_losses(
        self, parts: Mapping[int, Sequence[Tensor]], loss_args: LossArgs | None
    ) -> dict[int, Tensor]:
        """The loss of each simulation of parts of a batch, times its weight.

        Raises:
            NotFinite: If sbi refuses a loss that is not finite.
        """
        try:
            losses = self._losses_of_parts(parts, loss_args)
        except ValueError as error:
            if "NaN/Inf present" not in str(error):  # of sbi's `assert_all_finite`
                raise
            raise NotFinite(str(error)) from error
        return {m: each * parts[m][3].to(each.device) for m, each in losses.items()}

    def _losses_of_parts(
        self, parts: Mapping[int, Sequence[Tensor]], loss_args: LossArgs | None
    ) -> dict[int, Tensor]:
        """The loss of each simulation of parts of a batch.

        If losses are random, the parts are the terms, see `with_common_noise`.
        """
        arguments = {} if loss_args is None else {"loss_args": loss_args}
        return {m: self._get_losses(batch=p[:3], **arguments) for m, p in parts.items()}

    def _read_x_of(self, stage: Stage | None) -> None:
        """Let the network read x as a stage aligns it; `None`: as it is.

        If nothing is aligned, the network reads x as before.
        """
        reader, dataset = x_reader(self._neural_net), self._layout.dataset
        if reader is None or not dataset.is_aligned:
            return
        reader.read_x_through(None if stage is None else dataset.x_map_of(stage))

    # Epochs

    @property
    def _log(self) -> TrainingLog:
        return TrainingLog(self._summary, self._tracker)

    def _train_epoch(
        self,
        train_loader: DataLoader,
        clip_max_norm: float | None,
        loss_args: LossArgs | None,
    ) -> float:
        running = self._plan.running
        levels = () if running is None else running.stage.levels
        self._log.begin(levels, is_new=self.epoch == 0)
        if running is None:
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)
        running.begin_epoch(self.epoch)
        try:
            super()._train_epoch(train_loader, clip_max_norm, loss_args)
        except NotFinite:
            running.has_diverged = True  # `_converged` ends the training
            return float("nan")
        return running.end_epoch()

    def _step(
        self,
        batch: Sequence[Tensor],
        loss_args: LossArgs | None,
        clip_max_norm: float | None,
    ) -> Tensor:
        """As the parent; with several levels the signed means of the terms."""
        running = self._plan.running
        if running is None:
            return super()._step(batch, loss_args, clip_max_norm)
        return running.step(batch, self.optimizer, clip_max_norm)

    def _build_optimizer(
        self, parameters: list[Parameter], learning_rate: float
    ) -> Optimizer:
        """As the parent, with the settings of the method."""
        if self._plan.running is None:
            return super()._build_optimizer(parameters, learning_rate)
        return Adam(
            parameters,
            learning_rate,
            self._config.betas,
            weight_decay=self._config.weight_decay,
            fused=parameters[0].device.type in ("cpu", "cuda"),
        )

    def _validate_epoch(
        self, val_loader: DataLoader, loss_args: LossArgs | None
    ) -> float:
        """The held-out loss; NaN if no simulations are held out."""
        running = self._plan.running
        if running is None:
            return super()._validate_epoch(val_loader, loss_args)
        return running.validate(val_loader)

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        running = self._plan.running
        if running is None:
            return super()._converged(epoch, stop_after_epochs)
        if not self._config.early_stopping:
            self._best_val_loss = float("nan")  # keeps the weights of the last epoch
            self._best_model_state_dict = None
            if running.has_diverged:
                return self._end_diverged(epoch)
            return running.cycle.is_finished(epoch)
        if epoch == 0 and running.stage.is_warm:
            self._neural_net.eval()
            self._val_loss = running.validate_start()
        converged = super()._converged(epoch, stop_after_epochs)
        if running.has_diverged:
            return converged or self._end_diverged(epoch)
        if not converged and running.cycle.is_finished(epoch):
            self._neural_net.load_state_dict(self._best_model_state_dict)
            converged = True
        return converged

    def _end_diverged(self, epoch: int) -> bool:
        """Return to the best weights after a loss or gradient that is not finite.

        Raises:
            ValueError: If there are none.
        """
        where = f"The loss or its gradient was not finite in epoch {epoch}"
        remedy = f"Lower learning_rate={self.optimizer.param_groups[0]['lr']:g} or "
        best = self._best_model_state_dict
        if best is None or not math.isfinite(self._best_val_loss):
            raise ValueError(
                f"{where}, and no earlier weights have a finite loss on held-out "
                f"simulations. {remedy}clip_max_norm, look for outliers in x, or keep "
                "early_stopping=True."
            )
        self._neural_net.load_state_dict(best)
        if self._plan.reports_convergence:
            warnings.warn(
                f"{where}. Training ended there, and the best weights before are kept. "
                f"{remedy}clip_max_norm if that was early.",
                stacklevel=2,
            )
        return True

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        running = self._plan.running
        if running is not None and running.cycle.is_cut:
            epoch = max_num_epochs + 1  # as in sbi where the limit ends a training
        self._log.end(epoch <= max_num_epochs, self._best_val_loss)
        # without early stopping a fixed number of epochs was asked for
        stops_early = running is None or self._config.early_stopping
        if self._plan.reports_convergence and stops_early:
            super()._report_convergence_at_end(epoch, max_num_epochs)
