r"""An epoch of training and of validation over several levels.

The values of an epoch are sent to the `Tracker` of the trainer at its end, and stored
in `inference.summary`, with `_` for `/`:

============================== =====================================================
name                           what it is
============================== =====================================================
`training_loss/level_1`        what the simulations of a level add to the loss
`validation_loss/level_1`      the same of held-out simulations
`training_loss/all_levels`     their sum, with several levels; in the tracker only, as
                               sbi stores it in the summary as `training_loss`
`validation_loss/all_levels`   the same of held-out simulations
`validation_loss_error`        standard error of the validation loss
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
`effective_sample_size`        high-fidelity simulations whose plain mean would vary as
                               little as the loss of a batch
============================== =====================================================

Gradients of levels are known if the method adjusts them, and coefficients if
simulations are paired; nothing is differentiated for the sake of logging. The formulas
are in `sbi_multilevel.losses.gradients` and `sbi_multilevel.training.history`. The
summary also has, in `epochs_of`, the epoch of each of these values, and in `stages`,
for each run of a stage, its first epoch, its levels, whether early stopping ended it
(`None` while it runs) and the loss of the weights that were kept. The `validation_loss`
of sbi's summary is the one that early stopping follows: the estimate of
`sbi_multilevel.losses.held_out` with `MultilevelConfig(stopping="bounded")`, else the
sum over levels.

Training ends with a warning if the loss or its gradient is not finite. The best earlier
weights are kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from sbi_multilevel.errors import SbiMultilevelError
from sbi_multilevel.losses.gradients import (
    adjusted_step,
    assign_gradient,
    flat_gradients,
    multilevel_terms,
)
from sbi_multilevel.losses.held_out import LossEstimate
from sbi_multilevel.losses.layers import LayerGradients
from sbi_multilevel.training.common_noise import split_terms
from sbi_multilevel.training.schedule import Cycle, Stage, Term
from sbi_multilevel.training.tracking import StepRecorder, TermLosses, TrainingLog
from sbi_multilevel.utils.seeds import seeded

# From so many simulations a step on, a forward pass a term costs less than backward
# passes through one graph of all (`python -m sbi_multilevel_benchmarks cost`).
_MIN_FOR_SEPARATE_PASSES = 1_000
_SEED = 0  # of random losses of held-out simulations

Parts = Mapping[int, Sequence[Tensor]]  # columns of a batch, e.g. of each term


class NotFinite(SbiMultilevelError, ArithmeticError):
    """A loss or a gradient is not finite."""


@dataclass(eq=False)
class StageTraining:
    """One stage under training.

    Args:
        stage: The stage.
        terms: Its terms by their mark in a batch.
        network: The network, partly frozen.
        log: Where values are sent.
        held_out: Batches of held-out simulations.
        losses: Loss of each simulation of parts of a batch.
        is_random: Whether losses are random. They are computed term by term then, so
            that the sides of a pair have the same random numbers.
        cycle: The learning rates of its steps.

    Attributes:
        has_diverged: Whether a loss or a gradient of the last epoch was not finite.
        parameters: The parameters that are trained.
        layers: Computes the gradients of all terms in one backward pass; `None` where
            there is one term, or each needs its own pass.
        recorder: Records the steps of an epoch.
        means: Signed means of the terms of each step of an epoch.
    """

    stage: Stage
    terms: dict[int, Term]
    network: Module
    log: TrainingLog
    held_out: DataLoader
    losses: Callable[[Parts], dict[int, Tensor]]
    is_random: bool
    cycle: Cycle

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.layers: LayerGradients | None = None
        if self._is_adjusted and not self.is_random:
            count = len(self.terms)
            self.layers = LayerGradients.of(self.network, self.parameters, count)
        self.begin_epoch(0)

    @property
    def _is_adjusted(self) -> bool:
        """Whether the gradient of each term is needed."""
        return len(self.terms) > 1 and self.stage.adjustment != "none"

    def begin_epoch(self, epoch: int) -> None:
        """Forget the steps of the epoch before.

        Args:
            epoch: Epochs of the stage that were trained before.
        """
        self.cycle.begin_epoch(epoch)
        self.recorder = StepRecorder(self.terms)
        self.means: list[Tensor] = []
        self.has_diverged = False

    def step(
        self,
        batch: Sequence[Tensor],
        optimizer: Optimizer,
        clip_max_norm: float | None,
    ) -> Tensor:
        """Take a step.

        Args:
            batch: A batch.
            optimizer: Takes the step.
            clip_max_norm: Largest norm of the gradient.

        Returns:
            Signed means of the terms, whose sum is the loss.

        Raises:
            NotFinite: If the loss or its gradient is not finite.
        """
        values = self._term_values(batch)
        adjustment, gradients_of = self.stage.adjustment, self.layers or flat_gradients
        step = adjusted_step(values, self.parameters, adjustment, gradients_of)
        if not step.direction.isfinite().all():
            raise NotFinite("the gradient is not finite")
        self.recorder.keep_step(step)
        assign_gradient(step.direction, self.parameters)
        if clip_max_norm is not None:
            clip_grad_norm_(self.parameters, max_norm=clip_max_norm)
        self.cycle.step(optimizer)
        means = torch.stack(values).detach()
        self.means.append(means)
        return means

    def end_epoch(self) -> float:
        """Log the steps of the epoch, and return their mean loss."""
        for name, value in self.recorder.metrics().items():
            self.log.add(name, value)
        means = torch.stack(self.means).mean(dim=0).tolist()
        return self.log.add_levels("training_loss", means, self.stage)

    def validate(self, loader: DataLoader) -> float:
        """The loss that early stopping follows; NaN without held-out simulations."""
        if len(loader) == 0:
            return float("nan")
        try:
            by_term = self._term_losses(loader)
        except NotFinite:
            return math.inf
        self.log.add_levels("validation_loss", by_term.means, self.stage)
        estimate = self._estimate(by_term)
        self.log.add("validation_loss_error", estimate.error)
        return estimate.value

    def validate_start(self) -> float:
        """The held-out loss of the weights that a warm stage starts from."""
        try:
            return self._estimate(self._term_losses(self.held_out)).value
        except NotFinite:
            return math.inf

    def _estimate(self, by_term: TermLosses) -> LossEstimate:
        """The loss that early stopping follows."""
        return by_term.bounded if self.stage.is_bounded else by_term.sum

    def _term_losses(self, loader: DataLoader) -> TermLosses:
        """Losses of the held-out simulations of each term."""
        same_numbers = seeded(_SEED) if self.is_random else contextlib.nullcontext()
        with torch.no_grad(), same_numbers:  # in all epochs
            parts = [
                _joined(self.losses(split_terms(batch)))
                if self.is_random
                else (self.losses({0: batch})[0], batch[-1])
                for batch in loader
            ]
        values, marks = (torch.cat(column) for column in zip(*parts))
        return TermLosses.of(values, marks, self.terms)

    def _term_values(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """The signed means of the terms, whose sum is the loss.

        One pass over the whole batch and one over each term give the same values. With
        many simulations the second makes a backward pass for each term cheaper.
        """
        marks, layers = batch[-1], self.layers
        if layers is not None and not layers.reads(marks, list(self.terms)):
            layers = None
        is_large = self._is_adjusted and len(marks) >= _MIN_FOR_SEPARATE_PASSES
        if self.is_random or (is_large and layers is None):
            by_term = self.losses(split_terms(batch))
            self.recorder.keep_losses(*_joined(by_term))
            return [term.weight * by_term[m].mean() for m, term in self.terms.items()]
        with contextlib.nullcontext() if layers is None else layers.watch():
            values = self.losses({0: batch})[0]
        self.recorder.keep_losses(values, marks)
        weights = {mark: term.weight for mark, term in self.terms.items()}
        return multilevel_terms(values, marks.to(values.device), weights)


def _joined(losses: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses of all terms, and the mark of each."""
    marks = [
        torch.full_like(part, mark, dtype=torch.long) for mark, part in losses.items()
    ]
    return torch.cat(list(losses.values())), torch.cat(marks)
