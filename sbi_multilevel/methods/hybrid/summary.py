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
class Distillation:
    """How well one network resembles the mixture.

    Args:
        loss: Mean loss in log density, in nats a simulation.
        error: Its standard error.
        is_used: Whether the network takes the place of the mixture.

    Example:
    --------

    ::

        >>> print(Distillation(loss=0.012, error=0.003, is_used=True))
        distillation: one network in place of the mixture, 0.012 ± 0.003 nats per \
simulation from it
    """

    loss: float
    error: float
    is_used: bool

    def __str__(self) -> str:
        size = f"{self.loss:.3f} ± {self.error:.3f} nats per simulation from it"
        if self.is_used:
            return f"distillation: one network in place of the mixture, {size}"
        return f"distillation: the mixture is kept, as one network is {size}"


@dataclass(frozen=True)
class Calibration:
    """Ranks of held-out simulations, see `sbi_multilevel.methods.hybrid.calibration`.

    Args:
        rank: Mean rank among draws from the mixture as it was trained: 0.5 if it is
            calibrated, and less if it is too narrow or biased.
        error: Standard error of the mean rank of a calibrated mixture.
        base_scale: Factor to the standard deviation of the base distributions.

    Example:
    --------

    ::

        >>> print(Calibration(rank=0.36, error=0.04, base_scale=1.2))
        calibration: mean held-out rank 0.36 (calibrated: 0.50 ± 0.04), networks made \
wider by the factor 1.2
    """

    rank: float
    error: float
    base_scale: float = 1.0

    def __str__(self) -> str:
        ideal = f"(calibrated: 0.50 ± {self.error:.2f})"
        text = f"calibration: mean held-out rank {self.rank:.2f} {ideal}"
        if self.base_scale == 1:
            return text
        return f"{text}, networks made wider by the factor {self.base_scale:g}"


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
        num_epochs: Number of epochs, the mean over members.
        effective_sample_size: That of the lower levels and level maps, relative to the
            same mixture without them; `None` until `estimate_gain` of the trainer is
            called. Its errors are over simulations and exclude the randomness of
            training.
        outputs: The contribution of the outputs of the lower levels; `None` until
            `estimate_gain` is called, and where it is not known.
        distillation: How well one network resembles the mixture; `None` if none was
            trained.
        calibration: Ranks of held-out simulations among draws from the mixture; `None`
            if it cannot be made wider, or `widen=False`.
        num_networks: Number of networks of each component of the mixture, in its order;
            empty if one network takes its place.
        runs: For each component the trainings of its members, and of the networks that
            they started from, by name; see `check_training`.
    """

    level_maps: tuple[str, ...]
    map_scores: tuple[dict[str, float], ...]
    weights: dict[str, float]
    log_scores: dict[str, float]
    num_epochs: int
    effective_sample_size: EffectiveSampleSize | None = None
    outputs: OutputsGain | None = None
    distillation: Distillation | None = None
    calibration: Calibration | None = None
    num_networks: Mapping[str, int] = field(
        default_factory=dict, repr=False, compare=False
    )
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
        parts = (self.calibration, self.distillation)
        parts += (self.effective_sample_size, self.outputs)
        lines += [str(part) for part in parts if part is not None]
        return "\n".join(lines)
