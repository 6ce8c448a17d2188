r"""An epoch of training and of validation over several levels, and when to stop.

What is learned of an epoch goes to the `Tracker` of the trainer at once, so that a
training can be watched, and into `inference.summary`, with `_` for `/`:

============================== =====================================================
name                           what it is
============================== =====================================================
`training_loss/level_1`        what the rows of a level add to the loss
`validation_loss/level_1`      the same of held-out rows
`training_loss/all_levels`     their sum, where levels are several; the tracker only,
                               as sbi puts it in the summary as `training_loss`
`validation_loss/all_levels`   the same of held-out rows
`validation_loss_error`        standard error of the validation loss over its rows
============================== =====================================================

and of stages with several terms, as means over the steps of an epoch,

============================== =====================================================
name                           what it is
============================== =====================================================
`gradient_norm`                length of a step, before clipping and Adam
`gradient_norm/level_1`        that of the base or the correction of a level, rescaled
                               but not projected
`gradient_cosine`              cosine between base and all corrections; below 0
                               `project` acts
`control_variate/level_1`      :math:`\mathrm{Cov}[f_l, f_{l-1}] /
                               \mathrm{Var}[f_{l-1}]` over the pairs
`effective_rows`               high-fidelity rows that a plain mean would need to vary
                               as little as the loss of a batch does
============================== =====================================================

Gradients of levels are known where the recipe adjusts them, and coefficients where rows
are paired; nothing is differentiated for the sake of this. The formulas are in
`sbi_multilevel.gradients` and `sbi_multilevel.diagnostics.training`. The summary also
has, in `epochs_of`, the epoch of each of these values, and in `stages`, for each run of
a stage, its first epoch, its levels, whether early stopping ended it (`None` while it
runs) and the loss of the weights that were kept. The `validation_loss` of sbi's summary
is what early stopping follows: with `Multilevel(stopping="bounded")` the estimate of
`sbi_multilevel.held_out`, else the sum of the levels' parts.

A training whose loss or gradient is not finite ends there, with a warning, and keeps
the best weights before.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from sbi.inference.trainers._contracts import LossArgs
from torch import Tensor
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.utils.data import DataLoader

from sbi_multilevel.gradients import (
    adjusted_step,
    assign_gradient,
    term_means,
)
from sbi_multilevel.held_out import LossEstimate
from sbi_multilevel.recipes import Stage
from sbi_multilevel.trainers.batches import TermRows
from sbi_multilevel.trainers.data import MultilevelDataMixin
from sbi_multilevel.trainers.tracking import StepRecorder, TermLosses

# From so many rows a step on, a forward pass a term costs less than backward passes
# through one graph of all rows (measured: `python -m sbi_multilevel.benchmark cost`).
_ROWS_FOR_SEPARATE_PASSES = 1_000
_SECONDS_BETWEEN_FLUSHES = 1.0


class _NotFinite(ArithmeticError):
    """A loss or a gradient is not finite."""


class EpochMixin(MultilevelDataMixin):
    """Takes over an epoch from a trainer of sbi where rows of several levels are used.

    `MultilevelMixin` says what is trained on: `_term_rows`, `_stage` and `_held_out`.
    """

    _term_rows: TermRows  # the rows of all stages
    _stage: Stage  # the stage being trained
    _held_out: tuple[DataLoader, LossArgs | None]
    _warm_start: Any
    _last_flush: float = 0.0  # of the tracker, by `time.monotonic`
    _reports_convergence: bool = True  # members are silent
    _has_diverged: bool = False  # in the last epoch

    @property
    def _uses_recipe(self) -> bool:
        return bool(self._entry_levels or self._weights) or self._warm_start is not None

    # Epochs

    def _train_epoch(
        self,
        train_loader: DataLoader,
        clip_max_norm: float | None,
        loss_args: LossArgs | None,
    ) -> float:
        self._note_stage()
        if not self._uses_recipe:
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)
        for group in self.optimizer.param_groups:
            group["betas"] = self._recipe.betas
            group["weight_decay"] = self._recipe.weight_decay
        parameters = [p for p in self._neural_net.parameters() if p.requires_grad]
        means, terms, self._has_diverged = [], self._stage.terms, False
        recorder = StepRecorder(terms, self._positions) if len(terms) > 1 else None
        for batch in train_loader:
            try:
                values = self._term_values(batch, loss_args, recorder)
                step = adjusted_step(values, parameters, self._stage.adjustment)
                _check_finite(step.direction)
            except _NotFinite:
                self._has_diverged = True  # `_converged` ends the training
                return float("nan")
            if recorder is not None:
                recorder.keep_step(step)
            assign_gradient(step.direction, parameters)
            if clip_max_norm is not None:
                clip_grad_norm_(parameters, max_norm=clip_max_norm)
            self.optimizer.step()
            means.append(torch.stack(values).detach())
        for name, value in recorder.metrics().items() if recorder is not None else ():
            self._log(name, value)
        means = torch.stack(means).mean(dim=0).tolist()
        return self._log_levels("training_loss", means)

    def _validate_epoch(
        self, val_loader: DataLoader, loss_args: LossArgs | None
    ) -> float:
        """The loss on the held-out rows; NaN where none are held out."""
        if not self._uses_recipe:
            return super()._validate_epoch(val_loader, loss_args)
        if len(val_loader) == 0:
            return float("nan")
        try:
            losses = self._term_losses(val_loader, loss_args)
        except _NotFinite:
            return math.inf
        self._log_levels("validation_loss", losses.means)
        estimate = self._estimate(losses)
        self._log("validation_loss_error", estimate.error)
        return estimate.value

    def _term_losses(
        self, val_loader: DataLoader, loss_args: LossArgs | None
    ) -> TermLosses:
        """Losses of the held-out rows of each term of the stage."""
        with torch.no_grad():
            parts = [(self._losses(b, loss_args), b[-1]) for b in val_loader]
        losses, marks = (torch.cat(column) for column in zip(*parts))
        return TermLosses.of(losses, marks, self._stage.terms, self._positions)

    def _estimate(self, losses: TermLosses) -> LossEstimate:
        """What early stopping follows."""
        return losses.bounded if self._stage.is_bounded else losses.sum

    @property
    def _positions(self) -> list[int]:
        """The mark in a batch of each term of the stage."""
        return self._term_rows.positions(self._stage.terms)

    @property
    def _weights_of_terms(self) -> Tensor:
        weights = [term.weight for term in self._stage.terms]
        return torch.tensor(weights, device=self._device)

    def _means(self, losses: Tensor, marks: Tensor) -> Tensor:
        """Mean loss of each term of the stage."""
        every = term_means(losses, marks.to(losses.device), len(self._term_rows.terms))
        return every[self._positions]

    def _losses(self, batch: Sequence[Tensor], loss_args: LossArgs | None) -> Tensor:
        """The parent's loss of each row, times its weight."""
        rows = batch[:3]
        arguments = {} if loss_args is None else {"loss_args": loss_args}
        try:
            losses = self._get_losses(batch=rows, **arguments)
        except ValueError as error:
            if "NaN/Inf present" not in str(error):  # of sbi's `assert_all_finite`
                raise
            raise _NotFinite(str(error)) from error
        return losses * batch[3].to(losses.device)

    def _term_values(
        self,
        batch: Sequence[Tensor],
        loss_args: LossArgs | None,
        recorder: StepRecorder | None = None,
    ) -> list[Tensor]:
        """The signed means of the terms, whose sum is the loss.

        One pass over all rows and one over the rows of each term give the same values;
        on many rows the second makes the backward passes cheaper.
        """
        marks, weights = batch[-1], self._weights_of_terms
        one_backward_pass = self._stage.adjustment == "none"
        if one_backward_pass or len(marks) < _ROWS_FOR_SEPARATE_PASSES:
            losses = self._losses(batch, loss_args)
            if recorder is not None:
                recorder.keep_losses(losses, marks)
            return list(weights * self._means(losses, marks))
        passes = [[column[marks == t] for column in batch] for t in self._positions]
        parts = [self._losses(rows, loss_args) for rows in passes]
        if recorder is not None:
            recorder.keep_losses(torch.cat(parts), torch.cat([r[-1] for r in passes]))
        return [w * part.mean() for w, part in zip(weights, parts, strict=True)]

    # Logging

    def _note_stage(self) -> None:
        """Note in the summary where the training of a stage begins."""
        stages = self._summary.setdefault("stages", [])
        if self.epoch == 0 or not stages:
            start = len(self._summary["training_loss"])
            levels = self._stage.levels if self._uses_recipe else ()
            stages.append({"start": start, "levels": list(levels)})
        # until it ends
        stages[-1] |= {"converged": None, "best_validation_loss": None}

    def _log(self, name: str, value: float) -> None:
        """Tell the tracker at once, and keep the value and its epoch in the summary."""
        epoch, key = len(self._summary["training_loss"]), name.replace("/", "_")
        self._tracker.log_metric(name, value, step=epoch)
        self._summary.setdefault(key, []).append(value)
        self._summary.setdefault("epochs_of", {}).setdefault(key, []).append(epoch)

    def _log_levels(self, name: str, values: Sequence[float]) -> float:
        """Sum of the signed means; logs the part of each level on the way."""
        terms, total = self._stage.terms, sum(values)
        for level in self._stage.levels:
            part = sum(v for v, t in zip(values, terms) if t.level == level)
            self._log(f"{name}/level_{level}", part)
        if len(self._stage.levels) > 1:  # sbi tells the sum after training only
            epoch = len(self._summary["training_loss"])
            self._tracker.log_metric(f"{name}/all_levels", total, step=epoch)
        self._flush_now_and_then()
        return total

    def _flush_now_and_then(self) -> None:
        """Let a tracker write to disk what it holds, at most once a second."""
        if time.monotonic() - self._last_flush >= _SECONDS_BETWEEN_FLUSHES:
            self._tracker.flush()
            self._last_flush = time.monotonic()

    # Stopping

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        if self._uses_recipe and not self._recipe.early_stopping:
            self._best_val_loss = float("nan")  # keeps the weights of the last epoch
            self._best_model_state_dict = None
            return self._has_diverged and self._end_diverged(epoch)
        if self._uses_recipe and epoch == 0 and self._stage.is_warm:
            self._neural_net.eval()
            self._val_loss = self._validate_start()
        converged = super()._converged(epoch, stop_after_epochs)
        return converged or (self._has_diverged and self._end_diverged(epoch))

    def _validate_start(self) -> float:
        """The held-out loss of the weights that a warm stage starts from."""
        try:
            return self._estimate(self._term_losses(*self._held_out)).value
        except _NotFinite:
            return math.inf

    def _end_diverged(self, epoch: int) -> bool:
        """Return to the best weights after a training step that could not be taken.

        Raises:
            ValueError: If there are none.
        """
        self._has_diverged = False
        where = f"The loss or its gradient was not finite in epoch {epoch}"
        if self._best_model_state_dict is None or not math.isfinite(
            self._best_val_loss
        ):
            raise ValueError(
                f"{where}, and no earlier weights have a finite loss on held-out "
                f"simulations. Lower learning_rate={self._learning_rate:g} or "
                "clip_max_norm, look for outliers in x, or keep early_stopping=True."
            )
        self._neural_net.load_state_dict(self._best_model_state_dict)
        if self._reports_convergence:
            warnings.warn(
                f"{where}. Training ended there, and the best weights before are kept. "
                f"Lower learning_rate={self._learning_rate:g} or clip_max_norm if "
                "that was early.",
                stacklevel=2,
            )
        return True

    @property
    def _learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        self._summary["stages"][-1] |= {
            "converged": epoch <= max_num_epochs,
            "best_validation_loss": self._best_val_loss,
        }
        if not self._reports_convergence:
            return
        if self._uses_recipe and not self._recipe.early_stopping:
            return  # a fixed number of epochs was asked for
        super()._report_convergence_at_end(epoch, max_num_epochs)


def _check_finite(direction: Tensor) -> None:
    if not direction.isfinite().all():
        raise _NotFinite("the gradient is not finite")
