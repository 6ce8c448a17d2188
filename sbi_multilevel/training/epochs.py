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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from sbi_multilevel.errors import SbiMultilevelError
from sbi_multilevel.losses.gradients import (
    adjusted_step,
    assign_gradient,
    flat_gradients,
)
from sbi_multilevel.losses.held_out import LossEstimate
from sbi_multilevel.losses.layers import LayerGradients
from sbi_multilevel.losses.multilevel import multilevel_terms
from sbi_multilevel.training.schedule import Cycle
from sbi_multilevel.training.stages import Stage
from sbi_multilevel.training.tracking import StepRecorder, TermLosses, TrainingLog
from sbi_multilevel.utils.seeds import seeded

# From so many simulations a step on, a forward pass a term costs less than backward
# passes through one graph of all (`python -m sbi_multilevel_benchmarks cost`).
_MIN_FOR_SEPARATE_PASSES = 1_000
_SEED = 0  # of random losses of held-out simulations

SampleLosses = Callable[[Sequence[Tensor]], Tensor]
TermwiseLosses = Callable[[Sequence[Tensor]], dict[int, Tensor]]


class NotFinite(SbiMultilevelError, ArithmeticError):
    """A loss or a gradient is not finite."""


@contextlib.contextmanager
def finite_losses() -> Iterator[None]:
    """Raise `NotFinite` where sbi refuses a loss that is not finite."""
    try:
        yield
    except ValueError as error:
        if "NaN/Inf present" not in str(error):  # of sbi's `assert_all_finite`
            raise
        raise NotFinite(str(error)) from error


