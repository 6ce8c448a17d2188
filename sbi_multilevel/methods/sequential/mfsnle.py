r"""Sequential NLE with several fidelities: rounds from the posterior.

In round r theta is drawn from the posterior of the round before,

.. math::

    \theta \sim \hat p_r(\theta) \propto p(\theta)\, q_{r-1}(x_o \mid \theta), \qquad
    \hat p_0 = p,

and all levels are simulated: low-fidelity simulations densely, and pairs of the levels
above. `HybridNLE` is trained from scratch on the simulations of all rounds. A
likelihood is a density of x *given* theta, so that theta may follow any distribution,
at each level another, and nothing is truncated, weighted or left out (Papamakarios,
Sterratt, Murray 2019, *Sequential neural likelihood*). So are the level maps, which
move x at fixed theta.

What rounds change is where the likelihood is learned: with the same number of
high-fidelity simulations, most of them are at parameters that explain the observation.
What the posterior of a round misses is not simulated in the next one, but earlier
rounds remain in training.

With an `Acquisition`, part of the pairs of each round but the first are the points of
a pool of prior draws where the members of the mixture disagree most about the
observation, by default by the variance of :math:`p(\theta)\, q_e(x_o \mid \theta)`.
They need no weights here.

Proposals are drawn by MCMC (`sbi.inference.MCMCPosterior`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sbi.inference import MCMCPosterior
from sbi.inference.potentials import likelihood_estimator_based_potential
from torch import Tensor

from sbi_multilevel.data.priors import as_one_prior
from sbi_multilevel.data.validation import check_observation
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.nle import HybridNLE
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.multilevel_rounds import MultilevelRounds
from sbi_multilevel.methods.sequential.settings import MultilevelSettings
from sbi_multilevel.methods.sequential.state import Proposals
from sbi_multilevel.simulation.arguments import check_seed
from sbi_multilevel.training.config import check_config
from sbi_multilevel.utils.argument_types import check_types


class MFSNLE(MultilevelRounds):
    r"""Multifidelity sequential NLE: rounds of `HybridNLE` for one observation.

    .. math::

        q_r = \text{HybridNLE on draws from } \hat p_0, \dots, \hat p_r, \qquad
        \hat p_{r+1}(\theta) \propto p(\theta)\, q_r(x_o \mid \theta)

    See `sbi_multilevel.methods.sequential.mfsnle`. The steps and arguments of a run are
    those of `HybridTSNPE`. In `run`, `num_simulations[0]` low-fidelity simulations are
    made in each round.

    Args:
        prior: Prior over theta, with a density and a support.
        x_o: The observation, shape `x_shape` or `(1, *x_shape)`.
        density_estimator: Name of a network, or a builder, as for `HybridNLE`.
        config: Settings of `HybridNLE`.
        mcmc_options: Arguments of `sbi.inference.MCMCPosterior`, e.g. `num_chains`.
        acquisition: How active points are chosen; none by default. Needs the members of
            the mixture, `HybridConfig(distill=False)`.
        seed: Seed of all random numbers here. The same seed, simulations and settings
            give the same posterior, also after resuming.
        train_options: Arguments of `HybridNLE.train`.

    Attributes:
        summary: As of `HybridTSNPE`; nothing is truncated, so that `acceptance_rate` is
            1, `num_inside` counts all simulations, and `stopped` is "".

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If the observation has NaN, the prior has no density or support, or
            the settings do not fit.

    Reference: Papamakarios, Sterratt, Murray (2019), *Sequential neural likelihood:
    fast likelihood-free inference with autoregressive flows*.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFSNLE, HybridConfig
        >>> def coarse(theta, noise):
        ...     return theta + 0.3 * noise
        >>> def fine(theta, noise):
        ...     return theta + 0.1 * theta**2 + 0.3 * noise
        >>> inference = MFSNLE(
        ...     BoxUniform(-torch.ones(1), torch.ones(1)),
        ...     torch.zeros(1),
        ...     density_estimator="mdn",
        ...     config=HybridConfig(num_members=2, level_maps=("none", "shift")),
        ...     mcmc_options={"num_chains": 5, "warmup_steps": 10, "thin": 1},
        ...     train_options={"max_num_epochs": 500, "stop_after_epochs": 1},
        ... )
        >>> posterior = inference.run(
        ...     (coarse, fine),
        ...     num_simulations=(200, 20),
        ...     num_rounds=2,
        ...     noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        ...     show_progress_bars=False,
        ... )
        >>> posterior.sample((10,), show_progress_bars=False).shape
        torch.Size([10, 1])
    """

    def __init__(
        self,
        prior: Any,
        x_o: Tensor,
        density_estimator: Any = "maf",
        *,
        config: HybridConfig | None = None,
        mcmc_options: Mapping[str, Any] | None = None,
        acquisition: Acquisition | None = None,
        seed: int = 0,
        train_options: Mapping[str, Any] | None = None,
    ):
        check_types(MFSNLE.__init__, locals(), but=("seed",))
        check_seed(seed)
        checked = check_config(config, HybridConfig, {})
        distill = getattr(checked, "distill", False)
        if acquisition is not None and (distill or acquisition.correct):
            raise ValueError(
                f"acquisition={acquisition} with distill={distill!r}, but it "
                "compares the members of a mixture, and likelihoods need no weights. "
                "Use `Acquisition(correct=False)` and `HybridConfig(distill=False)`."
            )
        if density_estimator == "mnle":
            raise ValueError(
                "density_estimator='mnle' was passed, but rounds do not take discrete "
                "x. Use `HybridNLE` on simulations from the prior."
            )
        settings = MultilevelSettings(
            prior=as_one_prior(prior),
            trainer_type=HybridNLE,
            density_estimator=density_estimator,
            config=checked,
            train_options=dict(train_options or {}),
            truncation=None,
            mcmc_options=dict(mcmc_options or {}),
            acquisition=acquisition,
            seed=seed,
        )
        super().__init__(settings, check_observation(x_o))

    def _posterior(self, estimator: Any) -> MCMCPosterior:
        prior, x_o = self._settings.prior, self._state.x_o
        parts = likelihood_estimator_based_potential(estimator, prior, x_o)
        # each chain starts at one of its candidates, all of which are evaluated
        options = {
            "init_strategy_parameters": {"num_candidate_samples": 1_000},
            **self._settings.mcmc_options,
        }
        return MCMCPosterior(
            parts[0], proposal=prior, theta_transform=parts[1], **options
        )

    def _passive(self, num: int) -> Proposals:
        if not self._state.fits or num == 0:
            theta = self._state.prior.sample((num,))
        else:
            theta = self.build_posterior().sample((num,), show_progress_bars=False)
        return Proposals(theta, torch.ones(num), self._state.prior.acceptance)

    def _pool_of(self, acquisition: Acquisition) -> tuple[Any, int]:
        # with `fixed_pool` all rounds have the same pool
        round_ = 0 if acquisition.fixed_pool else self._state.index
        return self._settings.prior, round_

    def _num_reused(self) -> int:
        # those of earlier rounds are kept, but follow other distributions
        return 0 if self._state.fits else super()._num_reused()
