"""What a hybrid method chose, and the contribution of the lower levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sbi_multilevel.losses.effective_sample_size import EffectiveSampleSize
from sbi_multilevel.training.history import TrainingRun


@dataclass(frozen=True)
class OutputsGain:
    """Gain in log score from the outputs of the lower levels.

    Level maps that are fitted to high-fidelity simulations predict x from theta to some
    degree. Networks therefore gain from lower levels even if their outputs are noise.
    This is the gain relative to shuffled outputs of the lower levels, in the synthetic
    likelihoods that score level maps; no network is trained for it.

    Args:
        mean: Mean held-out log score per simulation with the best level map, in nats,
            minus that with the best map of shuffled outputs.
        error: Its standard error over high-fidelity simulations.

    Example:
    --------

    ::

        >>> print(OutputsGain(mean=0.82, error=0.16))
        outputs of the lower levels: +0.82 ± 0.16 nats per simulation relative to \
shuffled outputs, by synthetic likelihoods
    """

    mean: float
    error: float

    def __str__(self) -> str:
        return (
            f"outputs of the lower levels: {self.mean:+.2f} ± {self.error:.2f} nats "
            "per simulation relative to shuffled outputs, by synthetic likelihoods"
        )


@dataclass(frozen=True)
class HybridSummary:
    """What was chosen, and the gain from the lower levels; `print` shows it.

    Args:
        level_maps: The level maps from each level to the next that members use.
        map_scores: For each step the mean held-out score of each map, in nats; higher
            is better (`sbi_multilevel.level_maps.selection.synthetic_likelihood`).
        weights: Weight of each component of the mixture.
        log_scores: For each component the mean log density of high-fidelity simulations
            under the member that was not trained on them; for likelihoods, of x with
            transformed tails. The mixture of all members has a better score.
        effective_sample_size: That of the lower levels and level maps, relative to the
            same mixture without them; `None` without lower levels. Its errors are over
            simulations and exclude the randomness of training.
        num_epochs: Number of epochs, the mean over members.
        outputs: The contribution of the outputs of the lower levels; `None` where it
            is not known.
        runs: For each component the trainings of its members, and of the networks that
            they started from, by name; see `check_training`.
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
            f"level {level} mapped to level {level + 1} by: {names}"
            for level, names in enumerate(self.level_maps)
        ]
        lines += [
            f"{name}: weight {weight:.2f}, held-out log score "
            f"{self.log_scores[name]:.2f}"
            for name, weight in self.weights.items()
        ]
        lines += [str(e) for e in (self.effective_sample_size, self.outputs) if e]
        return "\n".join(lines)
