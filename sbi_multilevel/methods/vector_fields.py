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

from sbi.inference import FMPE, NPSE
from sbi.inference.trainers._contracts import LossArgs, LossArgsVF, TrainConfig
from torch import Tensor
from torch.utils.data import DataLoader

from sbi_multilevel.estimators.kinds import FLOW, SCORE
from sbi_multilevel.estimators.observations import Watch, WatchingX
from sbi_multilevel.estimators.reading import TailMap, precede_embedding
from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.common_noise import with_common_noise
from sbi_multilevel.training.repeats import checks_repeats
from sbi_multilevel.training.schedule import OneCycle
from sbi_multilevel.training.trainer import MultilevelTrainer


class _VectorField(MultilevelTrainer):
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

    def _random_losses(
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


class _HybridVectorField(HybridTrainer, _VectorField):
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

    def _run_training_loop(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader,
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """As the parent; an interrupted training leaves no untrained network."""
        if self._is_multilevel and self.hybrid_summary is None:
            self._neural_net = None
        return super()._run_training_loop(
            train_loader, val_loader, train_config, loss_args, summarization_kwargs
        )


class MLFMPE(_VectorField, FMPE):
    r"""Multilevel flow matching posterior estimation (ML-FMPE).

    FMPE whose loss is the telescoping sum of `MLNPE`, with the same time and noise for
    both sides of a pair; see `sbi_multilevel.methods.vector_fields`. With
    `append_simulations` alone it is `sbi.inference.FMPE`: the same weights result.

    Args:
        prior: Prior over theta, anything that sbi takes.
        vf_estimator: Name of a network, e.g. `"mlp"` or `"ada_mlp"`, or a builder, as
            `sbi.neural_nets.posterior_flow_nn` returns it.
        density_estimator: Deprecated by sbi; use `vf_estimator`.
        device: Device of training, e.g. `"cpu"` or `"cuda"`.
        logging_level: Least severe messages that sbi logs.
        summary_writer: Deprecated by sbi; use `tracker`.
        tracker: Where metrics go; by default TensorBoard, in the folder `sbi-logs`.
        show_progress_bars: Whether to show progress.
        config: The settings of the method; `MultilevelConfig(schedule=OneCycle())` by
            default.
        parameters: Names of the columns of theta that each level has, as for `MLNPE`.

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If `parameters` do not fit each other.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLFMPE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_0, theta_1 = prior.sample((500,)), prior.sample((50,))
        >>> noise_0, noise_1 = torch.randn(500, 1), torch.randn(50, 1)
        >>> inference = MLFMPE(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_0, theta_0 + noise_0, level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_1, 1.1 * theta_1 + noise_1, x_coarse=theta_1 + noise_1, level=1
        ... )
        >>> _ = inference.train(max_num_epochs=2)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 1), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 1])
    """

    _kind = FLOW
    _config_type = MultilevelConfig

    append_simulations = checks_repeats(FMPE.append_simulations)


class MFFMPE(_VectorField, FMPE):
    """Multifidelity flow matching posterior estimation by transfer (MF-FMPE).

    As `MFNPE`, for vector fields: the network is trained on level 0, and fine-tuned on
    the levels above.

    Arguments and errors are those of `MLFMPE`, but that `config` is a `TransferConfig`,
    whose `unconstrained` has no effect.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFFMPE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> inference = MFFMPE(prior, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(300, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(20, 1)
        ... )
        >>> _ = inference.train(max_num_epochs=2)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 1), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 1])
    """

    _kind = FLOW
    _config_type = TransferConfig

    append_simulations = checks_repeats(FMPE.append_simulations)


class HybridFMPE(_HybridVectorField, FMPE):
    """Hybrid flow matching posterior estimation.

    As `HybridNPE`, for vector fields: an ensemble of networks, trained on low-fidelity
    simulations that are moved by level maps and on high-fidelity ones, and mixed with
    networks of the high-fidelity simulations alone and the prior. One network, trained
    on draws from the mixture, is returned; see `sbi_multilevel.methods.vector_fields`.

    Arguments and errors are those of `MLFMPE`, but that `config` is a `HybridConfig`,
    whose `unconstrained` and `distill` have no effect.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridFMPE, OneCycle
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> schedule = OneCycle(num_steps=100, fine_tuning_steps=30)  # an example
        >>> config = HybridConfig(
        ...     num_members=2, level_maps=("none", "shift"), schedule=schedule
        ... )
        >>> inference = HybridFMPE(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(300, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(20, 1)
        ... )
        >>> _ = inference.train(max_num_epochs=500, stop_after_epochs=1)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 1), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 1])
    """

    _kind = FLOW
    _member_type = MFFMPE

    append_simulations = checks_repeats(FMPE.append_simulations)


class MLNPSE(_VectorField, NPSE):
    r"""Multilevel neural posterior score estimation (ML-NPSE).

    NPSE whose loss is the telescoping sum of `MLNPE`, with the same time and noise for
    both sides of a pair; see `sbi_multilevel.methods.vector_fields`. With
    `append_simulations` alone it is `sbi.inference.NPSE`: the same weights result.

    Args:
        prior: Prior over theta, anything that sbi takes.
        vf_estimator: Name of a network, e.g. `"mlp"` or `"ada_mlp"`, or a builder, as
            `sbi.neural_nets.posterior_score_nn` returns it.
        sde_type: Kind of diffusion, `"ve"`, `"vp"` or `"subvp"`.
        score_estimator: Deprecated by sbi; use `vf_estimator`.
        density_estimator: Deprecated by sbi; use `vf_estimator`.
        device: Device of training, e.g. `"cpu"` or `"cuda"`.
        logging_level: Least severe messages that sbi logs.
        summary_writer: Deprecated by sbi; use `tracker`.
        tracker: Where metrics go; by default TensorBoard, in the folder `sbi-logs`.
        show_progress_bars: Whether to show progress.
        config: The settings of the method; `MultilevelConfig(schedule=OneCycle())` by
            default.
        parameters: Names of the columns of theta that each level has, as for `MLNPE`.

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If `parameters` do not fit each other.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLNPSE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_0, theta_1 = prior.sample((500,)), prior.sample((50,))
        >>> noise_0, noise_1 = torch.randn(500, 1), torch.randn(50, 1)
        >>> inference = MLNPSE(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_0, theta_0 + noise_0, level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_1, 1.1 * theta_1 + noise_1, x_coarse=theta_1 + noise_1, level=1
        ... )
        >>> _ = inference.train(max_num_epochs=2)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 1), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 1])
    """

    _kind = SCORE
    _config_type = MultilevelConfig

    append_simulations = checks_repeats(NPSE.append_simulations)


class MFNPSE(_VectorField, NPSE):
    """Multifidelity neural posterior score estimation by transfer (MF-NPSE).

    As `MFNPE`, for vector fields: the network is trained on level 0, and fine-tuned on
    the levels above.

    Arguments and errors are those of `MLNPSE`, but that `config` is a `TransferConfig`,
    whose `unconstrained` has no effect.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPSE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> inference = MFNPSE(prior, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(300, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(20, 1)
        ... )
        >>> _ = inference.train(max_num_epochs=2)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 1), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 1])
    """

    _kind = SCORE
    _config_type = TransferConfig

    append_simulations = checks_repeats(NPSE.append_simulations)


class HybridNPSE(_HybridVectorField, NPSE):
    """Hybrid neural posterior score estimation.

    As `HybridNPE`, for vector fields: an ensemble of networks, trained on low-fidelity
    simulations that are moved by level maps and on high-fidelity ones, and mixed with
    networks of the high-fidelity simulations alone and the prior. One network, trained
    on draws from the mixture, is returned; see `sbi_multilevel.methods.vector_fields`.

    Arguments and errors are those of `MLNPSE`, but that `config` is a `HybridConfig`,
    whose `unconstrained` and `distill` have no effect.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridNPSE, OneCycle
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> schedule = OneCycle(num_steps=100, fine_tuning_steps=30)  # an example
        >>> config = HybridConfig(
        ...     num_members=2, level_maps=("none", "shift"), schedule=schedule
        ... )
        >>> inference = HybridNPSE(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(300, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(20, 1)
        ... )
        >>> _ = inference.train(max_num_epochs=500, stop_after_epochs=1)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 1), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 1])
    """

    _kind = SCORE
    _member_type = MFNPSE

    append_simulations = checks_repeats(NPSE.append_simulations)