@dataclass(eq=False)
class StageTraining:
    """One stage under training.

    Args:
        stage: The stage.
        positions: The mark in a batch of each of its terms.
        log: Where values are sent.
        held_out: Batches of held-out simulations.
        losses: Loss of each simulation of a batch.
        cycle: How far the schedule is; `None` without one.
        losses_by_term: The same for each term of a batch by its mark, if losses are
            random: the sides of a pair have the same random numbers.
        has_diverged: Whether a loss or a gradient of the last epoch was not finite.
        parameters: The parameters that are trained in an epoch.
        layers: Computes the gradients of all terms in one backward pass; `None` where
            there is one term, or each needs its own pass.
        recorder: Records the steps of an epoch; `None` for stages of one term.
        means: Signed means of the terms of each step of an epoch.
    """

    stage: Stage
    positions: list[int]
    log: TrainingLog
    held_out: DataLoader
    losses: SampleLosses
    cycle: Cycle | None = None
    losses_by_term: TermwiseLosses | None = None
    has_diverged: bool = False
    parameters: Sequence[Parameter] = ()
    layers: LayerGradients | None = None
    recorder: StepRecorder | None = None
    means: list[Tensor] = field(default_factory=list)

    def begin_epoch(self, network: Module, epoch: int) -> None:
        """Forget the steps of the epoch before; train what is not frozen.

        Args:
            network: The network.
            epoch: Epochs of the stage that were trained before.
        """
        if self.cycle is not None:
            self.cycle.begin_epoch(epoch)
        several = len(self.stage.terms) > 1
        trained = [p for p in network.parameters() if p.requires_grad]
        if [*map(id, trained)] != [*map(id, self.parameters)]:
            self.parameters = trained
            adjusts = several and self.stage.adjustment != "none"
            adjusts = adjusts and self.losses_by_term is None
            count = len(self.stage.terms)
            self.layers = (
                LayerGradients.of(network, trained, count) if adjusts else None
            )
        self.recorder = (
            StepRecorder(self.stage.terms, self.positions) if several else None
        )
        self.means, self.has_diverged = [], False

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
        values = self._term_values(batch, self.recorder)
        step = adjusted_step(
            values,
            self.parameters,
            self.stage.adjustment,
            flat_gradients if self.layers is None else self.layers,
        )
        if not step.direction.isfinite().all():
            raise NotFinite("the gradient is not finite")
        if self.recorder is not None:
            self.recorder.keep_step(step)
        assign_gradient(step.direction, self.parameters)
        if clip_max_norm is not None:
            clip_grad_norm_(self.parameters, max_norm=clip_max_norm)
        if self.cycle is None:
            optimizer.step()
        else:
            self.cycle.step(optimizer)
        means = torch.stack(values).detach()
        self.means.append(means)
        return means

    def is_finished(self, epoch: int) -> bool:
        """Whether the schedule ended after so many epochs."""
        return self.cycle is not None and self.cycle.is_finished(epoch)

    @property
    def is_cut(self) -> bool:
        """Whether `max_num_epochs` leaves fewer steps than the schedule has."""
        return self.cycle is not None and self.cycle.is_cut

    def end_epoch(self) -> float:
        """Log the steps of the epoch, and return their mean loss."""
        if self.recorder is not None:
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

    def _term_losses(self, loader: DataLoader) -> TermLosses:
        """Losses of the held-out simulations of each term of the stage."""
        if self.losses_by_term is None:
            with torch.no_grad():
                parts = [(self.losses(batch), batch[-1]) for batch in loader]
        else:
            with torch.no_grad(), seeded(_SEED):  # the same numbers in all epochs
                parts = [_joined(self.losses_by_term(batch)) for batch in loader]
        values, marks = (torch.cat(column) for column in zip(*parts))
        return TermLosses.of(values, marks, self.stage.terms, self.positions)

    def _estimate(self, by_term: TermLosses) -> LossEstimate:
        """The loss that early stopping follows."""
        return by_term.bounded if self.stage.is_bounded else by_term.sum

    def _term_values(
        self,
        batch: Sequence[Tensor],
        recorder: StepRecorder | None = None,
    ) -> list[Tensor]:
        """The signed means of the terms, whose sum is the loss.

        One pass over the whole batch and one over each term give the same values. With
        many simulations the second makes a backward pass for each term cheaper.
        """
        if self.losses_by_term is not None:
            return self._values_by_term(self.losses_by_term(batch), recorder)
        marks = batch[-1]
        layers = self.layers
        if layers is not None and layers.reads(marks, self.positions):
            with layers.watch():
                return self._values_of_batch(batch, recorder)
        one_backward_pass = self.stage.adjustment == "none"
        if one_backward_pass or len(marks) < _MIN_FOR_SEPARATE_PASSES:
            return self._values_of_batch(batch, recorder)
        passes = [[column[marks == t] for column in batch] for t in self.positions]
        parts = [self.losses(simulations) for simulations in passes]
        if recorder is not None:
            recorder.keep_losses(torch.cat(parts), torch.cat([p[-1] for p in passes]))
        terms = zip(self.stage.terms, parts, strict=True)
        return [term.weight * part.mean() for term, part in terms]

    def _values_by_term(
        self, losses: dict[int, Tensor], recorder: StepRecorder | None
    ) -> list[Tensor]:
        """The signed means of the terms, from their losses by mark."""
        if recorder is not None:
            recorder.keep_losses(*_joined(losses))
        terms = zip(self.stage.terms, self.positions, strict=True)
        return [term.weight * losses[mark].mean() for term, mark in terms]

    def _values_of_batch(
        self, batch: Sequence[Tensor], recorder: StepRecorder | None
    ) -> list[Tensor]:
        """The signed means of the terms, in one pass over the batch."""
        values, marks = self.losses(batch), batch[-1]
        if recorder is not None:
            recorder.keep_losses(values, marks)
        weights = {p: t.weight for p, t in zip(self.positions, self.stage.terms)}
        return multilevel_terms(values, marks.to(values.device), weights)


def _joined(losses: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses of all terms, and the mark of each."""
    marks = [
        torch.full_like(part, mark, dtype=torch.long) for mark, part in losses.items()
    ]
    return torch.cat(list(losses.values())), torch.cat(marks)
