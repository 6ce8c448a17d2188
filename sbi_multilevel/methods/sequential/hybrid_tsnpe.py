r"""Truncated sequential NPE that simulates all levels near one observation.

Round r has a region :math:`R_r` of the prior
(`sbi_multilevel.methods.sequential.truncated_prior`). In each round

1. simulations of *all* levels are drawn from the prior in the region,

   .. math:: \tilde p_r(\theta) \propto p(\theta)\, 1[\theta \in R_r],

   many of the lowest fidelity, which cost little, and pairs of the levels above;
2. `HybridNPE` (or `MLNPE`) is trained from scratch on all simulations of all rounds
   that lie in the region; its posterior :math:`q_r(\theta \mid x)` is that under
   :math:`\tilde p_r`;
3. the next region is what :math:`R_r` shares with the region of highest density of
   :math:`q_r(\theta \mid x_o)`.

*No weights.* Regions are nested. A draw from :math:`\tilde p_s` of an earlier round s
that lies in :math:`R_r` is a draw from :math:`\tilde p_r`, so that all simulations in
the region are independent draws from one truncated prior, at each level. Level maps
and their selection, folds and stacking weights therefore hold without a correction, and
the terms of the telescoping sum of `MLNPE` are expectations over the same
:math:`\tilde p_r`.

*Active points.* With an `Acquisition`, part of the pairs of each round but the first
are the points of a pool of draws from the truncated prior where the members of the
mixture disagree most about the observation. They are no draws from the truncated
prior: simulations have the importance weights of
`sbi_multilevel.methods.sequential.acquisition`, with :math:`Z = 1` as the pool lies in
the region. Active points have small weights, :math:`1 / (1 - \alpha + \alpha M / k)`,
in losses and scores, but level maps, which are fitted given theta, use them fully.

*Why rounds help.* A level map has to be known in the region only, where the difference
of the levels is nearly constant, or linear in theta. From the whole prior the same
number of simulations would have to determine this difference everywhere. A Gaussian
process is fitted to the pairs outside of the region as well, as a regression of the
difference on theta and x is valid for any distribution of theta. With a few dozen pairs
in all, this can decide whether its error is below the noise of x or above.

*The component that truncates.* A hybrid is a mixture of networks with lower levels, of
networks of high fidelity alone, and of the truncated prior, with a weight of about
:math:`1/(n + 1)` or more. The next region is that of the networks with the highest
held-out log score. The others give the posterior its tails, and can be nearly as wide
as the prior where high-fidelity simulations are few. One network in the place of the
mixture is not divided, and truncates as a whole: use `distill=False`.

*The end.* The share :math:`P(R_{r+1}) / P(R_r)` of the region that is left tells what a
further round changes: if it is near one, a further round draws from the same
distribution. From the second round on, `run` then spends the remaining simulations in
one last round. (The posterior of the first round may be wide because simulations are
few.) What is outside of a region is lost for later rounds. With networks that are too
narrow, truncation removes mass of the posterior, which `epsilon` does not bound:
compare `summary["log_score"]` between rounds, and check predictions.

*The posterior* is :math:`q_r(\theta \mid x_o)` of the last round, in the support of the
whole prior. It is valid for the observation alone. The first round depends on no
observation: `for_observation` goes on from it with another one.

Reference: Deistler, Gonçalves, Macke (2022), *Truncated proposals for scalable and
hassle-free simulation-based inference*; Krouglova et al. (2026), arXiv:2502.08416,
for rounds of high-fidelity simulations, see `MFTSNPE`. Rounds of all levels are ours.
"""

from __future__ import annotations

from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.npe import MLNPE, HybridNPE
from sbi_multilevel.methods.sequential.truncated_rounds import TruncatedRounds


