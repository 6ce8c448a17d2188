r"""Neural ratio estimation with several fidelities: `MLNRE`, `MFNRE`, `HybridNRE`.

A ratio estimator :math:`h` is trained as a classifier of pairs: its loss of a
simulation of level l (`sbi_multilevel.losses.contrastive`),

.. math:: f_l(\phi) = f\big( h_\phi(\theta, x_l),
    h_\phi(\theta'_1, x_l), \dots, h_\phi(\theta'_C, x_l) \big),
    \qquad x_l = G_l(\theta, u), \quad \theta'_j \sim p(\theta),

depends on contrastive parameters :math:`\theta'`, and its minimum is the ratio
:math:`p(x_l \mid \theta) / p(x_l)` of the level (for NRE-B up to a factor that depends
on x). The expectation over theta, the noise u and :math:`\theta'` telescopes over the
levels as in `sbi_multilevel.methods.multilevel`,

.. math:: \mathbb{E} f_L = \mathbb{E} f_0
    + \sum_{l=1}^{L} \mathbb{E} \left[ f_l - f_{l-1} \right],

for any joint distribution of the two :math:`\theta'` of a pair. Here both sides of a
pair have *the same* contrastive parameters, as they have the same theta and noise. The
difference is then zero wherever the levels agree, and its variance small where they
nearly do; with independent ones the variance of the contrast would remain
(`sbi_multilevel.training.common_noise`).

Contrastive parameters are drawn from the parameters of all training simulations, of
every level, but the own one: as all levels have the prior of theta, low-fidelity
simulations provide as many as are wanted. sbi draws them from a batch, without
replacement; a level with 20 pairs would have 19. All simulations must therefore be
draws from the prior.

The penalty of BNRE is the square of an expectation, whose estimate is the square of the
telescoping sum (`sbi_multilevel.losses.contrastive`).

`HybridNRE` mixes ratios after they are normalized over draws from the prior
(`sbi_multilevel.estimators.mixture_ratio`). Their weights depend on the posterior
ratio of held-out simulations, normalized in the same way. The mixture stays: no network
takes its place (`distill` has no effect).

`MLNRE`, `MFNRE` and `HybridNRE` are of NRE-B, as `sbi.inference.NRE` is. `MLNRE_A`,
`MLNRE_C` and `MLBNRE`, and so on, are of the other variants
(`sbi_multilevel.methods.nre_variants`).

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, arXiv:2506.06087, name ratio estimation as an extension. The coupling of
contrastive parameters is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sbi.inference import NRE_B
from sbi.inference.trainers._contracts import (
    LossArgs,
    LossArgsBNRE,
    LossArgsNRE_A,
    LossArgsNRE_C,
)
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor
from torch.utils.data import DataLoader

from sbi_multilevel.data.priors import log_prob_of
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.estimators.kinds import RATIO
from sbi_multilevel.estimators.observations import WatchedRatioPotential
from sbi_multilevel.losses.contrastive import (
    balance_penalties,
    binary_loss,
    independent_loss,
    log_posterior_ratio,
    softmax_loss,
)
from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.batches import SizedLoader
from sbi_multilevel.training.common_noise import with_common_noise
from sbi_multilevel.training.repeats import checks_repeats
from sbi_multilevel.training.trainer import MultilevelTrainer

_NUM_REFERENCE = 1_000  # draws from the prior that normalize a ratio
_NO_WEIGHTS = (
    "weights were passed, but ratio estimation needs simulations at draws from the "
    "prior, as it draws contrastive parameters from theirs. Use `MFNPE` or `HybridNPE`."
)


class RatioTrainer(MultilevelTrainer):
    """What ratio estimators have in common."""

    _target = "theta"
    _kind = RATIO
    _has_random_loss = True
    _watched_potential = WatchedRatioPotential

    def append_weighted_simulations(self, theta: Tensor, x: Tensor, weights: Tensor):
        """Not available: contrastive parameters are draws from the prior.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_NO_WEIGHTS)

    def _check_appended(
        self, parts: list[LevelSimulations], data_device: str | None
    ) -> None:
        if any(part.weights is not None for part in parts):
            raise ValueError(_NO_WEIGHTS)
        super()._check_appended(parts, data_device)

    def get_dataloaders(
        self, *args: Any, **kwargs: Any
    ) -> tuple[DataLoader, DataLoader]:
        """As the parent; loaders have a batch size, to which sbi limits atoms."""
        loaders = super().get_dataloaders(*args, **kwargs)
        if not self._is_multilevel:
            return loaders
        size = len(self._layout.contrasts)
        return tuple(SizedLoader(loader, size) for loader in loaders)  # pyright: ignore[reportReturnType]

    def _losses_of_parts(
        self, parts: Mapping[int, Sequence[Tensor]], loss_args: LossArgs | None
    ) -> dict[int, Tensor]:
        """Loss of each simulation, with the same contrasts for both sides of a pair."""
        contrasts, num_atoms = self._layout.contrasts, loss_args.num_atoms  # pyright: ignore
        is_of_c = isinstance(loss_args, LossArgsNRE_C)
        count = 2 * (num_atoms - 1) - 1 if is_of_c else num_atoms - 1

        def logits_of(part: Sequence[Tensor]) -> Tensor:
            theta, x = (column.to(self._device) for column in part[:2])
            others = contrasts.draw(part[0], count).to(theta)
            every = torch.cat([theta[:, None], others], dim=1).flatten(0, 1)
            repeated = x.repeat_interleave(1 + count, dim=0)
            return self._neural_net(every, repeated).reshape(len(theta), 1 + count)

        terms = self._layout.dataset.terms
        logits = with_common_noise(parts, [t.level for t in terms], logits_of)
        if is_of_c:
            gamma = loss_args.gamma
            return {m: independent_loss(each, gamma) for m, each in logits.items()}
        if not isinstance(loss_args, LossArgsNRE_A):
            return {m: softmax_loss(each) for m, each in logits.items()}
        losses = {m: binary_loss(each) for m, each in logits.items()}
        if isinstance(loss_args, LossArgsBNRE):
            weights = {m: terms[m].weight for m in logits}
            strength = loss_args.regularization_strength
            penalties = balance_penalties(logits, weights, strength)
            losses = {m: each + penalties[m] for m, each in losses.items()}
        return losses

    def _options_of(self, loss_args: LossArgs | None) -> dict[str, Any]:
        """The arguments of `train` that belong to the loss."""
        if isinstance(loss_args, LossArgsNRE_C):
            return {"num_classes": loss_args.num_atoms - 1, "gamma": loss_args.gamma}
        if isinstance(loss_args, LossArgsBNRE):
            return {"regularization_strength": loss_args.regularization_strength}
        if isinstance(loss_args, LossArgsNRE_A):
            return {}
        return {"num_atoms": loss_args.num_atoms}  # pyright: ignore

    def _held_out_losses(self, network: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Negative log density of the posterior, see `log_posterior_ratio`."""
        others = self._reference()
        count = len(others)
        own, every = network(theta, x), others.repeat(len(x), 1)
        logits = network(every, x.repeat_interleave(count, dim=0))
        losses = -log_posterior_ratio(own, logits.reshape(len(x), count))
        if self._prior is None or isinstance(self._prior, ImproperEmpirical):
            return losses
        return losses - log_prob_of(self._prior, theta)

    def _reference(self) -> Tensor:
        """Parameters of training simulations, which are draws from the prior."""
        theta = torch.cat([level.theta for level in self._layout.simulations])
        step = max(len(theta) // _NUM_REFERENCE, 1)
        return theta[::step][:_NUM_REFERENCE].to(self._device)


class HybridRatioTrainer(HybridTrainer, RatioTrainer):
    """A hybrid whose mixture is one of ratios."""

    @property
    def _distills(self) -> bool:
        return False

    def _mix(
        self,
        networks: Sequence[Any],
        weights: Tensor,
        tails: Any,
        has_prior: bool,
    ) -> Any:
        """The mixture of trained networks; the prior has the ratio 1."""
        # imported here, as it brings level maps with it
        from sbi_multilevel.estimators.mixture_ratio import MixtureRatio

        return MixtureRatio(networks, weights, self._reference(), tails)


class MLNRE(RatioTrainer, NRE_B):
    r"""Multilevel neural ratio estimation (ML-NRE), with the loss of NRE-B.

    NRE whose loss is the telescoping sum of `MLNPE`, with :math:`f_l` the loss of the
    classifier, and the same contrastive parameters for both sides of a pair; see
    `sbi_multilevel.methods.nre`. With `append_simulations` alone it is
    `sbi.inference.NRE`: the same weights result.

    Args:
        prior: Prior over theta, anything that sbi takes.
        classifier: Name of a network, `"resnet"`, `"mlp"` or `"linear"`, or a builder,
            as `sbi.neural_nets.classifier_nn` returns it.
        device: Device of training, e.g. `"cpu"` or `"cuda"`.
        logging_level: Least severe messages that sbi logs.
        summary_writer: Deprecated by sbi; use `tracker`.
        tracker: Where metrics go; by default TensorBoard, in the folder `sbi-logs`.
        show_progress_bars: Whether to show progress.
        config: The settings of the method; `MultilevelConfig()` by default.
        parameters: Names of the columns of theta that each level has, as for `MLNPE`.

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If `parameters` do not fit each other, or if all simulations have
            the same theta.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLNRE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_0, theta_1 = prior.sample((500,)), prior.sample((50,))
        >>> noise_0, noise_1 = torch.randn(500, 1), torch.randn(50, 1)
        >>> inference = MLNRE(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_0, theta_0 + noise_0, level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_1, 1.1 * theta_1 + noise_1, x_coarse=theta_1 + noise_1, level=1
        ... )
        >>> ratio = inference.train(max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = MultilevelConfig

    append_simulations = checks_repeats(NRE_B.append_simulations)


class MFNRE(RatioTrainer, NRE_B):
    """Multifidelity neural ratio estimation by transfer (MF-NRE), with NRE-B.

    As `MFNPE`, for ratios: the classifier is trained on level 0, and fine-tuned on the
    levels above. Low-fidelity parameters serve as contrastive parameters in fine-tuning
    too.

    Arguments and errors are those of `MLNRE`, but that `config` is a `TransferConfig`,
    whose `unconstrained` has no effect.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNRE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((500,)), prior.sample((50,))
        >>> inference = MFNRE(prior, classifier="mlp", show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(500, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(50, 1)
        ... )
        >>> ratio = inference.train(max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = TransferConfig

    append_simulations = checks_repeats(NRE_B.append_simulations)


class HybridNRE(HybridRatioTrainer, NRE_B):
    """Hybrid neural ratio estimation, with the loss of NRE-B.

    As `HybridNPE`, for ratios: an ensemble of classifiers, trained on low-fidelity
    simulations that are moved by level maps and on high-fidelity ones, and mixed with
    classifiers of the high-fidelity simulations alone and the prior; see
    `sbi_multilevel.methods.nre`.

    Arguments and errors are those of `MLNRE`, but that `config` is a `HybridConfig`,
    whose `unconstrained` and `distill` have no effect.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridNRE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> config = HybridConfig(num_members=2, level_maps=("none", "shift"))
        >>> inference = HybridNRE(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(300, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(20, 1)
        ... )
        >>> ratio = inference.train(
        ...     num_atoms=5, max_num_epochs=500, stop_after_epochs=1
        ... )
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _member_type = MFNRE

    append_simulations = checks_repeats(NRE_B.append_simulations)
