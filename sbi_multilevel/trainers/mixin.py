"""What makes a single-level trainer of sbi a multilevel one.

The mixin sits in front of a trainer of sbi in the method resolution order and takes
over the steps of training that see more than one level: the batches, the rows the
network is built from, an epoch of training, an epoch of validation, and when to stop.
Everything else, from the loss of a row to the posterior, is the parent's. With
`append_simulations` alone every method hands over to the parent at once.
"""

from __future__ import annotations

import inspect
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
from sbi_multilevel.recipes import Multilevel, get_recipe
from sbi_multilevel.trainers.batches import (
    LevelBatchSampler,
    LevelSplit,
    TermRows,
)
from sbi_multilevel.trainers.data import MultilevelDataMixin

# From so many rows a step on, a forward pass a term costs less than backward passes
# through one graph of all rows (measured: `python -m sbi_multilevel.benchmark cost`).
_ROWS_FOR_SEPARATE_PASSES = 1_000


class MultilevelMixin(MultilevelDataMixin):
    """Trains a network of sbi on rows of several levels, as a recipe says.

    Args:
        recipe: Name of a recipe, or a recipe, e.g. `Multilevel(adjustment="project")`.

    All other arguments are those of the parent.
    """

    _term_rows: TermRows  # the rows trained on, set by `get_dataloaders`

    def __init__(
        self, *args: Any, recipe: str | Multilevel = "multilevel", **kwargs: Any
    ):
        self._recipe = get_recipe(recipe)
        self._split: LevelSplit | None = None
        self._network_rows: tuple[Tensor, ...] | None = None
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the parent's arguments beside ours in `help` and in editors."""
        super().__init_subclass__(**kwargs)
        following = cls.__mro__[cls.__mro__.index(MultilevelDataMixin) + 1 :]
        parent = next(base for base in following if "__init__" in vars(base))
        own = inspect.signature(MultilevelMixin).parameters["recipe"]
        parameters = [*inspect.signature(parent).parameters.values(), own]
        cls.__signature__ = inspect.Signature(parameters)

    @property
    def _is_multilevel(self) -> bool:
        return bool(self._entry_levels)

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

        Arguments are those of the parent. With multilevel rows a batch is
        `(theta, x, prior_masks, term)`, see `sbi_multilevel.trainers.batches`; a batch
        size of at least the number of all rows (a pair counting as two) is full batch.
        """
        if not self._is_multilevel:
            return super().get_dataloaders(
                starting_round,
                training_batch_size,
                validation_fraction,
                resume_training,
                dataloader_kwargs,
            )
        simulations = self._check_trainable()
        if not resume_training or self._split is None:
            fraction = validation_fraction if self._recipe.early_stopping else 0.0
            self._split = LevelSplit.random(simulations.num_simulations, fraction)
        rows = TermRows.of(simulations, self._split, self._recipe)
        self._term_rows = rows
        self.train_indices = rows.indices(self._split.train)
        self.val_indices = rows.indices(self._split.validation)
        options = {"batch_size": None, **(dataloader_kwargs or {})}
        sampler = LevelBatchSampler(rows, self._split.train, training_batch_size)
        held_out = self.val_indices.split(training_batch_size)
        chunks = held_out if len(self.val_indices) > 0 else ()
        return (
            DataLoader(rows.dataset, sampler=sampler, **options),
            DataLoader(rows.dataset, sampler=chunks, **options),
        )

    def get_simulations(self, starting_round: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return theta, x and prior masks: as the parent; fine sides of all levels."""
        if self._network_rows is not None:
            return self._network_rows
        return super().get_simulations(starting_round)

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        """Build the network on the aligned training rows: they set its z-scoring."""
        if self._is_multilevel:
            self._network_rows = self._term_rows.dataset.tensors[:3]
        try:
            super()._initialize_neural_network(  # pyright: ignore[reportAbstractUsage]
                retrain_from_scratch, start_idx
            )
        finally:
            self._network_rows = None

    # Epochs

    def _train_epoch(
        self,
        train_loader: DataLoader,
        clip_max_norm: float | None,
        loss_args: LossArgs | None,
    ) -> float:
        if not self._is_multilevel:
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)
        for group in self.optimizer.param_groups:
            group["betas"] = self._recipe.betas
            group["weight_decay"] = self._recipe.weight_decay
        parameters = [p for p in self._neural_net.parameters() if p.requires_grad]
        means = []
        for batch in train_loader:
            values = self._term_values(batch, loss_args)
            gradient = adjusted_gradient(values, parameters, self._recipe.adjustment)
            assign_gradient(gradient, parameters)
            if clip_max_norm is not None:
                clip_grad_norm_(parameters, max_norm=clip_max_norm)
            self.optimizer.step()
            means.append(torch.stack(values).detach())
        return self._log_levels("training_loss", torch.stack(means).mean(dim=0))

    def _validate_epoch(
        self, val_loader: DataLoader, loss_args: LossArgs | None
    ) -> float:
        """The telescoping loss on the held-out rows; NaN where none are held out."""
        if not self._is_multilevel:
            return super()._validate_epoch(val_loader, loss_args)
        if len(val_loader) == 0:
            return float("nan")
        with torch.no_grad():
            parts = [(self._losses(b, loss_args), b[-1]) for b in val_loader]
        losses, term = (torch.cat(column) for column in zip(*parts))
        means = term_means(losses, term.to(losses.device), len(self._weights))
        return self._log_levels("validation_loss", means * self._weights)

    @property
    def _weights(self) -> Tensor:
        weights = [term.weight for term in self._term_rows.terms]
        return torch.tensor(weights, device=self._device)

    def _losses(self, batch: Sequence[Tensor], loss_args: LossArgs | None) -> Tensor:
        """The parent's loss of each row."""
        if loss_args is None:
            return self._get_losses(batch=batch[:-1])
        return self._get_losses(batch=batch[:-1], loss_args=loss_args)

    def _term_values(
        self, batch: Sequence[Tensor], loss_args: LossArgs | None
    ) -> list[Tensor]:
        """The signed means of the terms, whose sum is the loss.

        One pass over all rows and one over the rows of each term give the same values;
        on many rows the second makes the backward passes cheaper.
        """
        term, weights = batch[-1], self._weights
        one_backward_pass = self._recipe.adjustment == "none"
        if one_backward_pass or len(term) < _ROWS_FOR_SEPARATE_PASSES:
            losses = self._losses(batch, loss_args)
            means = term_means(losses, term.to(losses.device), len(weights))
            return list(weights * means)
        passes = ([column[term == t] for column in batch] for t in range(len(weights)))
        return [
            weight * self._losses(rows, loss_args).mean()
            for weight, rows in zip(weights, passes, strict=True)
        ]

    def _log_levels(self, name: str, values: Tensor) -> float:
        """Sum of the signed means; logs the part of each level on the way."""
        terms = self._term_rows.terms
        for level in range(terms[-1].level + 1):
            part = sum(v.item() for v, t in zip(values, terms) if t.level == level)
            self._tracker.log_metric(f"{name}/level_{level}", part, step=self.epoch)
            self._summary.setdefault(f"{name}_level_{level}", []).append(part)
        return values.sum().item()

    # Stopping

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        if self._is_multilevel and not self._recipe.early_stopping:
            self._best_val_loss = float("nan")  # keeps the weights of the last epoch
            self._best_model_state_dict = None
            return False
        return super()._converged(epoch, stop_after_epochs)

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        if self._is_multilevel and not self._recipe.early_stopping:
            return  # a fixed number of epochs was asked for
        super()._report_convergence_at_end(epoch, max_num_epochs)
