"""What is logged of training: values of an epoch, steps, and a silent tracker."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.losses.gradients import GradientStep, base_cosine, level_norms
from sbi_multilevel.losses.held_out import LossEstimate, bounded_loss
from sbi_multilevel.training.history import (
    control_variate,
    effective_batch_size,
    estimate_variance,
)
from sbi_multilevel.training.schedule import Stage, Term

_SECONDS_BETWEEN_FLUSHES = 1.0


class SilentTracker:
    """Writes no log folder, e.g. for the members of an ensemble, or in benchmarks."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None: ...

    def log_metrics(
        self, metrics: dict[str, float], step: int | None = None
    ) -> None: ...

    def log_params(self, params: dict[str, Any]) -> None: ...

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None: ...

    def flush(self) -> None: ...


@dataclass(eq=False)
class TrainingLog:
    """Sends values of an epoch to the tracker and stores them in the summary.

    Args:
        summary: `summary` of the trainer.
        tracker: Its tracker.
        last_flush: When the tracker was flushed last, by `time.monotonic`.
    """

    summary: dict[str, Any]
    tracker: Any
    last_flush: float = 0.0

    @property
    def epoch(self) -> int:
        """The epoch, counted over all runs."""
        return len(self.summary["training_loss"])

    def begin(self, levels: Sequence[int], is_new: bool) -> None:
        """Note where the training of a stage begins.

        Args:
            levels: Levels of the stage; none for a trainer of one level.
            is_new: Whether this is its first epoch.
        """
        stages = self.summary.setdefault("stages", [])
        if is_new or not stages:
            stages.append({"start": self.epoch, "levels": list(levels)})
        # until it ends
        stages[-1] |= {"converged": None, "best_validation_loss": None}

    def end(self, converged: bool, best_validation_loss: float) -> None:
        """Note how the training of a stage ended."""
        self.summary["stages"][-1] |= {
            "converged": converged,
            "best_validation_loss": best_validation_loss,
        }

    def add(self, name: str, value: float) -> None:
        """Send a value to the tracker, and store it with its epoch in the summary."""
        key = name.replace("/", "_")
        self.tracker.log_metric(name, value, step=self.epoch)
        self.summary.setdefault(key, []).append(value)
        self.summary.setdefault("epochs_of", {}).setdefault(key, []).append(self.epoch)

    def add_levels(self, name: str, values: Sequence[float], stage: Stage) -> float:
        """Add the part of each level, and return their sum.

        Args:
            name: Name of the loss.
            values: Signed mean of each term.
            stage: The stage.
        """
        total = sum(values)
        for level in stage.levels:
            terms = zip(values, stage.terms)
            part = sum(value for value, term in terms if term.level == level)
            self.add(f"{name}/level_{level}", part)
        if len(stage.levels) > 1:  # sbi logs the sum after training only
            self.tracker.log_metric(f"{name}/all_levels", total, step=self.epoch)
        if time.monotonic() - self.last_flush >= _SECONDS_BETWEEN_FLUSHES:
            self.tracker.flush()
            self.last_flush = time.monotonic()
        return total


