r"""Neural posterior estimation with several fidelities: `MLNPE`, `MFNPE`, `HybridNPE`.

The loss of a simulation is that of NPE,

.. math:: f_l(\phi) = -\log q_\phi(\theta \mid G_l(\theta, u)),

with :math:`G_l` the simulator of level l. The methods differ in how they use the
levels; their theory is in `sbi_multilevel.methods.multilevel`,
`sbi_multilevel.methods.transfer` and `sbi_multilevel.methods.hybrid.config`. All are
trained on draws from the prior; `MFTSNPE` has rounds.
"""

from __future__ import annotations

from sbi.inference import NPE

from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.repeats import checks_repeats
from sbi_multilevel.training.trainer import MultilevelTrainer


class MLNPE(MultilevelTrainer, NPE):
    r"""Multilevel neural posterior estimation (ML-NPE).

    NPE whose loss is the telescoping sum

    .. math:: \ell(\phi) = \frac1{n_0} \sum f_0
        + \sum_{l=1}^{L} \frac1{n_l} \sum \left[ f_l - f_{l-1} \right],

    over simulations of level 0 and paired simulations of the levels above; see
    `sbi_multilevel.methods.multilevel`. With `append_simulations` alone it is
    `sbi.inference.NPE`: the same weights result.

    Args:
        prior: Prior over theta, anything that sbi takes.
        density_estimator: Name of a network, e.g. `"nsf"`, `"maf"` or `"mdn"`, or a
            builder, as `sbi.neural_nets.posterior_nn` returns it.
        device: Device of training, e.g. `"cpu"` or `"cuda"`.
        logging_level: Least severe messages that sbi logs.
        summary_writer: Deprecated by sbi; use `tracker`.
        tracker: Where metrics go; by default TensorBoard, in the folder `sbi-logs`.
        show_progress_bars: Whether to show progress.
        config: The settings of the method; `MultilevelConfig()` by default.
        parameters: Names of the columns of theta that each level has, the highest
            included, where levels differ, e.g. `{0: ("mu",), 1: ("mu", "sigma")}`; see
            `sbi_multilevel.data.parameters`.

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If `parameters` do not fit each other.

    Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural
    simulation-based inference*, arXiv:2506.06087, equation 2 and Algorithm 1.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLNPE, simulate_multilevel
        >>> def coarse(theta, noise):
        ...     return theta + 0.3 * noise
        >>> def fine(theta, noise):
        ...     return theta + 0.05 * theta**2 + 0.3 * noise
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> simulations = simulate_multilevel(
        ...     [coarse, fine],
        ...     prior,
        ...     num_simulations=(500, 50),
        ...     noise=lambda n, generator: torch.randn(n, 2, generator=generator),
        ...     seed=1,
        ...     show_progress_bars=False,
        ... )
        >>> inference = MLNPE(prior, show_progress_bars=False)
        >>> _ = inference.append_multilevel_simulations(simulations)
        >>> _ = inference.train(max_num_epochs=2)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 2), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 2])
    """

    _target = "theta"
    _config_type = MultilevelConfig

    append_simulations = checks_repeats(NPE.append_simulations)


class MFNPE(MultilevelTrainer, NPE):
    r"""Multifidelity neural posterior estimation by transfer (MF-NPE).

    The network is trained on level 0 until early stopping,

    .. math:: \phi_0 = \arg\min_\phi -\frac1{n_0} \sum_i
        \log q_\phi(\theta_i \mid G_0(\theta_i, u_i)),

    from :math:`\phi_0` on level 1, and so on to level L, with no weights frozen. The
    minimum of the last loss does not depend on the lower levels: what transfers is that
    training starts at their fit and stops near it. Simulations need not be paired. See
    `sbi_multilevel.methods.transfer`, and `warm_start` for weights trained elsewhere.

    Arguments and errors are those of `MLNPE`, but that `config` is a `TransferConfig`.
    With `append_simulations` alone it is `sbi.inference.NPE`.

    Reference: Krouglova, Johnson, Confavreux, Deistler, Gonçalves (2026),
    *Multifidelity simulation-based inference for computationally expensive simulators*,
    ICLR 2026, arXiv:2502.08416, equation 1 (the loss), Algorithm 1 (two levels) and
    Algorithm 2 (more).

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPE
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta_low, theta_high = prior.sample((500,)), prior.sample((50,))
        >>> x_low = theta_low + 0.3 * torch.randn(500, 2)
        >>> x_high = theta_high + 0.1 * theta_high**2 + 0.3 * torch.randn(50, 2)
        >>> inference = MFNPE(prior, density_estimator="nsf", show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta_low, x_low)
        >>> inference = inference.append_simulations(theta_high, x_high)
        >>> _ = inference.train(max_num_epochs=2)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 2), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 2])
    """

    _target = "theta"
    _config_type = TransferConfig

    append_simulations = checks_repeats(NPE.append_simulations)


class HybridNPE(HybridTrainer, NPE):
    """Hybrid neural posterior estimation, the method to start with.

    An ensemble of NPE networks. Low-fidelity simulations are moved by level maps, so
    that they resemble high-fidelity ones, and networks are pre-trained on them and
    fine-tuned on high-fidelity simulations. Networks of the high-fidelity simulations
    alone and the prior join the mixture, with stacking weights. Pairs are used, but
    not needed. `hybrid_summary` reports what was chosen, and what the lower levels
    contributed. See `sbi_multilevel.methods.hybrid.config` for the method.

    Arguments and errors are those of `MLNPE`, but that `config` is a `HybridConfig`.
    With `append_simulations` alone it is `sbi.inference.NPE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridNPE
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> x_low = theta_low + 0.3 * torch.randn(300, 2)
        >>> x_high = theta_high + 0.1 * theta_high**2 + 0.3 * torch.randn(20, 2)
        >>> config = HybridConfig(num_members=2, level_maps=("none", "shift"))
        >>> inference = HybridNPE(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta_low, x_low)
        >>> inference = inference.append_simulations(theta_high, x_high)
        >>> _ = inference.train(max_num_epochs=500, stop_after_epochs=1)
        >>> posterior = inference.build_posterior()
        >>> samples = posterior.sample(
        ...     (10,), x=torch.zeros(1, 2), show_progress_bars=False
        ... )
        >>> samples.shape
        torch.Size([10, 2])
    """

    _target = "theta"
    _member_type = MFNPE

    append_simulations = checks_repeats(NPE.append_simulations)
