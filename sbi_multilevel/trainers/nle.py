r"""Multilevel neural likelihood estimation (ML-NLE).

The loss, its variance and its gradient are those of ML-NPE
(`sbi_multilevel.trainers.npe`; Hikida et al. 2025, equation 2) with
:math:`f_l(\phi) = -\log q_\phi(G_l(\theta, u) \mid \theta)`: the sum over levels
telescopes to the loss of NLE on the highest level. Since `theta` may follow any
distribution with NLE, only the pairs have to share theta and noise.

Rows dropped for NaN or inf change what is learned: the likelihood of valid outputs.

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, equations 1 and 2, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from sbi.inference import NLE

from sbi_multilevel.observations import WatchedPotential
from sbi_multilevel.trainers.appending import checks_rows
from sbi_multilevel.trainers.hybrid import HybridMixin


class MLNLE(HybridMixin, NLE):
    r"""NLE that also learns from cheaper simulators.

    As with `MLNPE` the default recipe is `"hybrid"`, and `recipe="multilevel"` is
    ML-NLE (`sbi_multilevel.trainers.nle`). With `append_simulations` alone it *is*
    `sbi.inference.NLE`, weight by weight, and whatever is not described here is as
    there.

    Args:
        prior: Prior over theta, anything that sbi takes.
        density_estimator: Name of a network, e.g. `"nsf"`, `"maf"` or `"mdn"`, or a
            builder, as `sbi.neural_nets.likelihood_nn` returns it.
        device: Device of training, e.g. `"cpu"` or `"cuda"`.
        logging_level: Least severe messages that sbi logs.
        summary_writer: Deprecated by sbi; use `tracker`.
        tracker: Where metrics go; by default TensorBoard, in the folder `sbi-logs`.
        show_progress_bars: Whether to show progress.
        recipe: `"hybrid"`, `"multilevel"` or `"transfer"`, or one with settings, e.g.
            `Hybrid(num_members=10)`.
        parameters: Names of the columns of theta that each level has, the highest
            included, where levels differ, e.g. `{0: ("mu",), 1: ("mu", "sigma")}`; see
            `sbi_multilevel.parameters`.

    Raises:
        ValueError: If there is no such recipe, or `parameters` do not fit each other.

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

    _modelled = "x"

    append_simulations = checks_rows(NLE.append_simulations)

    def _get_potential_function(self, prior: Any, estimator: Any) -> Any:
        """As the parent; the potential looks at the observations it is given."""
        potential, transform = super()._get_potential_function(prior, estimator)
        watch = self._watch
        if watch is not None:
            potential = WatchedPotential(estimator, prior, potential.device, watch)
        return potential, transform


class MFNLE(MLNLE):
    r"""NLE pre-trained on cheaper simulators and fine-tuned on the dear one (MF-NLE).

    As `MFNPE`, with the loss :math:`-\log q_\phi(x \mid \theta)`: the likelihood of
    level 0 is where training on level 1 starts, and so on to level L. Where levels are
    aligned (see `Transfer`), the density of x accounts for the change of scale.

    Arguments and errors are those of `MLNLE`. With `append_simulations` alone it *is*
    `sbi.inference.NLE`, weight by weight.

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

    _default_recipe = "transfer"