@dataclass(frozen=True, eq=False)
class TermLosses:
    """Losses of simulations, term by term.

    Args:
        losses: Loss of each simulation of each term, shape `(..., n)`; leading axes
            are batches.
    """

    losses: Mapping[Term, np.ndarray]

    @classmethod
    def of(cls, losses: Tensor, marks: Tensor, terms: Mapping[int, Term]) -> TermLosses:
        """Split losses into terms.

        Args:
            losses: Loss of each simulation, shape `(..., n)`.
            marks: The term that each is of, shape `(n,)`.
            terms: The terms by their marks.
        """
        values, marks = losses.detach().cpu().double().numpy(), marks.cpu()
        return cls({t: values[..., (marks == m).numpy()] for m, t in terms.items()})

    def side(self, level: int, coarse: bool = False) -> np.ndarray | None:
        """Losses of one side of a level; `None` if no term has it."""
        for term, losses in self.losses.items():
            if (term.level, term.coarse) == (level, coarse):
                return losses
        return None

    @property
    def contributions(self) -> dict[int, np.ndarray]:
        """Contribution of each simulation by level, both sides of a pair together."""
        parts: dict[int, np.ndarray] = {}
        for term, losses in self.losses.items():
            parts[term.level] = parts.get(term.level, 0.0) + term.weight * losses
        return parts

    @property
    def means(self) -> list[float]:
        """Signed mean of each term."""
        return [t.weight * float(losses.mean()) for t, losses in self.losses.items()]

    @property
    def sum(self) -> LossEstimate:
        """The signed sum of the means of the terms."""
        parts = self.contributions.values()
        value = sum(float(part.mean()) for part in parts)
        return LossEstimate(value, math.sqrt(estimate_variance(list(parts))))

    @property
    def bounded(self) -> LossEstimate:
        """The estimate of the loss at the highest level that is bounded below."""
        levels = range(1, max(self.contributions) + 1)
        pairs = [(self.side(level), self.side(level, coarse=True)) for level in levels]
        return bounded_loss(self.side(0), pairs)

    def metrics(self) -> dict[str, float]:
        """Control-variate coefficients and the effective sample size."""
        parts, metrics = self.contributions, {}
        for level in parts:
            fine, coarse = self.side(level), self.side(level, coarse=True)
            if fine is not None and coarse is not None:
                name = f"control_variate/level_{level}"
                metrics[name] = control_variate(fine, coarse)
        highest = self.side(max(parts))
        if highest is not None:
            size = effective_batch_size(list(parts.values()), highest)
            metrics["effective_sample_size"] = size
        return metrics


class StepRecorder:
    """Records quantities that the steps of an epoch compute, and averages them.

    The cost is one small matrix product for each step. No gradient is computed again,
    and no random numbers are drawn.
    """

    def __init__(self, terms: Mapping[int, Term]):
        """Start an epoch.

        Args:
            terms: The terms of the stage by their marks in a batch.
        """
        self._terms = terms
        self._losses: list[Tensor] = []
        self._marks = torch.empty(0)
        self._lengths: list[Tensor] = []
        self._grams: list[Tensor] = []

    def keep_losses(self, losses: Tensor, marks: Tensor) -> None:
        """Keep the losses of a batch.

        Args:
            losses: Loss of each simulation, shape `(n,)`.
            marks: The term that each is of, shape `(n,)`, the same in every batch.
        """
        self._losses.append(losses.detach())
        self._marks = marks

    def keep_step(self, step: GradientStep) -> None:
        """Keep the lengths and angles of a step, before it is clipped."""
        self._lengths.append(step.direction.norm())
        if step.levels is not None:
            self._grams.append(step.levels @ step.levels.T)

    def metrics(self) -> dict[str, float]:
        """Means over the steps, by the names of the tracker; none of a single term.

        `gradient_norm` is the norm of a step before clipping, and by level that of the
        entries of `GradientStep.levels`. Control-variate coefficients and effective
        sample sizes are ratios of means, which are more robust than means of ratios.
        """
        if len(self._terms) == 1:
            return {}
        metrics = {"gradient_norm": torch.stack(self._lengths).mean().item()}
        if self._grams:
            grams = torch.stack(self._grams).cpu().double()
            norms = level_norms(grams).mean(dim=0).tolist()
            levels = [each.level for each in self._terms.values() if not each.coarse]
            for level, norm in zip(levels, norms, strict=True):
                metrics[f"gradient_norm/level_{level}"] = norm
            metrics["gradient_cosine"] = base_cosine(grams).nanmean().item()
        losses = TermLosses.of(torch.stack(self._losses), self._marks, self._terms)
        return {**metrics, **losses.metrics()}
