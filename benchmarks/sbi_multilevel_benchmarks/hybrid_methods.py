"""The recipe `HybridConfig` in the benchmark, and with one part after the other off."""

from __future__ import annotations

from dataclasses import dataclass

from sbi_multilevel import HybridConfig, LevelSimulations, MultilevelSimulations
from sbi_multilevel_benchmarks.fitted import Fit, Method, evaluated
from sbi_multilevel_benchmarks.tasks import BenchmarkTask
from sbi_multilevel_benchmarks.transfer_methods import build_trainer


@dataclass(frozen=True)
class HybridMethod:
    """ML-NPE or ML-NLE with the recipe.

    Args:
        config: The recipe.
        high_only: Whether it has the high-fidelity rows alone: what the ensemble, tamed
            tails and the prior are worth without any lower level.
    """

    config: HybridConfig = HybridConfig()
    high_only: bool = False

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        trainer = build_trainer(task, self.config)
        high = simulations[-1]
        if self.high_only:
            rows = LevelSimulations(0, high.theta, high.x)
            trainer.append_multilevel_simulations(MultilevelSimulations((rows,)))
        else:
            trainer.append_multilevel_simulations(simulations)
        estimator = trainer.train()
        epochs = trainer.summary["epochs_trained"][-1]
        return Fit(evaluated(task, [estimator]), high.x, epochs)


HYBRID_METHODS: dict[str, Method] = {
    "hybrid": HybridMethod(),
    "high-hybrid": HybridMethod(high_only=True),
    "hybrid-unaligned": HybridMethod(HybridConfig(level_maps=("none",))),
    "hybrid-unpaired": HybridMethod(
        HybridConfig(level_maps=("none", "shift", "full", "scaled"))
    ),
    "hybrid-untamed": HybridMethod(HybridConfig(transform_tails=False)),
    "hybrid-unrehearsed": HybridMethod(HybridConfig(rehearsal=False)),
    "hybrid-unmixed": HybridMethod(HybridConfig(mix=False)),
    "hybrid-scratch": HybridMethod(HybridConfig(shared_start=False)),
}
