r"""Multilevel neural posterior estimation (ML-NPE).

With :math:`f_l(\phi) = -\log q_\phi(\theta \mid G_l(\theta, u))`, ML-NPE minimises the
telescoping loss (Hikida et al. 2025, equation 2)

.. math::

    \ell(\phi) = \frac1{n_0} \sum_{i} f_0(\theta_i, u_i)
    + \sum_{l=1}^{L} \frac1{n_l} \sum_{i} \left[ f_l(\theta_i, u_i)
    - f_{l-1}(\theta_i, u_i) \right],

whose expectation is :math:`\mathbb{E} f_L`, the loss of NPE on simulations of the
highest level alone: the sum telescopes (their equation 1). Level 0 is cheap, so
:math:`n_0` can be large; the differences have small variance where the levels agree, so
few rows correct the bias. The variance of the loss is :math:`\sum_l V_l / n_l` with
:math:`V_l = \mathrm{Var}[f_l - f_{l-1}]`, against :math:`\mathrm{Var}[f_L] / n` for
NPE.

Steps follow the adjusted gradient of Algorithm 1 (`sbi_multilevel.gradients`). Rows of
lower levels can be moved to the scale of the highest one before use
(`sbi_multilevel.alignment`).

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, equations 1 and 2, Algorithm 1.
"""

from __future__ import annotations

from sbi.inference import NPE

from sbi_multilevel.trainers.appending import checks_rows
from sbi_multilevel.trainers.hybrid import HybridMixin


class MLNPE(HybridMixin, NPE):
    r"""NPE that also learns from cheaper simulators.

    The default recipe is `"hybrid"` (`sbi_multilevel.recipes.hybrid`): an ensemble that
    needs no pairs, though it uses them, and says in `hybrid_summary` what the lower
    levels were worth. `recipe="multilevel"` is ML-NPE (`sbi_multilevel.trainers.npe`).
    With `append_simulations` alone it *is* `sbi.inference.NPE`, weight by weight, and
    whatever is not described here is as there.

    Args:
        prior: Prior over theta, anything that sbi takes.
        density_estimator: Name of a network, e.g. `"nsf"`, `"maf"` or `"mdn"`, or a
            builder, as `sbi.neural_nets.posterior_nn` returns it.
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

    _modelled = "theta"

    append_simulations = checks_rows(NPE.append_simulations)


class MFNPE(MLNPE):
    r"""NPE pre-trained on cheaper simulators and fine-tuned on the dear one (MF-NPE).

    The network :math:`q_\phi(\theta \mid x)` is trained on the rows of level 0 until
    early stopping,

    .. math:: \phi_0 = \arg\min_\phi -\frac1{n_0} \sum_i
        \log q_\phi(\theta_i \mid G_0(\theta_i, u_i)),

    and from :math:`\phi_0` on those of level 1, and so on to level L, nothing frozen.
    Early stopping near the starting point is what carries the cheap rows over: the
    minimum itself is that of the highest level alone. See `Transfer` for the settings,
    `warm_start` for weights trained elsewhere. It differs from `MLNPE` in its default
    recipe only; rows need not be paired.

    Arguments and errors are those of `MLNPE`. With `append_simulations` alone it *is*
    `sbi.inference.NPE`, weight by weight.

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

    _default_recipe = "transfer"
