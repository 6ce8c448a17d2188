"""An epoch of training and of validation over several levels, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sbi.inference.trainers._contracts import LossArgs
from torch import Tensor
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.utils.data import DataLoader

from sbi_multilevel.gradients import (
    adjusted_gradient,
    assign_gradient,
    term_means,
)
from sbi_multilevel.recipes import Stage
from sbi_multilevel.trainers.batches import TermRows
from sbi_multilevel.trainers.data import MultilevelDataMixin

# From so many rows a step on, a forward pass a term costs less than backward passes
# through one graph of all rows (measured: `python -m sbi_multilevel.benchmark cost`).
_ROWS_FOR_SEPARATE_PASSES = 1_000


class EpochMixin(MultilevelDataMixin):
    """Takes over an epoch from a trainer of sbi where rows of several levels are used.

    `MultilevelMixin` says what is trained on: `_term_rows`, `_stage` and `_held_out`.
    """

    _term_rows: TermRows  # the rows of all stages
    _stage: Stage  # the stage being trained
    _held_out: tuple[DataLoader, LossArgs | None]
    _warm_start: Any

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
        if not self._uses_recipe:
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)
        for group in self.optimizer.param_groups:
            group["betas"] = self._recipe.betas
            group["weight_decay"] = self._recipe.weight_decay
        parameters = [p for p in self._neural_net.parameters() if p.requires_grad]
        means = []
        for batch in train_loader:
            values = self._term_values(batch, loss_args)
            gradient = adjusted_gradient(values, parameters, self._stage.adjustment)
            assign_gradient(gradient, parameters)
            if clip_max_norm is not None:
                clip_grad_norm_(parameters, max_norm=clip_max_norm)
            self.optimizer.step()
            means.append(torch.stack(values).detach())
        return self._log_levels("training_loss", torch.stack(means).mean(dim=0))

    def _validate_epoch(
        self, val_loader: DataLoader, loss_args: LossArgs | None
    ) -> float:
        """The loss on the held-out rows; NaN where none are held out."""
        if not self._uses_recipe:
            return super()._validate_epoch(val_loader, loss_args)
        if len(val_loader) == 0:
            return float("nan")
        return self._log_levels(
            "validation_loss", self._held_out_means(val_loader, loss_args)
        )

    def _held_out_means(
        self, val_loader: DataLoader, loss_args: LossArgs | None
    ) -> Tensor:
        with torch.no_grad():
            parts = [(self._losses(b, loss_args), b[-1]) for b in val_loader]
        losses, marks = (torch.cat(column) for column in zip(*parts))
        return self._means(losses, marks) * self._weights_of_terms

    @property
    def _weights_of_terms(self) -> Tensor:
        weights = [term.weight for term in self._stage.terms]
        return torch.tensor(weights, device=self._device)

    def _means(self, losses: Tensor, marks: Tensor) -> Tensor:
        """Mean loss of each term of the stage."""
        positions = self._term_rows.positions(self._stage.terms)
        every = term_means(losses, marks.to(losses.device), len(self._term_rows.terms))
        return every[positions]

    def _losses(self, batch: Sequence[Tensor], loss_args: LossArgs | None) -> Tensor:
        """The parent's loss of each row, times its weight."""
        rows = batch[:3]
        if loss_args is None:
            losses = self._get_losses(batch=rows)
        else:
            losses = self._get_losses(batch=rows, loss_args=loss_args)
        return losses * batch[3].to(losses.device)

    def _term_values(
        self, batch: Sequence[Tensor], loss_args: LossArgs | None
    ) -> list[Tensor]:
        """The signed means of the terms, whose sum is the loss.

        One pass over all rows and one over the rows of each term give the same values;
        on many rows the second makes the backward passes cheaper.
        """
        marks, weights = batch[-1], self._weights_of_terms
        one_backward_pass = self._stage.adjustment == "none"
        if one_backward_pass or len(marks) < _ROWS_FOR_SEPARATE_PASSES:
            return list(weights * self._means(self._losses(batch, loss_args), marks))
        positions = self._term_rows.positions(self._stage.terms)
        passes = ([column[marks == t] for column in batch] for t in positions)
        return [
            weight * self._losses(rows, loss_args).mean()
            for weight, rows in zip(weights, passes, strict=True)
        ]

    def _log_levels(self, name: str, values: Tensor) -> float:
        """Sum of the signed means; logs the part of each level on the way."""
        terms, step = self._stage.terms, len(self._summary["training_loss"])
        for level in self._stage.levels:
            part = sum(v.item() for v, t in zip(values, terms) if t.level == level)
            self._tracker.log_metric(f"{name}/level_{level}", part, step=step)
            self._summary.setdefault(f"{name}_level_{level}", []).append(part)
        return values.sum().item()

    # Stopping

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        if self._uses_recipe and not self._recipe.early_stopping:
            self._best_val_loss = float("nan")  # keeps the weights of the last epoch
            self._best_model_state_dict = None
            return False
        if self._uses_recipe and epoch == 0 and self._stage.is_warm:
            self._neural_net.eval()
            self._val_loss = self._held_out_means(*self._held_out).sum().item()
        return super()._converged(epoch, stop_after_epochs)

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        if self._uses_recipe and not self._recipe.early_stopping:
            return  # a fixed number of epochs was asked for
        super()._report_convergence_at_end(epoch, max_num_epochs)
