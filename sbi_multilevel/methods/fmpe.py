"""Flow matching with several fidelities: `MLFMPE`, `MFFMPE`, `HybridFMPE`."""

from __future__ import annotations

from sbi.inference import FMPE

from sbi_multilevel.estimators.kinds import FLOW
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.methods.vector_fields import (
    HybridVectorFieldTrainer,
    VectorFieldTrainer,
)
from sbi_multilevel.training.repeats import checks_repeats


class MLFMPE(VectorFieldTrainer, FMPE):
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


class MFFMPE(VectorFieldTrainer, FMPE):
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


class HybridFMPE(HybridVectorFieldTrainer, FMPE):
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
