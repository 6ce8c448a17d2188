"""The hooks of a trainer of sbi that this package overrides.

`upstream/` proposes them to sbi: `_split` (which simulations are held out),
`_build_optimizer`, `_step` (one batch), and theta and x as arguments of
`_initialize_neural_network`. If the installed sbi has them, `HookedTrainer` is empty,
and sbi's own loops call them. If not, it defines them by overriding what sbi 0.27 has
instead. All other code of this package is the same in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sbi.inference.trainers._contracts import LossArgs
from sbi.inference.trainers.base import NeuralInference
from torch import Tensor, nn
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

_HOOKS = ("_split", "_build_optimizer", "_step", "_check_neural_net")
HAS_HOOKS = all(hasattr(NeuralInference, name) for name in _HOOKS)


class HookedTrainer(NeuralInference):
    """A trainer of sbi with hooks."""

    if not HAS_HOOKS:
        _network_simulations: tuple[Tensor, Tensor, None] | None = None

        def _split(
            self, num_examples: int, validation_fraction: float
        ) -> tuple[Tensor, Tensor]:
            """Indices of the simulations to train on, and of the held-out ones."""
            order = torch.randperm(num_examples)
            count = int((1 - validation_fraction) * num_examples)
            return order[:count], order[count:]

        def get_dataloaders(
            self,
            starting_round: int = 0,
            training_batch_size: int = 200,
            validation_fraction: float = 0.1,
            resume_training: bool = False,
            dataloader_kwargs: dict | None = None,
        ) -> tuple[DataLoader, DataLoader]:
            if not resume_training:
                count = len(self.get_simulations(starting_round)[0])
                split = self._split(count, validation_fraction)
                self.train_indices, self.val_indices = split
            return super().get_dataloaders(
                starting_round,
                training_batch_size,
                validation_fraction,
                True,  # keeps the indices
                dataloader_kwargs,
            )

        def get_simulations(self, starting_round: int = 0) -> Any:
            if self._network_simulations is not None:
                return self._network_simulations
            return super().get_simulations(starting_round)

        def _initialize_neural_network(
            self,
            retrain_from_scratch: bool,
            start_idx: int,
            theta: Tensor | None = None,
            x: Tensor | None = None,
        ) -> None:
            if theta is not None and x is not None:
                self._network_simulations = (theta, x, None)
            try:
                super()._initialize_neural_network(  # pyright: ignore[reportAbstractUsage]
                    retrain_from_scratch, start_idx
                )
            finally:
                self._network_simulations = None

        def _build_optimizer(
            self, parameters: list[nn.Parameter], learning_rate: float
        ) -> Optimizer:
            return Adam(parameters, lr=learning_rate)

        def _train_epoch(
            self,
            train_loader: DataLoader,
            clip_max_norm: float | None,
            loss_args: LossArgs | None,
        ) -> float:
            if self.epoch == 0:  # in place of the one that sbi has just built
                (group,) = self.optimizer.param_groups
                self.optimizer = self._build_optimizer(group["params"], group["lr"])
            total, count = 0.0, 0
            for batch in train_loader:
                total += self._step(batch, loss_args, clip_max_norm).sum().item()
                count += len(batch[0])
            return total / count

        def _step(
            self,
            batch: Sequence[Tensor],
            loss_args: LossArgs | None,
            clip_max_norm: float | None,
        ) -> Tensor:
            """One step on a batch; its losses, detached."""
            self.optimizer.zero_grad()
            arguments = {} if loss_args is None else {"loss_args": loss_args}
            losses = self._get_losses(batch=batch, **arguments)
            losses.mean().backward()
            if clip_max_norm is not None:
                clip_grad_norm_(self._neural_net.parameters(), max_norm=clip_max_norm)
            self.optimizer.step()
            return losses.detach()
