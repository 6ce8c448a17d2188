"""Ratio estimation with the losses of NRE-A, NRE-C and BNRE; see `MLNRE`."""

from __future__ import annotations

from sbi.inference import BNRE, NRE_A, NRE_C

from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.nre import HybridRatioTrainer, RatioTrainer
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.repeats import checks_repeats


class MLNRE_A(RatioTrainer, NRE_A):
    """Multilevel neural ratio estimation with the loss of NRE-A.

    Arguments and errors are those of `MLNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLNRE_A
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> inference = MLNRE_A(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta[20:], x[20:], level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta[:20], 1.1 * x[:20], x_coarse=x[:20], level=1
        ... )
        >>> ratio = inference.train(max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = MultilevelConfig

    append_simulations = checks_repeats(NRE_A.append_simulations)


class MFNRE_A(RatioTrainer, NRE_A):
    """Multifidelity ratio estimation by transfer, with the loss of NRE-A.

    Arguments and errors are those of `MFNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNRE_A
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> inference = MFNRE_A(prior, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta[20:], x[20:])
        >>> inference = inference.append_simulations(theta[:20], 1.1 * x[:20])
        >>> ratio = inference.train(max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = TransferConfig

    append_simulations = checks_repeats(NRE_A.append_simulations)


class HybridNRE_A(HybridRatioTrainer, NRE_A):
    """Hybrid neural ratio estimation with the loss of NRE-A.

    Arguments and errors are those of `HybridNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridNRE_A
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> config = HybridConfig(num_members=2, level_maps=("none", "shift"))
        >>> inference = HybridNRE_A(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta[20:], x[20:])
        >>> inference = inference.append_simulations(theta[:20], 1.1 * x[:20])
        >>> ratio = inference.train(
        ...     max_num_epochs=500, stop_after_epochs=1
        ... )
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _member_type = MFNRE_A

    append_simulations = checks_repeats(NRE_A.append_simulations)


class MLNRE_C(RatioTrainer, NRE_C):
    """Multilevel neural ratio estimation with the loss of NRE-C.

    Arguments and errors are those of `MLNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLNRE_C
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> inference = MLNRE_C(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta[20:], x[20:], level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta[:20], 1.1 * x[:20], x_coarse=x[:20], level=1
        ... )
        >>> ratio = inference.train(num_classes=3, gamma=1.0, max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = MultilevelConfig

    append_simulations = checks_repeats(NRE_C.append_simulations)


class MFNRE_C(RatioTrainer, NRE_C):
    """Multifidelity ratio estimation by transfer, with the loss of NRE-C.

    Arguments and errors are those of `MFNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNRE_C
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> inference = MFNRE_C(prior, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta[20:], x[20:])
        >>> inference = inference.append_simulations(theta[:20], 1.1 * x[:20])
        >>> ratio = inference.train(num_classes=3, gamma=1.0, max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = TransferConfig

    append_simulations = checks_repeats(NRE_C.append_simulations)


class HybridNRE_C(HybridRatioTrainer, NRE_C):
    """Hybrid neural ratio estimation with the loss of NRE-C.

    Arguments and errors are those of `HybridNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridNRE_C
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> config = HybridConfig(num_members=2, level_maps=("none", "shift"))
        >>> inference = HybridNRE_C(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta[20:], x[20:])
        >>> inference = inference.append_simulations(theta[:20], 1.1 * x[:20])
        >>> ratio = inference.train(
        ...     num_classes=3, gamma=1.0, max_num_epochs=500, stop_after_epochs=1
        ... )
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _member_type = MFNRE_C

    append_simulations = checks_repeats(NRE_C.append_simulations)


class MLBNRE(RatioTrainer, BNRE):
    """Multilevel neural ratio estimation with the loss of BNRE.

    Arguments and errors are those of `MLNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLBNRE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> inference = MLBNRE(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     theta[20:], x[20:], level=0
        ... )
        >>> inference = inference.append_multilevel_simulations(
        ...     theta[:20], 1.1 * x[:20], x_coarse=x[:20], level=1
        ... )
        >>> ratio = inference.train(regularization_strength=10.0, max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = MultilevelConfig

    append_simulations = checks_repeats(BNRE.append_simulations)


class MFBNRE(RatioTrainer, BNRE):
    """Multifidelity ratio estimation by transfer, with the loss of BNRE.

    Arguments and errors are those of `MFNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFBNRE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> inference = MFBNRE(prior, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta[20:], x[20:])
        >>> inference = inference.append_simulations(theta[:20], 1.1 * x[:20])
        >>> ratio = inference.train(regularization_strength=10.0, max_num_epochs=2)
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _config_type = TransferConfig

    append_simulations = checks_repeats(BNRE.append_simulations)


class HybridBNRE(HybridRatioTrainer, BNRE):
    """Hybrid neural ratio estimation with the loss of BNRE.

    Arguments and errors are those of `HybridNRE`.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridBNRE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((320,))
        >>> x = theta + torch.randn(320, 1)
        >>> config = HybridConfig(num_members=2, level_maps=("none", "shift"))
        >>> inference = HybridBNRE(prior, config=config, show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta[20:], x[20:])
        >>> inference = inference.append_simulations(theta[:20], 1.1 * x[:20])
        >>> ratio = inference.train(
        ...     regularization_strength=10.0, max_num_epochs=500, stop_after_epochs=1
        ... )
        >>> ratio(torch.zeros(3, 1), torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    _member_type = MFBNRE

    append_simulations = checks_repeats(BNRE.append_simulations)
