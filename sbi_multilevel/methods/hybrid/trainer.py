"""A trainer of a hybrid ensemble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from sbi.inference.trainers._contracts import (
    LossArgs,
    StartIndexContext,
    TrainConfig,
)
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.training.network import WarmStart, check_builder
from sbi_multilevel.training.trainer import MultilevelTrainer

_MIN_SIMULATIONS = 4


class HybridTrainer(MultilevelTrainer):
    """Trains the members of a hybrid ensemble and returns their mixture.

    `hybrid_summary` reports what was chosen; it is `None` before training.
    """

    _config: HybridConfig
    _config_type = HybridConfig
    _member_type: ClassVar[type[MultilevelTrainer]]

    hybrid_summary: HybridSummary | None = None

    def warm_start(self, source: WarmStart) -> Self:
        """Not available: members start from networks trained on mapped simulations.

        Args:
            source: An estimator or weights.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "warm_start was called, but a hybrid trains all its networks on mapped "
            "simulations. Use a transfer trainer (`MFNPE`, `MFNLE`)."
        )

    def _check_trainable(self) -> MultilevelSimulations:
        simulations = super()._check_trainable()
        check_builder(self)
        _check_enough(self._appended.low_fidelity, simulations)
        return simulations

    def _get_start_index(self, context: StartIndexContext) -> int:
        """As the parent; members are trained from scratch by every call of `train`.

        NPE of sbi requires `force_first_round_loss=True` to treat draws from a proposal
        as draws from the prior. Here all are draws from the prior, as
        `_check_trainable` ensures.
        """
        if self._is_multilevel:
            if context.resume_training:
                raise ValueError(
                    "resume_training=True was passed, but a hybrid cannot resume. "
                    "Leave it out: `train()` trains from scratch on all simulations "
                    "appended so far."
                )
            context = replace(context, force_first_round_loss=True)
        return super()._get_start_index(context)  # pyright: ignore[reportAbstractUsage]

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int, *simulations: Any
    ) -> None:
        if self._is_multilevel:
            return  # members build theirs, on mapped simulations
        super()._initialize_neural_network(
            retrain_from_scratch, start_idx, *simulations
        )

    def _run_training_loop(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Train the members, from scratch whenever it is called."""
        if not self._is_multilevel:
            return super()._run_training_loop(
                train_loader, val_loader, train_config, loss_args, summarization_kwargs
            )
        # imported here, as it brings level maps and scikit-learn with it
        from sbi_multilevel.methods.hybrid.training import member_options, train_hybrid

        layout = self._layout
        options = member_options(
            train_config, loss_args, layout.batch_size, layout.loader_options
        )
        network, summary = train_hybrid(self, layout.simulations, options)
        self._neural_net, self.hybrid_summary = network, summary
        self._summary["epochs_trained"].append(summary.num_epochs)
        first = next(iter(summary.log_scores))
        self._summary["best_validation_loss"].append(-summary.log_scores[first])
        for name, score in summary.log_scores.items():
            self._tracker.log_metric(f"held_out_log_score/{name}", score)
            self._tracker.log_metric(f"weight/{name}", summary.weights.get(name, 0.0))
        if train_config.show_train_summary:
            print(summary)
        return network


def _check_enough(low_fidelity: set[int], simulations: MultilevelSimulations) -> None:
    """Raise if there are too few high-fidelity simulations.

    Args:
        low_fidelity: Levels that were appended as low-fidelity ones.
        simulations: Simulations of all levels.

    Raises:
        ValueError: If there are fewer than four.
    """
    high = simulations[-1]
    if high.level in low_fidelity:
        raise ValueError(
            f"Only lower levels were appended, up to level {high.level}. Append "
            "simulations of the highest level by `append_simulations`, or pairs."
        )
    if len(high) < _MIN_SIMULATIONS:
        raise ValueError(
            f"The highest level has {len(high)} simulations, but a hybrid needs at "
            f"least {_MIN_SIMULATIONS}, as it holds some out twice. Simulate more, or "
            "use a transfer trainer (`MFNPE`, `MFNLE`)."
        )
