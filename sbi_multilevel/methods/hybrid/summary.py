"""What the recipe `HybridConfig` chose, and what it was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sbi_multilevel.losses.effective_sample_size import EffectiveSampleSize
from sbi_multilevel.training.history import TrainingRun


@dataclass(frozen=True)
class OutputsGain:
    """What the outputs of the lower levels tell, beside the same outputs shuffled.

    Maps fitted to high-fidelity rows predict them from theta alone to some degree, so
    that networks gain from lower levels whose outputs are noise. This is the rest, by
    the synthetic likelihoods that maps are judged by; no network is trained for it.

    Args:
        mean: Held-out log score a row, in nats, with the best map of the true rows
            beyond that with the best map of shuffled ones.
        error: Its standard error over high-fidelity rows.

    Example:
    --------

    ::

        >>> print(OutputsGain(mean=0.82, error=0.16))
        outputs of the lower levels, beside the same shuffled: +0.82 ± 0.16 nats a row \
by synthetic likelihoods
    """

    mean: float
    error: float

    def __str__(self) -> str:
        return (
            "outputs of the lower levels, beside the same shuffled: "
            f"{self.mean:+.2f} ± {self.error:.2f} nats a row by synthetic likelihoods"
        )


@dataclass(frozen=True)
class HybridSummary:
    """What was chosen, and what it was worth; `print` shows it.

    Args:
        level_maps: The maps from each level to the next that members use.
        map_scores: For each of these steps the mean held-out score of each map,
            in nats, higher is better (`sbi_multilevel.level_maps.selection.synthetic_likelihood`).
        weights: Weight of each component of the mixture.
        log_scores: For each component the mean log density of high-fidelity rows under
            the one member that has not seen them (the mixture of all is better); of
            tamed x where likelihoods are learned.
        effective_sample_size: What the lower levels and the maps were worth, beside the same
            mixture without them; `None` where there are none. Its errors are over rows
            and leave out the randomness of training.
        num_epochs: Epochs trained, the mean over members.
        outputs: What of this the outputs of the lower levels tell, rather than the
            maps; `None` where it is not known.
        runs: For each component the trainings of its members, and of the networks that
            they started from, by name; `check_training` judges them.
    """

    level_maps: tuple[str, ...]
    map_scores: tuple[dict[str, float], ...]
    weights: dict[str, float]
    log_scores: dict[str, float]
    effective_sample_size: EffectiveSampleSize | None
    num_epochs: int
    outputs: OutputsGain | None = None
    runs: Mapping[str, Mapping[str, tuple[TrainingRun, ...]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __str__(self) -> str:
        lines = [
            f"level {level} moved to level {level + 1} by: {names}"
            for level, names in enumerate(self.level_maps)
        ]
        lines += [
            f"{name}: weight {weight:.2f}, held-out log score "
            f"{self.log_scores[name]:.2f}"
            for name, weight in self.weights.items()
        ]
        if self.effective_sample_size is not None:
            lines.append(str(self.effective_sample_size))
        if self.outputs is not None:
            lines.append(str(self.outputs))
        return "\n".join(lines)
