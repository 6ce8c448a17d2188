r"""Neural likelihood estimation with several fidelities: `MLNLE`, `MFNLE`, `HybridNLE`.

The loss of a simulation is that of NLE,

.. math:: f_l(\phi) = -\log q_\phi(G_l(\theta, u) \mid \theta),

with :math:`G_l` the simulator of level l; the methods are those of
`sbi_multilevel.methods.npe`. With NLE, theta may follow any distribution. Only the two
sides of a pair must share theta and noise.

If simulations with NaN or inf are dropped, the learned likelihood is that of valid
outputs.
"""

from __future__ import annotations

from sbi.inference import NLE

from sbi_multilevel.estimators.observations import WatchedPotential
from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.repeats import checks_repeats
from sbi_multilevel.training.trainer import MultilevelTrainer


class _Likelihood(MultilevelTrainer):
    """What likelihoods have in common."""

    _target = "x"
    _watched_potential = WatchedPotential


class MLNLE(_Likelihood, NLE):
    r"""Multilevel neural likelihood estimation (ML-NLE).

    NLE whose loss is the telescoping sum of `MLNPE`, with
    :math:`f_l = -\log q_\phi(x_l \mid \theta)`; see
    `sbi_multilevel.methods.multilevel`. With `append_simulations` alone it is
    `sbi.inference.NLE`: the same weights result.

    Args:
        prior: Prior over theta, anything that sbi takes.
        density_estimator: Name of a network, e.g. `"nsf"`, `"maf"` or `"mdn"`, or a
            builder, as `sbi.neural_nets.likelihood_nn` returns it.
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
        >>> from sbi_multilevel import MLNLE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_0, theta_1 = prior.sample((500,)), prior.sample((50,))
        >>> noise_0, noise_1 = torch.randn(500, 1), torch.randn(50, 1)
        >>> inference = MLNLE(prior, density_estimator="mdn", show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_0, theta_0 + noise_0, level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta_1, 1.1 * theta_1 + noise_1, x_coarse=theta_1 + noise_1, level=1
        ... )
        >>> likelihood = inference.train(max_num_epochs=2)
        >>> likelihood.log_prob(torch.zeros(1, 3, 1), torch.zeros(3, 1)).shape
        torch.Size([1, 3])
    """

    _config_type = MultilevelConfig

    append_simulations = checks_repeats(NLE.append_simulations)


class MFNLE(_Likelihood, NLE):
    r"""Multifidelity neural likelihood estimation by transfer (MF-NLE).

    As `MFNPE`, with the loss :math:`-\log q_\phi(x \mid \theta)`: training on level 1
    starts at the likelihood of level 0, and so on to level L. If levels are aligned
    (see `TransferConfig`), the density of x accounts for the change of scale.

    Arguments and errors are those of `MLNLE`, but that `config` is a `TransferConfig`.
    With `append_simulations` alone it is `sbi.inference.NLE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNLE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((500,)), prior.sample((50,))
        >>> inference = MFNLE(prior, density_estimator="mdn", show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(500, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(50, 1)
        ... )
        >>> likelihood = inference.train(max_num_epochs=2)
        >>> likelihood.log_prob(torch.zeros(1, 3, 1), torch.zeros(3, 1)).shape
        torch.Size([1, 3])
    """

    _config_type = TransferConfig

    append_simulations = checks_repeats(NLE.append_simulations)


class HybridNLE(HybridTrainer, _Likelihood, NLE):
    """Hybrid neural likelihood estimation.

    As `HybridNPE`, for likelihoods: an ensemble of NLE networks, trained on
    low-fidelity simulations that are moved by level maps and on high-fidelity ones, and
    mixed with networks of the high-fidelity simulations alone. See
    `sbi_multilevel.methods.hybrid.config` for the method.

    Arguments and errors are those of `MLNLE`, but that `config` is a `HybridConfig`.
    With `append_simulations` alone it is `sbi.inference.NLE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridNLE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta_low, theta_high = prior.sample((300,)), prior.sample((20,))
        >>> config = HybridConfig(num_members=2, level_maps=("none", "shift"))
        >>> inference = HybridNLE(
        ...     prior, density_estimator="mdn", config=config, show_progress_bars=False
        ... )
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta_low, theta_low + torch.randn(300, 1)
        ... )
        >>> inference = inference.append_simulations(
        ...     theta_high, 1.1 * theta_high + torch.randn(20, 1)
        ... )
        >>> likelihood = inference.train(max_num_epochs=500, stop_after_epochs=1)
        >>> likelihood.log_prob(torch.zeros(1, 3, 1), torch.zeros(3, 1)).shape
        torch.Size([1, 3])
    """

    _member_type = MFNLE

    append_simulations = checks_repeats(NLE.append_simulations)