class HybridTSNPE(TruncatedRounds):
    r"""Rounds of `HybridNPE` in nested regions of the prior, for one observation.

    .. math::

        q_r = \text{HybridNPE on draws from } p(\theta)\, 1[\theta \in R_r], \qquad
        R_{r+1} = R_r \cap \{\theta : q_r(\theta \mid x_o) > \tau_r\}

    Each round simulates all levels in the region: low-fidelity simulations densely, and
    pairs. See `sbi_multilevel.methods.sequential.hybrid_tsnpe`. Give the simulators to
    `run`, or call `propose`, `append_multilevel_simulations` and `train` in each round.
    The object can be pickled between these steps.

    Args:
        prior: Prior over theta, with a density and a support.
        x_o: The observation, shape `x_shape` or `(1, *x_shape)`.
        density_estimator: Name of a network, or a builder, as for `HybridNPE`.
        config: Settings of `HybridNPE`.
        truncation: How the prior is truncated; `Truncation(1e-3, 20_000)` by default.
        acquisition: How active points are chosen, with `correct=True`; none by default.
            Needs the members of the mixture, `HybridConfig(distill=False)`.
        seed: Seed of all random numbers here. The same seed, simulations and settings
            give the same posterior, also after resuming.
        train_options: Arguments of `HybridNPE.train`.

    Attributes:
        summary: Lists with an entry per round: `num_simulations` (new ones of each
            level), `num_inside` (those trained on), `acceptance_rate` (share of prior
            draws in the region of the round), `log_score` (mean log density of held-out
            high-fidelity simulations, the best component) and `failures` (error
            messages); and `stopped`, why further rounds are not needed, or "".

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If the observation has NaN, the prior has no density or support, or
            the settings do not fit.

    Reference: Deistler, Gonçalves, Macke (2022), *Truncated proposals for scalable and
    hassle-free simulation-based inference*.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import HybridConfig, HybridTSNPE, Truncation
        >>> def coarse(theta, noise):
        ...     return theta + 0.3 * noise
        >>> def fine(theta, noise):
        ...     return theta + 0.1 * theta**2 + 0.3 * noise
        >>> inference = HybridTSNPE(
        ...     BoxUniform(-torch.ones(2), torch.ones(2)),
        ...     torch.zeros(2),
        ...     density_estimator="mdn",
        ...     config=HybridConfig(num_members=2, level_maps=("none", "shift")),
        ...     truncation=Truncation(epsilon=1e-3, num_samples=1_000),
        ...     train_options={"max_num_epochs": 500, "stop_after_epochs": 1},
        ... )
        >>> posterior = inference.run(
        ...     (coarse, fine),
        ...     num_simulations=(300, 40),
        ...     num_rounds=2,
        ...     noise=lambda n, generator: torch.randn(n, 2, generator=generator),
        ...     show_progress_bars=False,
        ... )
        >>> posterior.sample((10,), show_progress_bars=False).shape
        torch.Size([10, 2])
    """

    _trainer_type, _config_type = HybridNPE, HybridConfig


class MLTSNPE(TruncatedRounds):
    r"""Rounds of `MLNPE` in nested regions of the prior, for one observation.

    In round r the telescoping sum is over the truncated prior,

    .. math::

        \ell_r(\phi) = \mathbb{E}_{\tilde p_r} f_0
        + \sum_{l=1}^{L} \mathbb{E}_{\tilde p_r} [f_l - f_{l-1}], \qquad
        \tilde p_r(\theta) \propto p(\theta)\, 1[\theta \in R_r],

    which has the posterior under :math:`\tilde p_r` as its minimum. Arguments,
    attributes and errors are those of `HybridTSNPE`, but that `config` is a
    `MultilevelConfig`, all simulations above level 0 must be pairs, and
    `summary["log_score"]` is NaN. See `sbi_multilevel.methods.sequential.hybrid_tsnpe`.

    Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural
    simulation-based inference*, arXiv:2506.06087, for the loss; the rounds are ours.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MLTSNPE, Truncation
        >>> inference = MLTSNPE(
        ...     BoxUniform(-torch.ones(2), torch.ones(2)),
        ...     torch.zeros(2),
        ...     density_estimator="mdn",
        ...     truncation=Truncation(epsilon=1e-3, num_samples=1_000),
        ...     train_options={"max_num_epochs": 2},
        ... )
        >>> for round_ in range(2):
        ...     low, high = inference.propose((200, 20))
        ...     noise = 0.3 * torch.randn(20, 2)
        ...     _ = inference.append_lowfidelity_simulations(
        ...         low, low + 0.3 * torch.randn(200, 2)
        ...     )
        ...     _ = inference.append_multilevel_simulations(
        ...         high, 1.1 * high + noise, x_coarse=high + noise, level=1
        ...     )
        ...     _ = inference.train()
        >>> posterior = inference.build_posterior()
        >>> posterior.sample((10,), show_progress_bars=False).shape
        torch.Size([10, 2])
    """

    _trainer_type, _config_type = MLNPE, MultilevelConfig
