"""Where a trainer hands over to the members of the recipe `Hybrid`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sbi.inference.trainers._contracts import (
    LossArgs,
    StartIndexContext,
    TrainConfig,
)
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_multilevel.hybrid.summary import HybridSummary
from sbi_multilevel.hybrid.training import check_hybrid, member_options, train_hybrid
from sbi_multilevel.recipes import Hybrid
from sbi_multilevel.simulations import MultilevelSimulations
from sbi_multilevel.trainers.mixin import MultilevelMixin
from sbi_multilevel.trainers.network import WarmStart, check_builder


class HybridMixin(MultilevelMixin):
    """Trains by members where the recipe is `Hybrid`, and as its parent where not.

    `hybrid_summary` says what was chosen, and is `None` before training and with
    other recipes.
    """

    hybrid_summary: HybridSummary | None = None

    @property
    def _uses_members(self) -> bool:
        return self._uses_recipe and isinstance(self._recipe, Hybrid)

    def warm_start(self, source: WarmStart) -> Self:
        """Start training from weights that were trained before, of any trainer of sbi.

        Args:
            source: An estimator, as `train` of a trainer of sbi returns it (it is
                copied), its `state_dict()`, or a file written by
                `torch.save(estimator.state_dict(), path)`, which is read without
                unpickling.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the trainer was trained already, or its recipe is the hybrid
                one.
        """
        if isinstance(self._recipe, Hybrid):
            raise ValueError(
                "warm_start was called, but recipe='hybrid' trains networks of its own "
                "on rows that it moves. Use the recipe 'transfer'."
            )
        return super().warm_start(source)

    def __getstate__(self) -> dict:
        """As the parent, without the copy of the rows that training works on."""
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k != "_arranged"}

    def _check_trainable(self) -> MultilevelSimulations:
        simulations = super()._check_trainable()
        if self._uses_members:
            check_builder(self)
            check_hybrid(self, simulations)
        return simulations

    def _prepared_simulations(self) -> MultilevelSimulations:
        simulations = super()._prepared_simulations()
        if self._uses_members:
            self._arranged = simulations
        return simulations

    def _get_start_index(self, context: StartIndexContext) -> int:
        """As the parent; members train anew, so a second training needs no consent.

        NPE of sbi asks for `force_first_round_loss=True` lest rows of a proposal are
        taken for rows of the prior; `_check_trainable` refuses such rows.
        """
        if self._uses_members and not context.resume_training:
            context = replace(context, force_first_round_loss=True)
        return super()._get_start_index(context)  # pyright: ignore[reportAbstractUsage]

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """As of the parent; with the recipe `Hybrid` members have their own loaders."""
        if self._uses_members and resume_training:
            raise ValueError(
                "resume_training=True was passed, but recipe='hybrid' trains many "
                "networks to their end. Leave it out: `train()` trains anew on all "
                "rows appended so far."
            )
        return super().get_dataloaders(
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs,
        )

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        if self._uses_members:
            return  # members build theirs, on rows that are moved
        super()._initialize_neural_network(retrain_from_scratch, start_idx)

    def _run_training_loop(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Train the members, anew whenever it is called."""
        if not self._uses_members:
            return super()._run_training_loop(
                train_loader, val_loader, train_config, loss_args, summarization_kwargs
            )
        options = member_options(train_config, loss_args, *self._loader_options)
        network, summary = train_hybrid(self, self._arranged, options)
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
