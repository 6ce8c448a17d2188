r"""Flow matching and score estimation with several fidelities.

`MLFMPE`, `MFFMPE`, `HybridFMPE` are of sbi's `FMPE`, and `MLNPSE`, `MFNPSE`,
`HybridNPSE` of `NPSE`. A vector field :math:`v_\phi` is regressed on targets that
depend on a random time t and a random noise z. For flow matching the loss of a
simulation of level l is

.. math:: f_l(\phi) = \left\| v_\phi\big( (1 - t)\, \theta + t\, z, \, t; \, x_l \big)
    - (z - \theta) \right\|^2, \qquad t \sim U(0, 1), \quad z \sim N(0, I),

and for scores that of denoising score matching, at the noise level of t. The
expectation over theta, the noise of the simulator, t and z telescopes over the levels
as in `sbi_multilevel.methods.multilevel`. Both sides of a pair have the same t and z,
and hence the same input and the same target: only :math:`x_l` and :math:`x_{l-1}`
differ (`sbi_multilevel.training.common_noise`).

Held-out losses are evaluated at fixed times, as in sbi, and with the same noise in all
epochs, so that epochs can be compared. They improve slowly for hundreds of epochs. The
default settings therefore have a schedule of learning rates, `OneCycle()`, which ends
training after a fixed number of steps; with `schedule=None` early stopping is that of
sbi.

A hybrid needs densities of the high-fidelity simulations for its weights, and has them
from the probability flow, one differential equation for each simulation and network
(`sbi_multilevel.estimators.vector_field_density`); low-fidelity simulations need none.
A mixture of vector fields has no vector field that is known in closed form. Therefore
one network always takes its place: it is trained on draws from the mixture, the prior
included (`sbi_multilevel.methods.hybrid.distillation`), and is an estimator of sbi like
any other. `distill` has no effect.

Theta is not transformed to unconstrained space. As in sbi, samples outside of the prior
are rejected.

References: Lipman et al. (2023), arXiv:2210.02747, and Wildberger et al. (2023),
arXiv:2305.17161 (flow matching); Geffner et al. (2023) and Sharrock et al. (2024)
(scores). Krouglova et al. (2026), arXiv:2502.08416, name diffusion models as future
work for transfer. The coupling of times and noise is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sbi.inference.trainers._contracts import LossArgs, LossArgsVF
from torch import Tensor
from torch.utils.data import DataLoader

from sbi_multilevel.estimators.observations import Watch, WatchingX
from sbi_multilevel.estimators.reading import TailMap, precede_embedding
from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
from sbi_multilevel.training.common_noise import with_common_noise
from sbi_multilevel.training.schedule import OneCycle
from sbi_multilevel.training.trainer import MultilevelTrainer


class VectorFieldTrainer(MultilevelTrainer):
    """What vector fields have in common."""

    _target = "theta"
    _has_random_loss = True
    _schedule = OneCycle()

    def _train_epoch(
        self,
        train_loader: DataLoader,
        clip_max_norm: float | None,
        loss_args: LossArgs | None,
    ) -> float:
        """As the parent; the fixed times are those of held-out losses."""
        assert isinstance(loss_args, LossArgsVF)
        loss_args = replace(loss_args, times=None)
        return super()._train_epoch(train_loader, clip_max_norm, loss_args)

    def _losses_of_parts(
        self, parts: Mapping[int, Sequence[Tensor]], loss_args: LossArgs | None
    ) -> dict[int, Tensor]:
        """Loss of each simulation, with the same t and z for both sides of a pair."""
        assert isinstance(loss_args, LossArgsVF)
        if self._neural_net.training:
            loss_args = replace(loss_args, times=None)
        times = loss_args.times

        def losses_of(part: Sequence[Tensor]) -> Tensor:
            losses = self._get_losses(part[:3], loss_args)
            if times is None:
                return losses
            return losses.reshape(len(times), len(part[0])).mean(dim=0)

        levels = [term.level for term in self._layout.dataset.terms]
        return with_common_noise(parts, levels, losses_of, self._device)

    def _options_of(self, loss_args: LossArgs | None) -> dict[str, Any]:
        """The arguments of `train` that belong to the loss."""
        assert isinstance(loss_args, LossArgsVF)
        options = super()._options_of(loss_args)
        return {**options, "validation_times": loss_args.times}

    def _watched(self, estimator: Any, watch: Watch) -> Any:
        """The estimator, whose embedding checks observations."""
        precede_embedding(estimator, WatchingX(watch))
        return estimator


class HybridVectorFieldTrainer(HybridTrainer, VectorFieldTrainer):
    """A hybrid whose mixture is always distilled into one network."""

    _needs_one_network = True
    _max_distilled = 5_000
    _max_checked = 100

    @property
    def _distills(self) -> bool:
        return True

    def _held_out_losses(self, network: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Negative log density by the probability flow."""
        return self._as_density(network).loss(theta, x)

    def _as_density(self, network: Any) -> Any:
        from sbi_multilevel.estimators.vector_field_density import VectorFieldDensity

        return VectorFieldDensity(network)

    def _network_of(self, density: Any) -> Any:
        return density.net

    def _in_place_of(self, mixture: Any, network: Any) -> Any:
        if mixture.tails is not None:
            precede_embedding(network, TailMap(mixture.tails))
        return network

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int, *simulations: Any
    ) -> None:
        """As the parent; `train` of sbi asks a network for the times of its losses."""
        super()._initialize_neural_network(
            retrain_from_scratch, start_idx, *simulations
        )
        if self._is_multilevel and self._neural_net is None:
            theta, x = self._layout.dataset.columns
            chosen = self.train_indices
            self._neural_net = self._network_builder(
                theta[chosen].cpu(), x[chosen].cpu()
            )
